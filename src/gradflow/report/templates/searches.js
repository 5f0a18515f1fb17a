"use strict";
// How a search went, trial by trial, and what came out between the values that it tried.

function trivialText() {
  const name = data.metric.replace(/ best$/, ""), scores = data.runs.filter(run => name in run.trivial).map(run => run.trivial[name]);
  return scores.length ? ` The trivial answer has ${name} ${short(mean(scores), 4)}.` : "";
}

// Whether it was a search: its file says so, or so many factors have numbers that were not laid on a grid.
function isSearch(trials, factors = 1) {
  return data.searches.length > 0 || data.keys.filter(key => factorOf(key, trials).many).length >= factors;
}

const chosenRuns = () => new Set(data.searches.map(search => data.runs[search.best]));

// An axis of a factor that is a number; few values are its ticks.
function numberAxis({key, levels, log}) {
  const few = levels.length <= BINS ? {tickvals: levels.map(Number), ticktext: levels} : {};
  return {title: {text: plain(key)}, type: log ? "log" : "linear", exponentformat: "power", ...few};
}

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
  const type = isWide(...extent(known.map(trial => trial.value))) ? "log" : "linear";
  return {
    title,
    traces: [...more, ...points(known, at, trial => trial.value), ...edge],
    layout: {xaxis: axis, yaxis: {title: {text: plain(data.metric)}, type}, yaxis2: {overlaying: "y", range: [0, 1], visible: false}},
  };
}

view("history", "History of the search", body => {
  const trials = trialsOf(data.metric), every = [...data.runs.keys()], better = data.direction === "min" ? Math.min : Math.max;
  const searches = data.searches.length ? data.searches : isSearch(trials, 2) ? [{runs: every}] : [];
  if (!searches.length || !data.direction) return false;
  body.replaceChildren();
  charts(body, searches.map(({runs, trial}) => {
    const members = new Set(runs.map(place => data.runs[place])), own = trials.filter(one => members.has(one.run)), x = [], y = [];
    own.forEach(({counts, value}, place) => { if (counts) { x.push(place); y.push(better(value, y.at(-1) ?? value)); } });
    if (x.length) { x.push(own.length - 1); y.push(y.at(-1)); }
    const best = {name: "best so far", mode: "lines", x, y, line: {shape: "hv", color: colour(1)}, hoverinfo: "skip"};
    const choice = trial === undefined ? "" : `; ★ trial ${trial}, which the search chose`;
    const place = new Map(own.map((one, place) => [one, place])), axis = {title: {text: "run, in the order of their folders"}};
    return metricChart(counted(own.map(one => one.run.status)).join(", ") + choice, own, one => place.get(one), axis, [best]);
  }));
  body.append(element("p", {class: "soft"}, "A run that did not finish stands at the best that it had reached. " +
    `A trial that repeats the choices of another ran no job, and has no point.${trivialText()}`));
});
