"use strict";
// How a search went, trial by trial, and what came out of each value of each factor.
const MOST_FACTORS = 12;

// Whether it was a search: its file says so, or so many factors have numbers that were not laid on a grid.
function isSearch(trials, factors = 1) {
  return data.searches.length > 0 || data.keys.filter(key => factorOf(key, trials).many).length >= factors;
}

const chosenRuns = () => new Set(data.searches.map(search => data.runs[search.best]));

// Points of trials: a circle where one finished, a cross where it did not, a star where the search chose it.
function points(trials, x, y, shade) {
  const best = chosenRuns(), line = {width: 1, color: styleOf(shade ? "--ink" : "--paper")};
  const trace = (name, isOne, look, shades) => {
    const own = trials.filter(isOne), shaded = shades ? {color: own.map(shades), coloraxis: "coloraxis"} : {};
    return {name, mode: "markers", marker: {...look, ...shaded, line}, x: own.map(x), y: own.map(y),
            text: own.map(trial => plain(trial.text)), hovertemplate: "%{text}<extra></extra>"};
  };
  return [
    trace("finished", ({run}) => run.status === "finished" && !best.has(run), {symbol: "circle", size: 8, color: colour(0)}, shade),
    trace("did not finish", ({run}) => run.status !== "finished", {symbol: "x", size: 8, color: colour(7)}),
    trace("chosen by the search", ({run}) => run.status === "finished" && best.has(run), {symbol: "star", size: 15, color: colour(1)}, shade),
  ].filter(one => one.x.length);
}

// The metric over something; trials without a number stand on the lower edge.
function metricChart(title, trials, at, axis, more = []) {
  const known = trials.filter(trial => trial.value !== null), none = trials.filter(trial => trial.value === null);
  const edge = points(none, at, () => .03).map(trace => ({...trace, name: "no number", yaxis: "y2"}));
  const [low, high] = extent(known.map(trial => trial.value)), scale = isWide(low, high) ? logAxis(Math.log10(high / low)) : {};
  return {
    title,
    traces: [...more, ...points(known, at, trial => trial.value), ...edge],
    layout: {xaxis: axis, yaxis: {title: {text: plain(data.metric)}, ...scale}, yaxis2: {overlaying: "y", range: [0, 1], visible: false}},
  };
}

view("history", "History of the search", () => {
  const trials = trialsOf(data.metric), every = [...data.runs.keys()], better = data.direction === "min" ? Math.min : Math.max;
  const searches = data.searches.length ? data.searches : isSearch(trials, 2) ? [{runs: every}] : [];
  if (!searches.length || !data.direction) return null;
  const chart = ({runs, trial}) => {
    const members = new Set(runs.map(place => data.runs[place])), own = trials.filter(one => members.has(one.run)), x = [], y = [];
    own.forEach(({counts, value}, place) => { if (counts) { x.push(place); y.push(better(value, y.at(-1) ?? value)); } });
    if (x.length) { x.push(own.length - 1); y.push(y.at(-1)); }
    const best = {name: "best so far", mode: "lines", x, y, line: {shape: "hv", color: colour(1)}, hoverinfo: "skip"};
    const choice = trial === undefined || !own.some(one => chosenRuns().has(one.run)) ? "" : `; ★ trial ${trial}, which the search chose`;
    const title = counted(own.map(one => one.run.status)).join(", ") + choice;
    return metricChart(title, own, one => own.indexOf(one), {title: {text: "run, in the order of their folders"}}, [best]);
  };
  return {charts: searches.map(chart), below: [
    "A run that did not finish stands at the best that it had reached.",
    "A trial that repeats the choices of another ran no job, and has no point.",
  ]};
});

view("slices", "Each factor by itself", () => {
  const trials = trialsOf(data.metric), keys = factorKeys().slice(0, MOST_FACTORS);
  if (!data.metric || !keys.length || !(isSearch(trials) || keys.length === 1)) return null;
  const chart = key => {
    const factor = factorOf(key, trials), {at, axis} = axisOf(factor, factor.numeric), {title, traces, layout} = metricChart(key, trials, at, axis);
    return {title, traces, layout: {...layout, height: 260, showlegend: false}};
  };
  return {charts: keys.map(chart), below: [
    "One point per run. Its other choices vary, too, so that runs of one value differ by more than chance. × did not finish.",
    data.searches.length && "★ was chosen by the search.",
  ]};
});

