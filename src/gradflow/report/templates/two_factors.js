"use strict";
// What came out of each pair of two factors' levels.
const GRID = 12;  // cells a side between the points of two numbers

// A heatmap of means; each cell says its mean ± standard deviation, and how many of its runs ended otherwise.
function matrix(quantity, down, across, trials) {
  const [rows, columns] = [down, across].map(factor => axisOf(factor, false));
  const cells = down.levels.map((_, row) => across.levels.map((_, column) => trials.filter(one => rows.at(one) === row && columns.at(one) === column)));
  const table = of => cells.map(row => row.map(cell => of(cell.filter(trial => trial.counts).map(trial => trial.value), cell)));
  const states = cell => counted(cell.filter(trial => !trial.counts).map(trial => plain(trial.run.status)));
  const numbers = values => quantity === RATIO ? [decades(mean(values))]
    : [short(mean(values)), ...(deviation(values) > 0 ? [`±${short(deviation(values), 2)}`] : [])];
  const colours = coloursOf(quantity, table(values => values.length ? mean(values) : []).flat(2)), grey = styleOf("--line");
  const texttemplate = Math.max(down.levels.length, across.levels.length) > MOST_CELLS ? "" : "%{text}";
  const shared = {type: "heatmap", xgap: 2, ygap: 2, texttemplate, hovertemplate: `${plain(down.key)}=%{y} ${plain(across.key)}=%{x}<br>%{text}<extra></extra>`};
  return {
    title: `${quantity} by ${down.key} and ${across.key}`,
    traces: [
      {...shared, z: table(values => values.length ? colours.scaled(mean(values)) : null), coloraxis: "coloraxis",
       text: table((values, cell) => values.length ? [...numbers(values), ...states(cell)].join("<br>") : "")},
      {...shared, z: table((values, cell) => cell.length && !values.length ? 0 : null),
       text: table((values, cell) => values.length ? "" : states(cell).join("<br>")),
       colorscale: [[0, grey], [1, grey]], showscale: false},
    ],
    layout: {xaxis: columns.axis, yaxis: {...rows.axis, range: [down.levels.length - .5, -.5]}, coloraxis: colours.axis,
             height: Math.min(130 + 62 * down.levels.length, 700)},
  };
}

// Trials over two factors of which a search drew a number; between two numbers plotly interpolates over a grid.
function contour(quantity, down, across, trials) {
  const done = trials.filter(trial => trial.counts), colours = coloursOf(quantity, done.map(trial => trial.value));
  const [x, y] = [across, down].map(factor => axisOf(factor, factor.numeric));
  const onGrid = ({numeric, log, levels, key}) => {
    const [way, back] = numeric && log ? [Math.log10, value => 10 ** value] : [Number, Number], [low, high] = [levels[0], levels.at(-1)].map(way);
    const step = (high - low) / (GRID - 1);
    return trial => back(low + step * Math.round((way(+trial.values[key]) - low) / step));
  };
  const surface = down.numeric && across.numeric ? [{
    type: "heatmap", x: done.map(onGrid(across)), y: done.map(onGrid(down)), z: done.map(trial => colours.scaled(trial.value)),
    connectgaps: true, zsmooth: "best", coloraxis: "coloraxis", hoverinfo: "skip", opacity: .8,
  }] : [];
  return {
    title: `${quantity} by ${down.key} and ${across.key}`,
    traces: [...surface, ...points(trials, x.at, y.at, trial => colours.scaled(trial.value))],
    layout: {xaxis: x.axis, yaxis: y.axis, coloraxis: colours.axis, height: 420, showlegend: false},
  };
}

view("pairs", "Two factors", () => {
  const keys = factorKeys(), quantities = [data.metric, RATIO].filter(name => name && trialsOf(name).some(trial => trial.counts && trial.value));
  if (keys.length < 2 || !quantities.length) return null;
  const first = optionOf("down", keys), others = keys.filter(key => key !== first), second = optionOf("across", others);
  const [down, across] = [first, second].map(key => factorOf(key, trialsOf(quantities[0]))), scattered = down.many || across.many;
  const caption = scattered
    ? "A circle is a finished run, a cross one that did not finish, a star the choice of the search; between them colours are interpolated: nothing was trained there."
    : "Mean ± standard deviation over the finished runs of a cell, whatever their other choices; grey: none finished.";
  return {
    above: [menu("rows", "down", keys), " ", menu("columns", "across", others)],
    charts: quantities.map(quantity => (scattered ? contour : matrix)(quantity, down, across, trialsOf(quantity))),
    below: [caption, quantities[0] === data.metric && `Bright: the better ${data.metric}.`],
  };
});
