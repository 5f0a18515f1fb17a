"use strict";
// The runs that were picked, side by side: what differs between them, their metrics, how they ended.
view("compare", "Comparison", () => {
  const own = pickedRuns();
  if (own.length < 2) return null;
  const settings = Object.entries(data.settings).map(([key, values]) => [key, own.map(run => values[data.runs.indexOf(run)])]);
  const verdicts = ["start", "end"].map(stage => [`verdict at the ${stage}`, own.map(run => run.verdict[stage] ?? "")]);
  return {
    above: [
      ...sideBySide("Configuration that differs", own, settings.filter(([, values]) => new Set(values).size > 1)),
      ...sideBySide("Metrics", own, metricsOf(own)),
      ...sideBySide("Training", own, [["status", own.map(run => run.status)], ...verdicts]),
    ],
    below: ["★ the best of these runs, on the same data, which may be chance; none where it is unknown which is better."],
  };
});

// A table with a column a run; cells are texts, or {text, best}.
function sideBySide(caption, own, rows) {
  const label = run => (data.configurations.find(one => one.runs.includes(data.runs.indexOf(run))) || {label: ""}).label;
  const heads = own.map(run => element("th", {scope: "col"}, nameOf(run), element("small", {}, label(run))));
  const cell = value => element("td", {class: value.best ? "best" : ""}, value.text ?? value);
  const line = ([name, values]) => element("tr", {}, element("th", {scope: "row"}, name), ...values.map(cell));
  const head = element("thead", {}, element("tr", {}, element("td"), ...heads));
  const table = element("table", {}, element("caption", {}, caption), head, element("tbody", {}, ...rows.map(line)));
  const region = element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption}, table);
  return [element("h3", {}, caption), rows.length ? region : element("p", {class: "soft"}, "Nothing differs.")];
}

// Metrics with as many decimals as show four digits of the largest; the best is marked if it is known which that is.
function metricsOf(own) {
  const same = new Set(own.map(run => run.dataset)).size === 1, names = new Set(own.flatMap(run => Object.keys(run.scores)));
  return [...names].map(name => {
    const values = own.map(run => run.scores[name] ?? NaN), finite = values.filter(isFinite);
    const size = Math.max(...finite.map(Math.abs), 1e-9), places = Math.min(Math.max(3 - Math.floor(Math.log10(size)), 0), 6);
    const text = value => size < 1e-3 || size >= 1e6 ? value.toExponential(3).replace("e+", "e") : value.toFixed(places);
    const best = {min: Math.min, max: Math.max}[same && data.directions[name.split("/")[0]]]?.(...finite);
    const alone = finite.length > 1 && finite.filter(value => value === best).length === 1;
    return [name, values.map(value => ({text: isFinite(value) ? text(value) : "–", best: alone && value === best}))];
  });
}
