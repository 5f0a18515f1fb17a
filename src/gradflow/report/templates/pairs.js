"use strict";
// What came out of each pair of two factors' levels.
const GRID = 12;  // cells a side between the points of two numbers

// Mean and standard deviation, with as many decimals as its first two digits have.
function measured(values) {
  const middle = mean(values), sd = deviation(values), decimals = Math.min(Math.max(1 - Math.floor(Math.log10(sd)), 0), 9);
  return !(sd > 0) || Math.abs(middle) >= 1e5 ? [short(middle)] : [middle.toFixed(decimals), `±${sd.toFixed(decimals)}`];
}

// An axis of a number of a random search: fifths by rank.
function fifthsAxis({key, levels}, trials) {
  const values = trials.map(trial => +trial.values[key]).sort((one, other) => one - other);
  const fifth = level => Math.floor(BINS * values.indexOf(+level) / values.length), bins = [...new Set(levels.map(fifth))];
  const ends = bins.map(bin => extent(levels.filter(level => fifth(level) === bin).map(Number)));
  const names = ends.map(([low, high]) => low === high ? short(low, 2) : `${short(low, 2)}–${short(high, 2)}`);
  return namedAxis(key, names, trial => bins.indexOf(fifth(trial.values[key])));
}

// A heatmap of means; each cell says its mean ± standard deviation, and how many of its runs ended otherwise.
function matrix(quantity, down, across, trials) {
  const [rows, columns] = [down, across].map(factor => factor.many ? fifthsAxis(factor, trials) : levelAxis(factor));
  const cells = Array.from({length: rows.count}, () => Array.from({length: columns.count}, () => []));
  for (const trial of trials) cells[rows.at(trial)][columns.at(trial)].push(trial);
  const table = of => cells.map(row => row.map(cell => of(cell.filter(trial => trial.counts).map(trial => trial.value), cell)));
  const states = cell => counted(cell.filter(trial => !trial.counts).map(trial => plain(trial.run.status)));
  const numbers = quantity === RATIO ? values => [decades(mean(values))] : measured;
  const colours = coloursOf(quantity, table(values => values.length ? mean(values) : []).flat(2)), grey = styleOf("--line");
  const texttemplate = Math.max(rows.count, columns.count) > MOST_CELLS ? "" : "%{text}";
  const shared = {type: "heatmap", xgap: 2, ygap: 2, texttemplate, hovertemplate: "%{text}<extra></extra>"};
  return {
    title: `${quantity} by ${down.key} and ${across.key}`,
    traces: [
      {...shared, z: table(values => values.length ? colours.scaled(mean(values)) : null), coloraxis: "coloraxis",
       text: table((values, cell) => values.length ? [...numbers(values), ...states(cell)].join("<br>") : "")},
      {...shared, z: table((values, cell) => cell.length && !values.length ? 0 : null),
       text: table((values, cell) => values.length ? "" : states(cell).join("<br>")),
       colorscale: [[0, grey], [1, grey]], showscale: false},
    ],
    layout: {xaxis: columns.axis, yaxis: {...rows.axis, range: [rows.count - .5, -.5]}, coloraxis: colours.axis,
             height: Math.min(130 + 62 * rows.count, 700)},
  };
}

// Two numbers of a search: the trials, over the means of the cells of a grid, between which plotly interpolates; its contours
// hang on a logarithmic axis.
function contour(quantity, down, across, trials) {
  const done = trials.filter(trial => trial.counts), colours = coloursOf(quantity, done.map(trial => trial.value));
  const axis = factor => {
    const [way, back] = factor.log ? [Math.log10, value => 10 ** value] : [Number, Number], at = trial => +trial.values[factor.key];
    const low = way(+factor.levels[0]), step = (way(+factor.levels.at(-1)) - low) / (GRID - 1);
    const values = Array.from({length: GRID}, (_, place) => back(low + place * step));
    return {at, values, cell: trial => Math.round((way(at(trial)) - low) / step), axis: numberAxis(factor)};
  };
  const x = axis(across), y = axis(down), cells = y.values.map(() => x.values.map(() => []));
  for (const trial of done) cells[y.cell(trial)][x.cell(trial)].push(colours.scaled(trial.value));
  const z = cells.map(row => row.map(cell => cell.length ? mean(cell) : null));
  return {
    title: `${quantity} by ${down.key} and ${across.key}`,
    traces: [
      {type: "heatmap", x: x.values, y: y.values, z, connectgaps: true, zsmooth: "best", coloraxis: "coloraxis",
       hoverinfo: "skip", opacity: .8},
      ...points(trials, x.at, y.at, trial => colours.scaled(trial.value)),
    ],
    layout: {xaxis: x.axis, yaxis: y.axis, coloraxis: colours.axis, height: 420, showlegend: false},
  };
}

view("pairs", "Two factors", body => {
  const keys = factorKeys();
  const quantities = [data.metric, RATIO].filter(name => name && trialsOf(name).some(trial => trial.counts && trial.value));
  if (keys.length < 2 || !quantities.length) return false;
  const first = keys.includes(chosen.down) ? chosen.down : keys[0], others = keys.filter(key => key !== first);
  const second = others.includes(chosen.across) ? chosen.across : others[0];
  body.replaceChildren(menu("rows", "down", keys), " ", menu("columns", "across", others));
  const [down, across] = [first, second].map(key => factorOf(key, trialsOf(quantities[0]))), scattered = down.many && across.many;
  charts(body, quantities.map(quantity => (scattered ? contour : matrix)(quantity, down, across, trialsOf(quantity))));
  const caption = scattered
    ? "A circle is a finished run, a cross one that did not finish; between them colours are interpolated: nothing was trained there."
    : "Mean ± standard deviation over the finished runs of a cell, whatever their other choices; grey: none finished." +
      (down.many || across.many ? " Numbers of a random search are cut into fifths by rank." : "");
  body.append(element("p", {class: "soft"}, `${caption} Bright is good.${trivialText()}`));
});