// --- parallel coordinates, as lines of an ordinary chart: plotly's own need unsafe-eval -------------------------------
// How high a trial stands on the axis of a factor or the metric, from 0 to 1, and what stands beside it.
function scaleOf(key, numbers, log, value) {
  const [way, back] = log ? [Math.log10, height => 10 ** height] : [Number, Number], [low, high] = extent(numbers.map(way));
  const at = number => (way(number) - low) / (high - low || 1), even = evenlySpaced(5, 5).map(place => back(low + (high - low) * place / 4));
  const heights = numbers.map(at).sort((one, other) => one - other), apart = heights.every((height, place) => !place || height - heights[place - 1] > .05);
  const ticks = apart ? numbers : numbers.every(Number.isInteger) ? even.map(Math.round) : even;
  return {key, height: trial => value(trial) === null ? null : at(value(trial)), ticks: ticks.map(one => [at(one), short(one, log ? 2 : 3)])};
}

function verticalOf(key, trials) {
  const {numeric, log, levels} = factorOf(key, trials), at = place => place / (levels.length - 1 || 1);
  return numeric ? scaleOf(key, levels.map(Number), log, trial => +trial.values[key])
    : {key, height: trial => at(levels.indexOf(trial.values[key])), ticks: levels.map((level, place) => [at(place), cut(level || "–", 18)])};
}

view("parallel", "Parallel coordinates", () => {
  const sign = data.direction === "min" ? 1 : -1, trials = trialsOf(data.metric), done = trials.filter(trial => trial.counts);
  const ranked = done.sort((one, other) => sign * (one.value - other.value)), values = ranked.map(trial => trial.value);
  if (!isSearch(trials) || !ranked.length || data.keys.length < 2 || !data.direction) return null;
  const factors = factorKeys().slice(0, MOST_FACTORS - 1).map(key => verticalOf(key, trials));
  const known = trials.map(trial => trial.value).filter(value => value !== null), metric = scaleOf(data.metric, known, isWide(...extent(values)), one => one.value);
  const axes = [...factors, metric], best = data.searches.length ? chosenRuns() : new Set([ranked[0].run]);
  const line = trial => {
    const isBest = best.has(trial.run), rank = ranked.indexOf(trial), strength = rank < 0 ? .5 : .15 + .6 * (1 - rank / ranked.length);
    const style = rank < 0 ? {color: colour(7), dash: "dot", width: 1.5} : {color: colour(isBest ? 1 : 0), width: isBest ? 3 : 1.5};
    return {x: [...axes.keys()], y: axes.map(axis => axis.height(trial)), line: style, opacity: isBest ? 1 : strength,
            mode: "lines", text: axes.map(() => plain(trial.text)), hovertemplate: "%{text}<extra></extra>"};
  };
  const shared = {showarrow: false, xanchor: "left", xshift: 3, bgcolor: styleOf("--paper"), opacity: .85, font: {size: 11}};
  const annotations = axes.flatMap(({ticks}, x) => ticks.map(([y, text]) => ({...shared, x, y, text: plain(text)})));
  const xaxis = {tickvals: [...axes.keys()], ticktext: axes.map(axis => plain(axis.key).replace(/[. ]/g, "$&<br>")), range: [-.1, axes.length - .5], gridcolor: styleOf("--ink")};
  const order = [...trials.filter(trial => !trial.counts), ...ranked.toReversed()];  // the best on top
  return {
    charts: [{title: `The best: ${ranked[0].text}`, traces: order.map(line),
              layout: {xaxis, yaxis: {visible: false, range: [-.05, 1.05]}, annotations, showlegend: false, hovermode: "closest", height: 380}}],
    below: ["One line per run, the stronger the better its rank, dotted where it did not finish;",
            `orange: ${data.searches.length ? "what the search chose" : "the best"}. Point at where a line meets an axis to read it.`],
  };
});
