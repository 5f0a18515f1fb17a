"use strict";
// The runs that were picked, side by side: what differs between them, their metrics, how they ended.
view("compare", "Comparison", body => {
  const own = pickedRuns();
  body.replaceChildren();
  if (own.length < 2) return false;
  const settings = Object.entries(data.settings).map(([key, values]) => [key, own.map(run => values[data.runs.indexOf(run)])]);
  sideBySide(body, "Configuration that differs", own, settings.filter(([, values]) => new Set(values).size > 1));
  sideBySide(body, "Metrics", own, metricsOf(own), own.length === 2 ? ["difference"] : []);
  body.append(element("p", {class: "soft"}, "★ the best of these runs, on the same data, which may be chance; none where it is unknown which is better."
    + (own.length === 2 ? " The difference is second − first." : "")));
  sideBySide(body, "Training", own, endings(own));
});

// A table with a column a run; cells are texts, elements, or {text, best}.
function sideBySide(body, caption, own, rows, more = []) {
  const label = run => (data.configurations.find(one => one.runs.includes(data.runs.indexOf(run))) || {label: ""}).label;
  const heads = own.map(run => element("th", {scope: "col"}, run.name, element("small", {}, label(run))));
  const cell = value => value instanceof Node ? value : element("td", {class: value.best ? "best" : ""}, value.text ?? value);
  const line = ([name, values]) => element("tr", {}, element("th", {scope: "row"}, name), ...values.map(cell));
  const head = element("tr", {}, element("td"), ...heads, ...more.map(name => element("th", {scope: "col"}, name)));
  const table = element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...rows.map(line)));
  body.append(element("h3", {}, caption), rows.length ? element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption}, table)
    : element("p", {class: "soft"}, "Nothing differs."));
}

// Metrics with as many decimals as show four digits of the largest; the best is marked if it is known which that is.
function metricsOf(own) {
  const same = new Set(own.map(run => run.dataset)).size === 1, names = new Set(own.flatMap(run => Object.keys(run.scores)));
  return [...names].map(name => {
    const values = own.map(run => run.scores[name] ?? NaN), finite = values.filter(isFinite);
    const size = Math.max(...finite.map(Math.abs), 1e-9), places = Math.min(Math.max(3 - Math.floor(Math.log10(size)), 0), 6);
    const text = value => size < 1e-3 || size >= 1e6 ? value.toExponential(3).replace("e+", "e") : value.toFixed(places);
    const best = {min: Math.min, max: Math.max}[same && data.directions[name.split("/")[0]]];
    const alone = best && finite.length > 1 && finite.filter(value => value === best(...finite)).length === 1;
    const cells = values.map(value => ({text: isFinite(value) ? text(value) : "–", best: alone && value === best(...finite)}));
    const gap = values[1] - values[0];
    return [name, own.length === 2 ? [...cells, isFinite(gap) ? (gap > 0 ? "+" : "") + text(gap) : ""] : cells];
  });
}

// What the table of all runs says of them but their choices and the metric, which stand above.
function endings(own) {
  const table = document.getElementById("runs"), rows = new Map([...table.tBodies[0].rows].map(row => [ofRow(row)[0], row]));
  return [...table.tHead.rows[0].cells].map((head, place) => [head, place])
    .filter(([head, place]) => place && ![...data.keys, data.metric].includes(head.dataset.column))
    .map(([head, place]) => [head.innerText, own.map(run => rows.get(run.name).cells[place].cloneNode(true))]);
}
