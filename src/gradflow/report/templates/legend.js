"use strict";
// How configurations are told apart, and which of them are drawn: one legend for all panels of a view.

// A set that is kept in the address, where anything may stand.
function listed(key) {
  try { return new Set([JSON.parse(chosen[key] || "[]")].flat()); } catch { return new Set(); }
}

// Adds or removes an entry of such a set.
function turnListed(key, entry) {
  const set = listed(key);
  if (!set.delete(entry)) set.add(entry);
  choose({[key]: set.size ? JSON.stringify([...set]) : ""});
}

// A colour and a dash for each configuration: of one factor, and of all others together, as long as no two look alike;
// else by rank. Levels and ranks are those of all configurations, so that neither a filter nor a view of fewer changes a colour.
function stylesOf(configurations) {
  const most = COLOURS.light.length, {keys, configurations: all} = data, levels = new Map(keys.map(key => [key, levelsOf(key, all)]));
  const rest = (hue, {values}) => JSON.stringify(keys.filter(key => key !== hue).map(key => levels.get(key).indexOf(values[key]) + 1e6));
  const restOf = hue => [...new Set(all.map(one => rest(hue, one)))].sort();
  const fits = key => levels.get(key).length <= most && restOf(key).length <= DASHES.length;
  const hue = optionOf("hue", [keys.length > 1 && keys.find(fits) || "rank", "rank", ...keys]);
  const dash = optionOf("dash", ["", "rank", ...keys]), others = dash || hue === "rank" ? [] : restOf(hue);
  const level = (key, one) => key === "rank" ? one.rank : levels.get(key)?.indexOf(one.values[key]) ?? Math.max(others.indexOf(rest(hue, one)), 0);
  // When the colours come again, no line is solid, as those of the best are.
  const round = ({rank}) => hue === "rank" && !dash && rank >= most ? 1 + (Math.floor(rank / most) - 1) % (DASHES.length - 1) : 0;
  return configurations.map(one => ({color: colour(level(hue, one)), dash: DASHES[(level(dash, one) + round(one)) % DASHES.length]}));
}

// Buttons, one a configuration where there are several: a click hides its lines in all panels or shows them.
function legend(configurations, styles, off) {
  if (configurations.length < 2) return "";
  const buttons = configurations.map(({label, runs}, place) => {
    const ended = runs.map(run => run.status).filter(status => status !== "finished");
    const rest = ended.length ? ` (${runs.length > 1 ? `${ended.length} of ${runs.length} ` : ""}${[...new Set(ended)].join(", ")})` : "";
    const attributes = {type: "button", "aria-pressed": String(!off.has(label)), "aria-label": label, title: "hide or show"};
    return element("button", {...attributes, onclick: () => turnListed("off", label)}, swatch(styles[place]), ` ${label}${rest}`);
  });
  return element("div", {class: "legend", role: "group", "aria-label": "configurations"}, ...buttons);
}

function swatch({color, dash}) {
  const pattern = {solid: "", dash: "8 5", dot: "2 3", dashdot: "8 3 2 3", longdash: "14 5", longdashdot: "14 3 2 3"}[dash];  // plotly's
  const template = element("template"), line = `<line x2="28" y1="4" y2="4" stroke-width="2.5" stroke="${color}" stroke-dasharray="${pattern}"/>`;
  template.innerHTML = `<svg width="28" height="8" aria-hidden="true">${line}</svg>`;  // in which no name of a run stands
  return template.content;
}

// A fold of boxes that add a name to what is drawn, or take it away; it stays open.
function fold(key, summary, names) {
  const boxes = names.map(({name, drawn}) => {
    const box = element("input", {type: "checkbox", checked: drawn, "aria-label": `draw ${name}`, onchange: () => turnListed(key, name)});
    return element("label", {}, box, ` ${name}`);
  });
  const open = document.getElementById(`fold-${key}`)?.open ?? false;
  return element("details", {id: `fold-${key}`, open}, element("summary", {}, summary), element("div", {class: "legend"}, ...boxes));
}
