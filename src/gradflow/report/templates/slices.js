"use strict";
// What came out of each value of each factor: one panel a factor, and one line a run through all of them.
const MOST_FACTORS = 12, TICKS = 5;

view("slices", "Each factor by itself", body => {
  const trials = trialsOf(data.metric), keys = factorKeys().slice(0, MOST_FACTORS);
  if (!data.metric || !keys.length || !(isSearch(trials) || keys.length === 1)) return false;
  body.replaceChildren();
  charts(body, keys.map(key => {
    const factor = factorOf(key, trials), levels = levelAxis(factor);
    const [at, axis] = factor.numeric ? [trial => +trial.values[key], numberAxis(factor)] : [levels.at, levels.axis];
    const {title, traces, layout} = metricChart(key, trials, at, axis);
    return {title, traces, layout: {...layout, height: 260, showlegend: false}};
  }));
  body.append(element("p", {class: "soft"}, "A point a run, whatever its other choices, so that runs of one value differ by " +
    `more than chance. × did not finish${data.searches.length ? "; ★ was chosen by the search" : ""}.${trivialText()}`));
});

// --- parallel coordinates: plotly's need unsafe-eval ------------------------------------------------------------------
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A scale of an axis: how high a value stands, from 0 to 1, and what stands beside it; few values all do.
function scaleOf(numbers, log) {
  const [way, back] = log ? [Math.log10, value => 10 ** value] : [Number, Number], [low, high] = extent(numbers.map(way));
  const at = value => (way(value) - low) / (high - low || 1);
  const even = Array.from({length: TICKS}, (_, place) => back(low + (high - low) * place / (TICKS - 1)));
  const ticks = numbers.length <= TICKS ? numbers : numbers.every(Number.isInteger) ? even.map(Math.round) : even;
  return {at, ticks: ticks.map(value => [at(value), short(value, log ? 2 : 3)])};
}

function verticals(trials) {
  const factors = factorKeys().slice(0, MOST_FACTORS - 1).map(key => {
    const {numeric, log, levels} = factorOf(key, trials), at = place => place / (levels.length - 1 || 1);
    return numeric ? {key, value: trial => +trial.values[key], ...scaleOf(levels.map(Number), log)}
      : {key, value: trial => levels.indexOf(trial.values[key]), at, ticks: levels.map((level, place) => [at(place), level || "–"])};
  });
  const values = trials.map(trial => trial.value).filter(value => value !== null);
  return [...factors, {key: data.metric, value: trial => trial.value, ...scaleOf(values, isWide(...extent(values)))}];
}

view("parallel", "Parallel coordinates", body => {
  const sign = data.direction === "min" ? 1 : -1, trials = trialsOf(data.metric);
  const ranked = trials.filter(trial => trial.counts).sort((one, other) => sign * (one.value - other.value));
  if (!isSearch(trials) || !ranked.length || data.keys.length < 2 || !data.direction) return false;
  const axes = verticals(trials), top = 34, bottom = 300, width = Math.max(body.clientWidth - 2, 110 * axes.length);
  const x = place => 60 + (width - 150) * place / (axes.length - 1), y = height => bottom - (bottom - top) * height;
  const best = data.searches.length ? chosenRuns() : new Set([ranked[0].run]);
  const line = trial => {
    const d = axes.map((axis, place) => [place, axis.value(trial), axis]).filter(([, value]) => value !== null)
      .map(([place, value, axis], turn) => `${turn ? "L" : "M"}${x(place).toFixed(1)} ${y(axis.at(value)).toFixed(1)}`).join("");
    const rank = ranked.indexOf(trial), strength = Math.round(100 * (1 - rank / ranked.length));
    const shade = best.has(trial.run) ? `stroke: ${colour(1)}; stroke-width: 3`
      : `stroke: color-mix(in srgb, var(--link) ${strength}%, var(--line))`;
    const look = rank < 0 ? "stroke: var(--soft); stroke-dasharray: 3 4; opacity: .6" : shade;
    return svg("g", {}, svg("title", {}, trial.text), svg("path", {d, class: "area"}), svg("path", {d, style: look}));
  };
  const axis = ({key, ticks}, place) => svg("g", {},
    svg("line", {x1: x(place), x2: x(place), y1: top, y2: bottom, stroke: "currentColor"}),
    svg("text", {x: x(place), y: 14, "text-anchor": "middle", "font-weight": 600}, key),
    ...ticks.map(([at, text]) => svg("text", {x: x(place) + 5, y: y(at) + 4}, text)));
  const label = `${trials.length} runs as lines through ${axes.map(one => one.key).join(", ")}. The best: ${ranked[0].text}`;
  const order = [...trials.filter(trial => !trial.counts), ...ranked.toReversed()];  // the best on top
  const picture = {class: "parallel", role: "img", "aria-label": label, width, height: bottom + 16};
  body.replaceChildren(element("div", {class: "scroll", tabindex: "0"}, svg("svg", picture, ...order.map(line), ...axes.map(axis))));
  body.append(element("p", {class: "soft"}, "One line a run, the stronger the better its rank, dashed where it did not finish; " +
    `orange: ${data.searches.length ? "what the search chose" : "the best"}. Point at a line to read it.`));
});
