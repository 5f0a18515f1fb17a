"use strict";
// Training curves: what the shown runs logged, a panel a name. A configuration has its colour and dash in all panels.
const MOST_CONFIGURATIONS = 16, MOST_LINES = 64;  // that are drawn at once
const UNITS = {  // of the x axis: its title, and how many of them a step takes, where a run says so
  step: ["optimizer step", () => 1],
  epoch: ["epoch", run => run.steps_per_epoch && 1 / run.steps_per_epoch],
  time: ["seconds, at each run's mean pace", run => run.steps && run.seconds / run.steps],
};
const SMOOTHING = [["", "none"], ...["1", "2", "5", "10", "20"].map(part => [part, `over ${part} % of x`])];  // an exponential mean
const SCALES = [["", "automatic"], "linear", "log"], SEEDS = [["", "mean ± sd"], ["single", "single runs"]];
// Drawn by default: losses and scores, what steers training and its gradient unless it stays where it is, and what
// diagnostics recorded.
const ORDER = [/^loss\/train$/, /^loss\/val$/, /\/val$/, /\/train$/, /^lr\b/, /^grad\/norm$/, /^grad\/clip_coef$/, /^update\/ratio_median$/];
const RESULTS = 4;  // of which come first
const labels = new Map(Object.entries(data.labels));  // of what diagnostics recorded
const logged = (run, name) => Object.hasOwn(run.curves, name);  // names come from a file: "constructor" may be one

view("training", "Training curves", () => {
  const all = shownConfigurations(run => Object.keys(run.curves).length), [few, note] = bestAndWorst(all, MOST_CONFIGURATIONS);
  if (!all.length) return null;
  const runs = few.flatMap(one => one.runs), names = curveNames(runs), styles = stylesOf(few), off = listed("off");
  const units = Object.keys(UNITS).filter(unit => runs.every(run => UNITS[unit][1](run) > 0)), unit = optionOf("xunit", units);
  const shown = names.filter(one => one.drawn).map(({name}) => name);
  const each = optionOf("seeds", ["", "single"]) ? Math.max(Math.floor(MOST_LINES / few.length), 1) : 0;
  const drawn = few.map((one, place) => ({...one, style: styles[place]})).filter(one => !off.has(one.label));
  const scaled = (run, name) => [run.curves[name][0].map(step => inUnit(unit, run, step)), run.curves[name][1]];
  const end = Math.max(...runs.flatMap(run => shown.filter(name => logged(run, name)).map(name => scaled(run, name)[0].at(-1))));
  return {
    above: [curveControls(units, few), legend(few, styles, off),
            fold("curves", `All that was logged: ${shown.length} of ${names.length} curves are drawn`, names)],
    charts: shown.map(name => curvePanel(name, drawn, {scaled, unit, end, each})),
    below: [
      note, few.some(one => one.runs.length > each) && each && `Of each configuration the first ${each} runs are drawn.`,
      data.points && `Of longer curves ${data.points} points, evenly spaced, are in the page; peaks between them are not.`,
    ],
  };
});

// A value that was logged at step 0 belongs to the first step's end, where time is told.
const inUnit = (unit, run, step) => (unit === "step" ? step : step + 1) * UNITS[unit][1](run);

function curveControls(units, configurations) {
  const seeds = configurations.some(one => one.runs.length > 1) ? [menu("runs", "seeds", SEEDS)] : [];
  const parts = data.keys.length ? ["hue", "dash"].map(part => menu(part, part, [["", "automatic"], "rank", ...data.keys])) : [];
  const axes = [menu("x", "xunit", units), menu("y", "yscale", SCALES), menu("smoothing", "smoothing", SMOOTHING)];
  return element("p", {class: "controls"}, ...[...axes, ...seeds, ...parts].flatMap(one => [one, " "]));
}

function curveNames(runs) {
  const turned = listed("curves"), logs = name => runs.filter(run => logged(run, name)).map(run => run.curves[name][1]);
  const moves = name => logs(name).some(([first, ...others]) => others.some(value => value !== first));
  const place = name => labels.has(name) ? ORDER.length : ORDER.findIndex(pattern => pattern.test(name)) >>> 0;  // others last
  const usual = name => place(name) < RESULTS || labels.has(name) || (place(name) < ORDER.length && moves(name));
  const names = [...new Set(runs.flatMap(run => Object.keys(run.curves)))].sort((one, other) => place(one) - place(other));
  return names.map(name => ({name, drawn: usual(name) !== turned.has(name)}));
}

