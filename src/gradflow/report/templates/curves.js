"use strict";
// Training curves: what the shown runs logged, a panel a name. A configuration has its colour and dash in all panels.
const MOST_CONFIGURATIONS = 16, MOST_LINES = 64;  // that are drawn at once
const UNITS = {  // of the x axis: its title, and how many of them a step takes, where a run says so
  step: ["optimizer step", () => 1],
  epoch: ["epoch", run => run.steps_per_epoch && 1 / run.steps_per_epoch],
  time: ["seconds, at each run's mean pace", run => run.steps && run.seconds / run.steps],
};
const SMOOTHING = [["", "none"], ...[1, 2, 5, 10, 20].map(part => [String(part), `over ${part} % of x`])];  // an exponential mean
// Drawn by default: losses, scores, and, unless they stay where they are, what steers training and its gradient.
const RESULTS = [/^loss\/train$/, /^loss\/val$/, /\/val$/, /\/train$/];
const CAUSES = [/^lr\b/, /^grad\/norm$/, /^grad\/clip_coef$/, /^update\/ratio_median$/];
const logged = (run, name) => Object.hasOwn(run.curves, name);  // names come from a file: "constructor" may be one

view("training", "Training curves", body => {
  const all = shownConfigurations().map(one => ({...one, runs: one.runs.filter(run => Object.keys(run.curves).length)}))
    .filter(one => one.runs.length);
  if (!all.length) return false;
  const half = MOST_CONFIGURATIONS / 2, few = all.length > 2 * half ? [...all.slice(0, half), ...all.slice(-half)] : all;
  const runs = few.flatMap(one => one.runs), names = curveNames(runs), styles = stylesOf(few), off = listed("off");
  const units = Object.keys(UNITS).filter(unit => runs.every(run => UNITS[unit][1](run) > 0));
  const unit = units.includes(chosen.xunit) ? chosen.xunit : "step", shown = names.filter(name => name.drawn).map(({name}) => name);
  const each = chosen.seeds === "single" ? Math.max(Math.floor(MOST_LINES / few.length), 1) : 0;
  const drawn = few.map((one, place) => ({...one, style: styles[place]})).filter(one => !off.has(one.label));
  const scaled = (run, name) => [run.curves[name][0].map(step => inUnit(unit, run, step)), run.curves[name][1]];
  const ends = runs.map(run => shown.filter(name => logged(run, name)).map(name => scaled(run, name)[0].at(-1)));
  const end = extentOf(ends.flat())[1];
  const holder = body.querySelector(".panels") ?? element("div", {class: "panels"}), open = body.querySelector("details")?.open;
  const summary = `All that was logged: ${shown.length} of ${names.length} curves are drawn`;
  body.replaceChildren(curveControls(units, few), ...(few.length > 1 ? [legend(few, styles, off)] : []), holder,
    fold("curves", summary, names, open ?? false), element("p", {class: "soft"}, curveNotes(all, few, each).join(" ")));
  charts(holder, shown.map(name => curvePanel(name, drawn, {scaled, unit, end, each})));
});

// A value that was logged at step 0 belongs to the first step's end, where time is told.
const inUnit = (unit, run, step) => (unit === "step" ? step : step + 1) * UNITS[unit][1](run);

function curveControls(units, configurations) {
  const several = configurations.some(one => one.runs.length > 1), keys = data.keys.filter(key => key !== "rank");
  return element("p", {class: "controls"},
    menu("x", "xunit", units), " ", menu("y", "yscale", [["", "automatic"], "linear", "log"]), " ",
    menu("smoothing", "smoothing", SMOOTHING), " ",
    ...(several ? [menu("runs", "seeds", [["", "mean ± sd"], ["single", "single runs"]]), " "] : []),
    ...(keys.length ? ["hue", "dash"].flatMap(part => [menu(part, part, [["", "automatic"], "rank", ...keys]), " "]) : []));
}

// In words, what is not drawn.
function curveNotes(all, few, each) {
  const half = few.length / 2;
  const which = data.metric ? `the best ${half} and the worst ${half} by ${data.metric}` : `the first and the last ${half}`;
  return [
    ...(few.length < all.length ? [`Of ${all.length} configurations ${which} are drawn; a filter finds the others.`] : []),
    ...(each && few.some(one => one.runs.length > each) ? [`Of each configuration the first ${each} runs are drawn.`] : []),
    ...(data.points ? [`Of longer curves ${data.points} points, evenly spaced, are in the page; peaks between them are not.`] : []),
  ];
}

