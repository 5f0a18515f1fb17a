"use strict";
// What every view builds on: the data of the page, what the reader has chosen, and how a chart is drawn.
const data = JSON.parse(document.getElementById("data").textContent);

// --- what is chosen: kept in the address, so that a link shows the same -----------------------------------------------
const chosen = {};
const watchers = [];
const changed = () => watchers.forEach(watcher => watcher());
const nameInAddress = run => run.name.replace(/[%,]/g, encodeURIComponent);
function readAddress() {
  for (const key of Object.keys(chosen)) delete chosen[key];
  const both = data.runs.length === 2 ? data.runs.map(nameInAddress).join() : "";  // a page of two runs compares them
  Object.assign(chosen, {filter: "", hue: "", dash: "", picked: both}, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
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

// What the views show: the picked runs, if there are two or more, else those that pass the filter.
function shownRuns() {
  const picked = pickedRuns();
  return picked.length > 1 ? picked : filteredRuns();
}

// Configurations with their shown runs, the best first.
function shownConfigurations() {
  const shown = new Set(shownRuns());
  return data.configurations.map((one, rank) => ({...one, rank, runs: one.runs.map(place => data.runs[place]).filter(run => shown.has(run))}))
    .filter(one => one.runs.length);
}

// plotly reads some tags in texts: what comes from a run goes through here.
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

// --- elements ---------------------------------------------------------------------------------------------------------
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in made && typeof value !== "string" ? made[name] = value : made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A labelled menu whose choice is kept under a key; options are texts, or pairs of value and text.
function menu(label, key, options) {
  const entries = options.map(option => Array.isArray(option) ? option : [option, option]);
  const select = element("select", {"aria-label": label}, ...entries.map(([value, text]) => element("option", {value}, text)));
  select.value = entries.some(([value]) => value === chosen[key]) ? chosen[key] : entries[0][0];
  select.addEventListener("change", () => choose({[key]: select.value}));
  return element("label", {}, label + " ", select);
}

// --- views: sections that are drawn one after the other, those in sight first, so that the page answers in between -----
const views = [];
let due = [];
// `draw(body)` fills a section; it is called again after each choice, and may return false where there is nothing to draw.
function view(name, title, draw) {
  const body = element("div"), section = element("section", {id: name, hidden: true}, element("h2", {}, title), body);
  document.getElementById("views").append(section);
  const again = () => {
    const focused = body.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    section.hidden = false;  // while it is drawn, too: what is hidden has no width
    section.hidden = draw(body) === false;
    if (focused) body.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();  // a keyboard stays where it was
  };
  views.push({section, again});
}
const inSight = ({section}) => { const {top, bottom} = section.getBoundingClientRect(); return bottom > 0 && top < innerHeight; };
function drawOne(one) {
  due = due.filter(other => other !== one);
  one.again();
}
function drawRest() {
  if (!due.length) return;
  drawOne(due.find(inSight) ?? due[0]);
  setTimeout(drawRest);
}
function drawViews() {
  due = [...views];
  due.filter(inSight).forEach(drawOne);
  setTimeout(drawRest);
}
watchers.push(drawViews);
addEventListener("DOMContentLoaded", drawViews);  // when the scripts below are read, too
addEventListener("beforeprint", () => due.forEach(drawOne));

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

const saving = (format, scale, icon) => ({name: format, title: `Download as ${format.toUpperCase()}`, icon,
  click: chart => Plotly.downloadImage(chart, {format, scale, filename: `${chart.closest("section").id}-${chart.previousElementSibling.textContent}`.replace(/\W+/g, "-")})});
const CONFIG = {
  responsive: true, displaylogo: false, modeBarButtonsToAdd: [saving("svg", 1, Plotly.Icons.camera), saving("png", 2, Plotly.Icons.disk)],
  modeBarButtonsToRemove: ["toImage", "sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
};

// Fills a body with charts side by side, each {title, traces, layout}. Charts that are there from before are changed in
// place: what a reader has zoomed into stays, where a `uirevision` says so and the buttons are the very same. By default
// there is one that sends the chart to a server.
function charts(body, wanted) {
  const kept = new Map([...body.querySelectorAll(":scope > .charts > figure")].map(figure => [figure.firstChild.textContent, figure]));
  const boxes = wanted.map(({title}) => kept.get(title) ?? element("figure", {}, element("figcaption", {}, title), element("div")));
  const grid = body.querySelector(":scope > .charts") ?? element("div", {class: "charts"});
  body.append(grid);  // before anything is drawn, so that widths are known
  if (boxes.length !== grid.children.length || boxes.some((box, place) => box !== grid.children[place])) grid.replaceChildren(...boxes);
  wanted.forEach(({title, traces, layout}, place) => {
    const axis = {gridcolor: styleOf("--line"), linecolor: styleOf("--line"), zeroline: false, automargin: true};
    const full = {
      font: {family: "system-ui, sans-serif", size: 12, color: styleOf("--ink")}, paper_bgcolor: styleOf("--paper"), plot_bgcolor: styleOf("--paper"),
      margin: {l: 48, r: 8, t: 28, b: 40}, hoverlabel: {namelength: -1}, legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom"}, height: 320,
      modebar: {bgcolor: "rgba(0,0,0,0)", color: styleOf("--soft"), activecolor: styleOf("--ink")}, ...layout,
    };
    for (const key of ["xaxis", "yaxis", ...Object.keys(layout).filter(key => /^[xy]axis/.test(key))]) full[key] = {...axis, ...layout[key]};
    Plotly.react(boxes[place].lastChild, traces, full, CONFIG);
  });
}