function curvePanel(name, configurations, {scaled, unit, end, each}) {
  const own = configurations.map(one => ({...one, runs: one.runs.filter(run => logged(run, name))})).filter(one => one.runs.length);
  const groups = each ? own.flatMap(one => one.runs.slice(0, each).map(run => ({...one, runs: [run]}))) : own;
  const width = optionOf("smoothing", SMOOTHING.map(([part]) => part)) / 100 * end;
  const lines = groups.map(one => {
    const curves = one.runs.map(run => scaled(run, name));
    return {...one, raw: averaged(curves), ...averaged(curves.map(curve => smoothed(curve, width)))};
  });
  const values = lines.flatMap(({mean, raw}) => [...mean, ...raw.mean]), positive = values.filter(value => value > 0);
  const edges = lines.flatMap(({mean, sd}) => mean.flatMap((middle, place) => [middle - sd[place], middle + sd[place]]));
  const trivial = own.flatMap(one => one.runs.map(run => run.trivial[name])).filter(Number.isFinite);
  const apart = [...new Map(trivial.map(value => [value.toPrecision(2), value])).values()];  // each seed has nearly the same
  const scale = optionOf("yscale", ["", "linear", "log"]), log = scale ? scale === "log" : wantsLog(name, values);
  const yaxis = yAxis(values, edges, apart, log), xaxis = {title: {text: UNITS[unit][0]}, range: [0, 1.02 * end || 1]};
  return {
    title: name,
    traces: lines.flatMap(line => curveTraces(line, unit, width > 0, log ? extent(positive)[0] : -Infinity)),
    layout: {
      showlegend: false, uirevision: `${name} ${unit} ${log}`, ...trivialLines(apart, yaxis), xaxis,
      yaxis: {...yaxis, title: {text: plain(labels.get(name) ?? "")}},
    },
  };
}

// The line of a configuration or a run, behind it its band, and faint what was smoothed.
function curveTraces({label, runs, style, raw, x, mean, sd, counts}, unit, faint, bottom) {
  const alone = x.length === 1, banded = sd.some(value => value > 0), [run] = runs, line = {...style, width: 1.8};
  const who = runs.length > 1 ? `${label} (%{customdata[1]} runs)` : `${label} · ${nameOf(run)}, seed ${run.seed}, ${run.status}`;
  const [low, high] = [-1, 1].map(way => mean.map((middle, place) => Math.max(middle + way * sd[place], bottom)));
  const name = plain(label || run.name), behind = {mode: "lines", hoverinfo: "skip", name, showlegend: false};
  return [
    ...(banded && !alone ? [{...bandOf(x, low, high, style.color), name}] : []),
    ...(faint && !alone ? [{...behind, x: raw.x, y: raw.mean, opacity: .3, line: {...style, width: 1}, meta: "raw"}] : []),
    {
      x, y: mean, name, line, marker: {color: style.color, size: 7}, mode: alone ? "markers" : "lines", meta: "line",
      ...(alone && banded ? {error_y: {type: "data", array: sd, color: style.color}} : {}),
      customdata: sd.map((value, place) => [value, counts[place]]),
      hovertemplate: `%{y:.4~g}${banded ? " ± %{customdata[0]:.2~g}" : ""} at ${unit} %{x}<extra>${plain(who)}</extra>`,
    },
  ];
}

// The band between two lines.
function bandOf(x, low, high, color) {
  const filled = {fill: "toself", fillcolor: color, opacity: .16, line: {width: 0}};
  return {x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()], mode: "lines", hoverinfo: "skip", showlegend: false, meta: "band", ...filled};
}

// Whether values are better read on a logarithmic axis; a rate or a learning rate never is: it may end in 0.
function wantsLog(name, values) {
  const [low, high] = extent(values);
  return isWide(low, high) && !/^lr\b/.test(name) && (high > 1 || /^(loss|grad|update)\//.test(name));
}

// The y axis of values and of the edges of bands, which may take as much room again. It spans a tenth of the values at
// least, for a loss that does not move should look so, and has the trivial answers that are near in view.
function yAxis(values, edges, trivial, log) {
  const scale = log ? Math.log10 : value => value, type = log ? logAxis : () => ({type: "linear"});
  const usable = list => list.filter(value => Number.isFinite(value) && (!log || value > 0)).map(scale);
  let [low, high] = extent(usable(values));
  if (!(low <= high)) return type(9);
  const size = log ? 1 : Math.max(Math.abs(low), Math.abs(high)) || 1, span = Math.max(high - low, (log ? .2 : .1) * size);
  const near = usable(trivial).filter(value => value > low - Math.max(span, size / 4) && value < high + Math.max(span, size / 4));
  const bands = usable(edges).map(value => Math.min(Math.max(value, low - span), high + span)), middle = (low + high) / 2;
  [low, high] = extent([middle - span / 2, middle + span / 2, ...near, ...bands]);
  return {...type(high - low), range: [low - .04 * (high - low), high + .04 * (high - low)]};
}

// What the best answer that ignores the input scores: a line where that is in view, and above the chart, where no curve
// is, its number.
function trivialLines(values, {type, range}) {
  const ink = styleOf("--soft"), place = value => ((type === "log" ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]);
  const seen = (range ? values : []).filter(value => place(value) >= 0 && place(value) <= 1), text = `┈ trivial answer ${seen.map(value => short(value, 4)).join(", ")}`;
  const corner = {xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false};
  return {
    shapes: seen.map(value => ({type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: {color: ink, dash: "dot", width: 1.2}})),
    annotations: seen.length ? [{...corner, text, font: {size: 11, color: ink}}] : [],
  };
}
