"use strict";
// What every view builds on: the data of the page, what the reader has chosen, and how a section is drawn.
const data = JSON.parse(document.getElementById("data").textContent);

// --- what is chosen: kept in the address, so that a link shows the same -----------------------------------------------
const chosen = {};
const watchers = [];
const changed = () => watchers.forEach(watcher => watcher());
const nameOf = run => /^\d+$/.test(run.name) ? `run ${run.name}` : run.name;  // jobs of a sweep are numbers
const nameInAddress = run => run.name.replace(/[%,]/g, encodeURIComponent);
function readAddress() {
  for (const key of Object.keys(chosen)) delete chosen[key];
  const both = data.runs.length === 2 ? data.runs.map(nameInAddress).join() : "";  // a page of two runs compares them
  Object.assign(chosen, {filter: "", picked: both}, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
}
function keep(changes) {
  Object.assign(chosen, changes);
  history.replaceState(null, "", "#" + new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== "")));
}
function choose(changes) {
  keep(changes);
  changed();
}
readAddress();
addEventListener("hashchange", () => { readAddress(); changed(); });

// What is chosen under a key, if there is such an option, else the first: anything may stand in an address.
const optionOf = (key, options) => options.includes(chosen[key]) ? chosen[key] : options[0];

// The runs that pass the filter: every word is in the name, the status, the seed or a choice of a run.
function filteredRuns() {
  const words = chosen.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = run => [run.name, run.status, `seed=${run.seed}`, ...Object.entries(run.values).map(pair => pair.join("="))].join(" ").toLowerCase();
  return words.length ? data.runs.filter(run => { const own = text(run); return words.every(word => own.includes(word)); }) : data.runs;
}

// The runs that were picked, whatever the filter hides; two or more are compared.
function pickedRuns() {
  const names = new Set(chosen.picked.split(","));
  return data.runs.filter(run => names.has(nameInAddress(run)));
}
const pick = own => choose({picked: own.map(nameInAddress).join()});

// Configurations with their shown runs, the best first: of the picked runs, if there are two or more, else of those that
// pass the filter.
function shownConfigurations(has = () => true) {
  const picked = pickedRuns(), shown = new Set((picked.length > 1 ? picked : filteredRuns()).filter(has));
  return data.configurations.map((one, rank) => ({...one, rank, runs: one.runs.map(place => data.runs[place]).filter(run => shown.has(run))}))
    .filter(one => one.runs.length);
}

// At most so many of them, the best and the worst, with a sentence on the others.
function bestAndWorst(all, most) {
  if (all.length <= most) return [all, ""];
  const which = data.metric ? `the best ${most / 2} and the worst ${most / 2} by ${data.metric}` : `the first and the last ${most / 2}`;
  const own = [...all.slice(0, most / 2), ...all.slice(-most / 2)];
  return [own, `Of ${all.length} configurations ${which} are drawn; a filter finds the others.`];
}

// --- elements ---------------------------------------------------------------------------------------------------------
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in made && typeof value !== "string" ? made[name] = value : made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A labelled menu whose choice is kept under a key; options are texts, or pairs of value and text.
function menu(label, key, options) {
  const entries = options.map(option => [option].flat()), own = entries.map(([value]) => value);
  const select = element("select", {"aria-label": label, onchange: () => choose({[key]: select.value})},
    ...entries.map(([value, text = value]) => element("option", {value}, text)));
  select.value = optionOf(key, own);
  return element("label", {}, `${label} `, select);
}

// A slider over recorded steps, at the last one unless the address says another, and its step; while it moves, only
// charts are drawn again.
function stepSlider(label, key, steps, redraw) {
  const place = steps.findLastIndex(step => !chosen[key] || !(step > Number(chosen[key]))), last = steps.length - 1;
  const output = element("output"), input = element("input", {type: "range", min: "0", max: String(last), "aria-label": label,
    oninput: () => { chosen[key] = +input.value === last ? "" : String(steps[input.value]); say(); redraw(); }, onchange: () => keep({})});
  const say = () => input.setAttribute("aria-valuetext", output.textContent = `step ${steps[input.value]}`);
  input.value = String(Math.max(place, 0));
  say();
  return [last ? element("label", {class: "slider"}, `${label} `, input, " ", output) : "", steps[input.value]];
}

// --- views: sections that are drawn one after the other, those in sight first, so that the page answers in between -----
const views = [];
let due = [];
// `show(redraw)` returns what a section shows: charts, what stands above them, and sentences below; or nothing where there
// is nothing to show. It is asked again after each choice, or for its charts alone when `redraw` is called.
function view(name, title, show) {
  const above = element("div", {class: "above"}), grid = element("div", {class: "charts"}), below = element("p", {class: "soft"});
  const section = element("section", {id: name, hidden: true}, element("h2", {}, title), above, grid, below);
  document.getElementById("views").append(section);
  const redraw = () => drawCharts(grid, show(redraw).charts);
  const draw = () => {
    const shown = show(redraw), focused = above.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    section.hidden = !shown;
    if (!shown) return;
    above.replaceChildren(...shown.above ?? []);
    if (focused) above.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();  // a keyboard stays where it was
    below.textContent = (shown.below ?? []).filter(Boolean).join(" ");
    drawCharts(grid, shown.charts ?? []);
  };
  views.push({section, draw});
}
const inSight = ({section}) => { const {top, bottom} = section.getBoundingClientRect(); return bottom > 0 && top < innerHeight; };
const drawNext = () => due.splice(Math.max(due.findIndex(inSight), 0), 1)[0]?.draw();
function drawRest() {
  drawNext();
  if (due.length) setTimeout(drawRest);
}
function drawViews() {
  due = [...views];
  while (due.some(inSight)) drawNext();
  setTimeout(drawRest);
}
watchers.push(drawViews);
addEventListener("DOMContentLoaded", drawViews);  // when the scripts below are read, too

