"use strict";
// Gradient profiles: the norm of ∂L/∂h by block, and of ∂L/∂x by time step, relative to the last one, at any recorded step.
{
  const LINES = 8, FEW = 60;  // lines that can be told apart; points of a line of which each gets a mark
  const [CAUTION, FAIL] = data.limits, SHADES = [["CAUTION", CAUTION, FAIL, "#F0E442"], ["FAIL", FAIL, 330, "#CC79A7"]];
  const AXES = {
    gradient: ["block l (1 is next to the input)", "‖∂L/∂h<sub>l</sub>‖ / ‖∂L/∂h<sub>L</sub>‖"],
    time: ["time step t (the loss is at the last)", "‖∂L/∂x<sub>t</sub>‖ / ‖∂L/∂x<sub>T</sub>‖"],
  };

  // What gets a line: configurations, or each of two runs of the same one.
  function entries(key) {
    const long = run => run.snapshots.length && run.snapshots[0][key].length > 1;
    const own = shownConfigurations(), split = one => one.runs.map((run, rank) => ({...one, label: run.name, rank, runs: [run]}));
    return (data.runs.length === 2 && own.length === 1 ? own.flatMap(split) : own).map(one => ({...one, runs: one.runs.filter(long)})).filter(one => one.runs.length);
  }

  // The norms of runs at a step: of each those of its latest snapshot up to there.
  const normsAt = (runs, key, step) => runs.map(run => (run.snapshots.findLast(one => one.step <= step) ?? run.snapshots[0])[key]);

  // At each place the geometric mean and the range of ratios above 0, and how many runs have 0 or no finite number there.
  function summaryOf(norms) {
    const length = Math.max(...norms.map(one => one.length)), longest = norms.filter(one => one.length === length);
    return longest[0].map((_, place) => {
      const ratios = longest.map(one => one[place] === 0 ? 0 : (one[place] ?? NaN) / (one.at(-1) ?? NaN));
      const logs = ratios.filter(ratio => ratio > 0 && ratio < Infinity).map(Math.log10);
      const n = ratios.length, zeros = ratios.filter(ratio => ratio === 0).length, bad = n - zeros - logs.length;
      const mean = logs.length ? 10 ** (logs.reduce((sum, log) => sum + log, 0) / logs.length) : null;
      return {mean, low: 10 ** Math.min(...logs), high: 10 ** Math.max(...logs), n, zeros, bad};
    });
  }

  const ratioOf = ({mean, zeros}) => mean !== null ? decades(Math.log10(mean)) : zeros ? "−∞" : "not finite";

  // What is drawn of an entry: its norms as lists, with the places and names of the blocks that the longest has.
  function lineOf(one, key, norms, style) {
    if (!norms.length) return [];
    const {places, trunk} = one.runs.reduce((long, run) => run.places[key].length > long.places[key].length ? run : long);
    return [{points: summaryOf(norms), places: places[key], names: key === "gradient" ? trunk : [], ...style}];
  }
  const atStep = (one, key, step, style) => lineOf(one, key, normsAt(one.runs, key, step), style);
  const theory = (one, key, style) =>
    lineOf(one, key, one.runs.map(run => run.theory[key]).filter(own => own.length).slice(0, 1), {dash: "dot", ...style});

  // The traces of a line: its band, the mean, and marks at the floor of the chart where there is nothing to average.
  function tracesOf({name, group = name, points, places, names, color, dash = "solid", showlegend = true}, floor) {
    const where = index => `${names[index] ? "block " : ""}${places[index]}${names[index] ? `, ${names[index]}` : ""}`;
    const range = ({low, high, n}) => high > low ? ` (${fourDigits(low)} to ${fourDigits(high)}, ${n} runs)` : "";
    const shared = {legendgroup: `=${group}`, name: plain(name), showlegend, hovertemplate: "%{text}<extra>%{fullData.name}</extra>"};
    const known = points.map((_, index) => index).filter(index => points[index].mean !== null), back = known.toReversed();
    const made = [{
      ...shared, x: places, y: points.map(({mean}) => mean), line: {color, dash, width: 2}, marker: {size: 5},
      mode: points.length <= FEW && dash === "solid" ? "lines+markers" : "lines",
      text: points.map((point, index) => plain(`${where(index)}: ${fourDigits(point.mean ?? 0)}${range(point)}`)),
    }];
    if (known.some(index => points[index].high > points[index].low)) made.unshift({
      x: [...known, ...back].map(index => places[index]), fill: "toself", fillcolor: color, opacity: .18, line: {width: 0},
      y: [...known.map(index => points[index].high), ...back.map(index => points[index].low)],
      mode: "lines", hoverinfo: "skip", legendgroup: `=${group}`, showlegend: false, name: plain(name), meta: "band",
    });
    for (const [key, word, symbol] of [["zeros", "0", "triangle-down"], ["bad", "not finite", "x"]]) {
      const marked = points.map((_, index) => index).filter(index => points[index][key]);
      const of = ({n, [key]: count}) => n > 1 ? ` in ${count} of ${n} runs` : "";
      if (marked.length) made.push({
        ...shared, name: plain(`${name}: ${word}`), mode: "markers", marker: {symbol, size: 9, color}, meta: word,
        x: marked.map(index => places[index]), y: marked.map(() => floor),
        text: marked.map(index => `${plain(where(index))}: ${word}${of(points[index])}`),
      });
    }
    return made;
  }

  // One y axis for all steps, so that a moving slider moves nothing but lines; shaded as the verdict judges.
  function layoutOf(key, own, steps) {
    const lines = own.flatMap(one => [...steps.flatMap(step => atStep(one, key, step)), ...theory(one, key)]);
    const ends = lines.flatMap(({points}) => points).filter(({mean}) => mean !== null).flatMap(({low, high}) => [low, high]);
    const low = Math.log10(ends.reduce((a, b) => Math.min(a, b), 10 ** -1.5)) - .5;
    const high = Math.log10(ends.reduce((a, b) => Math.max(a, b), 10 ** 1.5)) + .5;
    const shades = SHADES.flatMap(([word, start, end, fillcolor]) => [
      {word, fillcolor, y0: start, y1: Math.min(end, high)}, {word, fillcolor, y0: Math.max(-end, low), y1: -start},
    ]).filter(({y0, y1}) => y0 < y1);
    const shade = {type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, opacity: .15, line: {width: 0}};
    const note = {xref: "paper", x: 1, xanchor: "right", showarrow: false, opacity: .7, font: {size: 10}};
    const [across, down] = AXES[key].map(text => ({title: {text}})), last = Math.max(...lines.map(line => line.places.at(-1)));
    return {
      height: 380, showlegend: true, margin: {l: 48, r: 8, t: 30, b: 40}, legend: {orientation: "h", y: -.24},
      meta: {floor: 10 ** (low + .12)}, xaxis: {...across, ...(last <= 12 ? {dtick: 1} : {})},
      yaxis: {...down, type: "log", range: [low, high], exponentformat: "power", nticks: 8, ...powersOfTen(high - low)},
      shapes: shades.map(({y0, y1, fillcolor}) => ({...shade, y0: 10 ** y0, y1: 10 ** y1, fillcolor})),
      annotations: shades.filter(({y0, y1}) => y1 - y0 > (high - low) / 20).map(({word, y0, y1}) => ({...note, text: word, y: (y0 + y1) / 2})),
    };
  }

  // Of one entry start, end, the chosen step and theory in one chart; of several a chart of the start and one of the step.
  function chartsOf(key, own, steps, step, floor) {
    const [first, last] = [steps[0], steps.at(-1)], traces = lines => lines.flatMap(line => tracesOf(line, floor));
    if (own.length > 1) {
      const styles = stylesOf(own), styled = own.map((one, place) => [one, {name: shortened(one.label, 44), ...styles[place]}]);
      const predicted = ({name, color}) => ({name: `${name}, theory`, group: name, color, showlegend: false});
      const start = styled.flatMap(([one, style]) => [...atStep(one, key, first, style), ...theory(one, key, predicted(style))]);
      const chosen = styled.flatMap(([one, style]) => atStep(one, key, step, style));
      return [["at the start of training", traces(start)], ...(last > first ? [[`at step ${step}`, traces(chosen)]] : [])];
    }
    const [one] = own, between = step > first && step < last;
    const ratios = [...new Set([first, last])].map(step => ratioOf(atStep(one, key, step)[0].points[0]));
    return [[`log₁₀ gradient ratio, first over last: ${ratios.join(" → ")}`, traces([
      ...atStep(one, key, first, {name: `start (step ${first})`, color: colour(0)}),
      ...(last > first ? atStep(one, key, last, {name: `end (step ${last})`, color: colour(1)}) : []),
      ...(between ? atStep(one, key, step, {name: `step ${step}`, color: colour(2)}) : []),
      ...theory(one, key, {name: "theory at initialisation", color: styleOf("--ink")}),
    ])]];
  }

  function draw(body, key) {
    const all = entries(key), own = bestAndWorst(all, LINES), runs = own.flatMap(one => one.runs);
    if (!own.length) return false;
    const steps = unionOf(runs.map(run => run.snapshots.map(one => one.step))), layout = layoutOf(key, own, steps);
    const wanted = step => chartsOf(key, own, steps, step, layout.meta.floor);
    const [slider, step] = stepSlider("Probe at", `probe-${key}`, steps, step => redraw(body, wanted(step)));
    const sentences = [
      "Shaded: where the verdict is CAUTION or FAIL.", runs.some(run => run.theory[key].length) && "Dotted: theory at initialisation.",
      own.some(one => one.runs.length > 1) && "Lines are geometric means over runs, bands their range.",
      own.length < all.length && `Shown are the best and the worst ${own.length} of ${all.length} configurations.`,
    ];
    body.replaceChildren(...(steps.length > 1 ? [slider] : []), element("p", {class: "soft"}, sentences.filter(Boolean).join(" ")));
    charts(body, wanted(step).map(([title, traces]) => ({title, traces, layout})));
  }

  view("gradient-depth", "Gradient by depth", body => draw(body, "gradient"));
  view("gradient-time", "Gradient through time", body => draw(body, "time"));
}
