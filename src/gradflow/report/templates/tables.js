"use strict";
// Tables: sorted, filtered, picked from, and saved as CSV.
const ofRow = row => JSON.parse(row.dataset.runs || "[]");

function compareValues(a, b) {  // what is empty comes last, whichever way
  if (a === "" || b === "") return (a === "") - (b === "");
  return !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b, "en", {numeric: true});
}

// Rows in the order that the address names: a column, behind a minus where the largest comes first.
function arrange(table, original) {
  const [, minus, column] = /^(-?)(.*)$/s.exec(chosen[table.id] || "");
  const heads = [...table.tHead.rows[0].cells], place = heads.findIndex(head => head.dataset.column === column);
  const value = row => row.cells[place].dataset.value;
  const order = (one, other) => (value(one) === "" || value(other) === "" || !minus ? 1 : -1) * compareValues(value(one), value(other));
  table.tBodies[0].append(...(place < 0 ? original : [...original].sort(order)));
  heads.forEach(head => head.removeAttribute("aria-sort"));
  if (place >= 0) heads[place].setAttribute("aria-sort", minus ? "descending" : "ascending");
}

// A table as it is shown, with all digits; behind an apostrophe what a spreadsheet would take for a formula.
function csv(table) {
  const quoted = text => `"${(isNaN(text) ? text.replace(/^(?='*[=+\-@\t\r])/, "'") : text).replace(/"/g, '""')}"`;
  const rows = [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => [...row.cells].map(cell => cell.dataset.value));
  return [[...table.tHead.rows[0].cells].map(head => head.dataset.column), ...rows].map(row => row.map(quoted).join() + "\r\n").join("");
}

function download(table) {
  const address = URL.createObjectURL(new Blob([csv(table)], {type: "text/csv"}));
  element("a", {href: address, download: `${table.id}.csv`}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const original = [...table.tBodies[0].rows], boxes = [];
  for (const head of table.tHead.rows[0].cells) head.querySelector("button").onclick = () => {
    const column = head.dataset.column;
    keep({[table.id]: chosen[table.id] === column ? "-" + column : column});
    arrange(table, original);
  };
  if (data.runs.length > 1) for (const row of original.filter(row => row.dataset.runs)) {
    const names = new Set(ofRow(row)), label = "compare " + row.cells[0].textContent.trim();  // innerText would lay the whole table out, once a row
    const turn = () => {
      const before = new Set(pickedRuns());
      pick(data.runs.filter(run => names.has(run.name) ? box.checked : before.has(run)));
    };
    const box = element("input", {type: "checkbox", "aria-label": label, title: label, onchange: turn});
    row.cells[0].prepend(box);
    boxes.push([row, names, box]);
  }
  table.parentElement.after(element("button", {type: "button", class: "plain", onclick: () => download(table)}, "Download CSV"));
  const update = () => {
    const shown = new Set(filteredRuns().map(run => run.name)), picked = new Set(pickedRuns().map(run => run.name));
    for (const [row, names, box] of boxes) {
      const count = [...names].filter(name => picked.has(name)).length;
      row.hidden = ![...names].some(name => shown.has(name));
      box.checked = count === names.size;
      box.indeterminate = count > 0 && count < names.size;
    }
    arrange(table, original);
  };
  watchers.unshift(update);  // before the charts, which take longer
  update();
}

// --- the bar: a filter for everything, and what is picked -------------------------------------------------------------
if (data.runs.length > 1) {
  const bar = document.getElementById("bar"), count = element("output"), picked = element("output");
  let waiting;
  const type = () => { clearTimeout(waiting); waiting = setTimeout(() => choose({filter: search.value}), 150); };
  const search = element("input", {type: "search", placeholder: "relu lr=0.1 failed …", "aria-label": "filter runs", oninput: type});
  const button = (text, onclick) => element("button", {type: "button", onclick}, text);
  const compare = button("Compare", () => document.getElementById("compare").scrollIntoView()), clear = button("Clear", () => pick([]));
  const update = () => {
    if (document.activeElement !== search) search.value = chosen.filter;
    count.value = `${filteredRuns().length} of ${data.runs.length} runs`;
    const own = pickedRuns().length;
    picked.value = own ? `${own} picked${own > 1 ? ": charts show these" : ", pick another to compare"}` : "tick runs to compare them";
    compare.hidden = own < 2;
    clear.hidden = !own;
  };
  bar.append(element("label", {}, "Filter ", search), count, picked, compare, clear);
  bar.hidden = false;
  watchers.unshift(update);
  update();
}
