"use strict";
// How configurations are told apart, and which of them are drawn: one legend for all panels of a view.

// A set that is kept in the address, where anything may stand.
function listed(key) {
  try { return new Set([JSON.parse(chosen[key] || "[]")].flat()); } catch { return new Set(); }
}
const keepListed = (key, set) => choose({[key]: set.size ? JSON.stringify([...set]) : ""});

// Adds or removes an entry of such a set.
function turnListed(key, entry) {
  const set = listed(key);
  if (!set.delete(entry)) set.add(entry);
  keepListed(key, set);
}

// A colour and a dash for each configuration: of one factor and of another; of a single factor, or too many levels, by
// rank. Levels and ranks are those of all configurations, so that neither a filter nor a view of fewer changes a colour.
function stylesOf(configurations) {
  const inOrder = (one, other) => one.localeCompare(other, "en", {numeric: true});
  const levels = new Map(data.keys.map(key => [key, [...new Set(data.configurations.map(one => one.values[key]))].sort(inOrder)]));
  const fits = data.keys.length > 1 && levels.get(data.keys[0]).length <= COLOURS.light.length;
  const wish = (part, otherwise) => levels.has(chosen[part]) || chosen[part] === "rank" ? chosen[part] : otherwise;
  const hue = wish("hue", fits ? data.keys[0] : "rank"), dash = wish("dash", fits ? data.keys.find(key => key !== hue) : "");
  const level = (key, one, place) => levels.has(key) ? levels.get(key).indexOf(one.values[key]) : key === "rank" ? place : 0;
  const distinct = data.configurations.length <= COLOURS.light.length * DASHES.length;  // else ranks would share a style
  return configurations.map((one, shown) => {
    const place = distinct ? one.rank : shown;
    const round = !dash && hue === "rank" ? Math.floor(place / COLOURS.light.length) : 0;  // when the colours come again
    return {color: colour(level(hue, one, place)), dash: DASHES[(level(dash, one, place) + round) % DASHES.length]};
  });
}

// Buttons, one a configuration: a click hides its lines in all panels or shows them, one with Shift leaves them alone.
function legend(configurations, styles, off) {
  const labels = configurations.map(one => one.label);
  const isolate = label => {
    const others = labels.filter(other => other !== label), alone = !off.has(label) && others.every(other => off.has(other));
    keepListed("off", new Set(alone ? [] : others));
  };
  const buttons = configurations.map(({label, runs}, place) => {
    const ended = runs.map(run => run.status).filter(status => status !== "finished");
    const rest = ended.length ? ` (${ended.length} of ${runs.length} ${[...new Set(ended)].join(", ")})` : "";
    const title = "click: hide or show; Shift and click: this one alone, or all again";
    const button = element("button", {type: "button", "aria-pressed": String(!off.has(label)), "aria-label": label, title});
    button.append(swatch(styles[place]), ` ${label}${rest}`);
    button.addEventListener("click", event => event.shiftKey ? isolate(label) : turnListed("off", label));
    return button;
  });
  return element("div", {class: "legend", role: "group", "aria-label": "configurations"}, ...buttons);
}

function swatch({color, dash}) {
  const patterns = {solid: "", dash: "8 5", dot: "2 3", dashdot: "8 3 2 3", longdash: "14 5", longdashdot: "14 3 2 3"};  // plotly's
  const template = element("template");  // a fixed text, in which no name of a run stands
  template.innerHTML = '<svg width="28" height="8" aria-hidden="true"><line x2="28" y1="4" y2="4" stroke-width="2.5"></line></svg>';
  const picture = template.content.firstChild;
  picture.firstChild.setAttribute("stroke", color);
  picture.firstChild.setAttribute("stroke-dasharray", patterns[dash]);
  return picture;
}

// A fold of boxes that add a name to what is drawn, or take it away.
function fold(key, summary, names, open) {
  const boxes = names.map(({name, drawn}) => {
    const box = element("input", {type: "checkbox", checked: drawn, "aria-label": `draw ${name}`});
    box.addEventListener("change", () => turnListed(key, name));
    return element("label", {}, box, ` ${name}`);
  });
  return element("details", {open}, element("summary", {}, summary), element("div", {class: "legend"}, ...boxes));
}