// On paper four charts stand in a row, and one or two of a section take all of it; the browser asks nobody how wide they
// are then. They are flat, for sixteen runs to fit on two sheets.
const HEIGHT = 320, FLAT = 200, WIDTH = 313, WIDE = {1: 1288, 2: 638};
const onEach = changes => document.querySelectorAll(".js-plotly-plot").forEach(chart => Plotly.relayout(chart, changes(chart)));
const inRow = chart => chart.closest(".charts").children.length;
addEventListener("beforeprint", () => {
  while (due.length) drawNext();
  onEach(chart => ({width: WIDE[inRow(chart)] ?? WIDTH, height: chart.layout.height === HEIGHT ? FLAT : chart.layout.height}));
});
addEventListener("afterprint", () =>
  onEach(chart => ({width: null, autosize: true, height: chart.layout.height === FLAT ? HEIGHT : chart.layout.height})));

// --- charts -----------------------------------------------------------------------------------------------------------
const darkness = matchMedia("(prefers-color-scheme: dark)");
darkness.addEventListener("change", changed);
const COLOURS = {  // that the colour-blind can tell apart (Okabe & Ito)
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a", "#7f7f7f"],
  dark: ["#56B4E9", "#E69F00", "#2fbf97", "#CC79A7", "#F0803C", "#F0E442", "#ffffff", "#9a9a9a"],
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const colour = place => { const own = COLOURS[darkness.matches ? "dark" : "light"]; return own[place % own.length]; };
const styleOf = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");  // plotly reads some tags in texts

// A chart as a picture that stands alone: with its title, and the names of lines that a legend of the page has here.
function pictureOf(chart) {
  const {data, layout, clientWidth: width, clientHeight} = chart, title = {text: plain(chart.previousSibling.textContent), font: {size: 14}};
  const named = layout.showlegend === false ? data.filter(trace => trace.name && trace.showlegend !== false).length : 0;
  const legend = {orientation: "h", y: -80 / clientHeight, yanchor: "top"}, more = named ? {showlegend: true, legend} : {};
  return {data, layout: {...layout, title, margin: {...layout.margin, t: 44}, width, height: clientHeight + 18 * named, ...more}};
}
const saving = (format, scale, icon) => ({
  name: format, title: `Download as ${format.toUpperCase()}`, icon,
  click: chart => Plotly.downloadImage(pictureOf(chart), {
    format, scale, filename: `${chart.closest("section").id}-${chart.previousSibling.textContent}`.replace(/\W+/g, "-"),
  }),
});
const CONFIG = {  // by default there is a button that sends the chart to a server
  responsive: true, displaylogo: false, modeBarButtonsToAdd: [saving("svg", 1, Plotly.Icons.camera), saving("png", 2, Plotly.Icons.disk)],
  modeBarButtonsToRemove: ["toImage", "sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
};

// Fills a grid with charts, each {title, traces, layout}. They are changed in place, so that what a reader has zoomed into
// stays while `uirevision` does, by default the title.
function drawCharts(grid, wanted) {
  const finger = matchMedia("(pointer: coarse)").matches;  // which scrolls the page: a chart that it zoomed would hold it
  const axis = {gridcolor: styleOf("--line"), linecolor: styleOf("--line"), zeroline: false, automargin: true, exponentformat: "power"};
  while (grid.children.length > wanted.length) grid.lastChild.remove();
  while (grid.children.length < wanted.length) grid.append(element("figure", {}, element("figcaption"), element("div")));
  wanted.forEach(({title, traces, layout}, place) => {
    const [caption, chart] = grid.children[place].children;
    const full = {
      font: {family: "system-ui, sans-serif", size: 12, color: styleOf("--ink")}, paper_bgcolor: styleOf("--paper"), plot_bgcolor: styleOf("--paper"),
      margin: {l: 48, r: 8, t: 28, b: 40}, hoverlabel: {namelength: -1}, legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom"}, height: HEIGHT,
      modebar: {bgcolor: "rgba(0,0,0,0)", color: styleOf("--soft"), activecolor: styleOf("--ink")}, uirevision: title, ...(finger ? {dragmode: false} : {}), ...layout,
    };
    for (const key of ["xaxis", "yaxis"]) full[key] = {...axis, ...layout[key]};
    caption.textContent = title;
    Plotly.react(chart, traces, full, CONFIG);
  });
}

// A logarithmic axis over so many powers of ten; plotly's own choice has labels that run into each other, and says 2 and 5
// without their power. Below one power its ticks are those of a linear axis, else there might be only one.
const logAxis = span =>
  ({type: "log", ...(span < 2.5 ? {tickformat: "~g", ...(span < 1 ? {} : {dtick: "D2"})} : {nticks: 8, ...(span <= 8 ? {dtick: 1} : {})})});
