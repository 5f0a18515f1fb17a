"use strict";
// Factors, which are what varies between runs, and how much each has to do with what came out.
const RATIO = "log₁₀ gradient ratio at the start", LIMIT = 6;  // at which its colours end
const BINS = 5;  // of a number that has a value of its own in most runs
const MOST_CELLS = 12;  // in a row or a column that has room for numbers
const counted = words => [...new Set(words)].map(word => `${words.filter(other => other === word).length} ${word}`);

// The shown runs with the values of their factors and a quantity; a metric counts of runs that finished.
function trialsOf(quantity) {
  const trials = new Map(shownConfigurations().flatMap(({values, label, runs}) => runs.map(run => {
    const value = (quantity === RATIO ? run.ratio.start : run.scores[quantity]) ?? null;
    const text = `${nameOf(run)}, ${run.status}: ${label}${value === null ? "" : `; ${quantity} ${short(value, 5)}`}`;
    return [run, {run, values, value, text, counts: value !== null && (quantity === RATIO || run.status === "finished")}];
  })));
  return data.runs.filter(run => trials.has(run)).map(run => trials.get(run));
}

// The keys of the factors, the most important first.
function factorKeys() {
  const shares = data.importance?.shares ?? data.searches[0]?.importance ?? {};
  return [...data.keys].sort((one, other) => (shares[other] ?? 0) - (shares[one] ?? 0));
}

// The values of a factor in order: numbers by size, and what is empty last.
function levelsOf(key, own) {
  const levels = [...new Set(own.map(one => one.values[key]))], numbers = levels.every(level => isFinite(level));
  return levels.sort((one, other) => (one === "") - (other === "") || (numbers ? one - other : one.localeCompare(other, "en", {numeric: true})));
}

// `many`: a number of a random search.
function factorOf(key, trials) {
  const levels = levelsOf(key, trials), numeric = levels.length > 1 && levels.every(level => level !== "" && isFinite(level));
  const many = numeric && levels.length > Math.max(BINS, Math.min(trials.length / 2, MOST_CELLS));
  return {key, levels, numeric, many, log: numeric && isWide(+levels[0], +levels.at(-1))};
}

// An axis of a factor, and where a trial stands on it: a number where it is, other levels side by side.
function axisOf({key, levels, log}, isNumeric) {
  const title = {text: plain(key)}, few = levels.length <= BINS ? {tickvals: levels.map(Number), ticktext: levels} : {};
  if (isNumeric) return {at: trial => +trial.values[key], axis: {title, ...(log ? logAxis(Math.log10(levels.at(-1) / levels[0])) : {}), ...few}};
  const ticktext = levels.map(level => plain(cut(level || "–", 18))), range = [-.5, levels.length - .5];
  return {at: trial => levels.indexOf(trial.values[key]), axis: {title, tickvals: [...levels.keys()], ticktext, range, showgrid: false}};
}

// Bright is good, and values that hardly differ have hardly different colours. A ratio: red vanishes, blue explodes.
function coloursOf(quantity, values) {
  const axis = text => ({colorbar: {title: {text, side: "right"}, thickness: 12, outlinewidth: 0}});
  if (quantity === RATIO) {
    const ends = {colorscale: "RdBu", reversescale: true, cmin: -LIMIT, cmax: LIMIT};
    return {scaled: value => value, axis: {...axis("vanishes ← → explodes"), ...ends}};
  }
  const [low, high] = extent(values), log = isWide(low, high), scaled = value => log ? Math.log10(value) : value;
  const least = log ? 0 : .1 * Math.max(Math.abs(low), Math.abs(high));
  const missing = Math.max(least - (high - low), 0) / 2 || +(low === high);
  const ends = {cmin: scaled(low) - missing, cmax: scaled(high) + missing, reversescale: data.direction === "min"};
  return {scaled, axis: {...axis((log ? "log₁₀ " : "") + plain(quantity)), ...ends, colorscale: "Viridis"}};
}

// A bar per factor, the largest on top, with a mark at what a factor without effect would show.
function bars(title, unit, shares, chance = {}, rest = {}) {
  const values = {...shares, ...rest}, names = [...Object.keys(shares), ...Object.keys(rest)].reverse(), known = Object.keys(chance);
  const color = names.map(name => name in shares ? colour(0) : styleOf("--line"));
  const mark = {symbol: "line-ns-open", size: 20, color: styleOf("--ink"), line: {width: 2}};
  const y = names.map(plain), x = names.map(name => values[name]);
  const axis = {title: {text: unit}, tickformat: ".0%", rangemode: "tozero"};
  return {
    title,
    traces: [
      {type: "bar", orientation: "h", y, x, texttemplate: "%{x:.0%}", hoverinfo: "skip", marker: {color}},
      {mode: "markers", y: known.map(plain), x: Object.values(chance), marker: mark,
       hovertemplate: "by chance %{x:.0%}<extra></extra>"},
    ],
    layout: {showlegend: false, height: 90 + 30 * names.length, xaxis: axis},
  };
}

view("importance", "Hyperparameter importance", () => {
  const found = data.importance, metric = `${data.direction === "min" ? "log " : ""}${data.metric}`;
  const charts = found ? [bars(
    `Share of the variance of ${metric} between ${found.runs} finished runs that the means of each factor explain (η²). ` +
    "Mark: what a factor without effect would show.",
    "share of the variance", found.shares, found.chance, {interactions: found.interactions, seeds: found.seeds})] : [];
  for (const {importance} of data.searches) if (Object.keys(importance).length) charts.push(bars(
    "Optuna's estimate (PED-ANOVA): what tells the best trials of the search from the rest.", "share of the importance", importance));
  return charts.length ? {charts} : null;
});