function curveNames(runs) {
  const turned = listed("curves"), order = [...RESULTS, ...CAUSES];
  const place = name => [...order, /^/].findIndex(pattern => pattern.test(name));  // the last takes all others
  const moves = name => runs.some(run => logged(run, name) && run.curves[name][1].some(value => value !== run.curves[name][1][0]));
  const usual = name => place(name) < RESULTS.length || (place(name) < order.length && moves(name));
  const names = [...new Set(runs.flatMap(run => Object.keys(run.curves)))].sort((one, other) => place(one) - place(other));
  return names.map(name => ({name, drawn: usual(name) !== turned.has(name)}));
}

function curvePanel(name, configurations, {scaled, unit, end, each}) {
  const own = configurations.map(one => ({...one, runs: one.runs.filter(run => logged(run, name))})).filter(one => one.runs.length);
  const groups = each ? own.flatMap(one => one.runs.slice(0, each).map(run => ({...one, runs: [run]}))) : own;
  const width = (Number(chosen.smoothing) || 0) / 100 * end;
  const lines = groups.map(one => {
    const curves = one.runs.map(run => scaled(run, name));
    return {...one, raw: averaged(curves), ...averaged(curves.map(curve => smoothed(curve, width)))};
  });
  const values = lines.flatMap(({mean, raw}) => [...mean, ...raw.mean]), positive = values.filter(value => value > 0);
  const edges = lines.flatMap(({mean, sd}) => mean.flatMap((middle, place) => [middle - sd[place], middle + sd[place]]));
  const trivial = own.flatMap(one => one.runs.map(run => run.trivial[name])).filter(Number.isFinite);
  const apart = [...new Map(trivial.map(value => [value.toPrecision(2), value])).values()];  // each seed has nearly the same
  const log = chosen.yscale ? chosen.yscale === "log" : wantsLog(name, values), yaxis = yAxis(values, edges, apart, log);
  return {
    title: name,
    traces: lines.flatMap(line => curveTraces(line, unit, width > 0, log ? extentOf(positive)[0] : -Infinity)),
    layout: {
      showlegend: false, uirevision: `${unit} ${log}`,
      xaxis: {title: {text: UNITS[unit][0]}, range: [0, 1.02 * end || 1]},
      yaxis: {exponentformat: "power", ...yaxis}, ...trivialLines(apart, yaxis),
    },
  };
}

// The line of a configuration or a run, behind it its band, and faint what was smoothed.
function curveTraces({label, runs, style, raw, x, mean, sd, counts}, unit, faint, bottom) {
  const alone = x.length === 1, banded = sd.some(value => value > 0), [run] = runs, line = {...style, width: 1.8};
  const who = runs.length > 1 ? `${label} (%{customdata[1]} runs)` : `${label} · ${run.name}, seed ${run.seed}, ${run.status}`;
  const [low, high] = [-1, 1].map(way => mean.map((middle, place) => Math.max(middle + way * sd[place], bottom)));
  const filled = {fill: "toself", fillcolor: style.color, opacity: .16, line: {width: 0}};
  const band = {x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()], ...filled};
  const behind = {mode: "lines", hoverinfo: "skip"}, name = plain(label);
  return [
    ...(banded && !alone ? [{...behind, ...band, name, meta: "band"}] : []),
    ...(faint && !alone ? [{...behind, x: raw.x, y: raw.mean, name, opacity: .3, line: {...style, width: 1}, meta: "raw"}] : []),
    {
      x, y: mean, name, line, marker: {color: style.color, size: 7}, mode: alone ? "markers" : "lines", meta: "line",
      ...(alone && banded ? {error_y: {type: "data", array: sd, color: style.color}} : {}),
      customdata: sd.map((value, place) => [value, counts[place]]),
      hovertemplate: `%{y:.4~g}${banded ? " ± %{customdata[0]:.2~g}" : ""} at ${unit} %{x}<extra>${plain(who)}</extra>`,
    },
  ];
}
