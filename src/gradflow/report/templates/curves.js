"use strict";
// Training curves: what was logged at each step, of the runs that are shown.
view("training", "Training curves", body => {
  const own = shownConfigurations(), names = new Set(own.flatMap(one => one.runs.flatMap(run => Object.keys(run.curves))));
  const wanted = [...names].filter(name => name.startsWith("loss/") || name.endsWith("/val"));
  if (!wanted.length) return false;
  body.replaceChildren();
  charts(body, wanted.map(name => ({
    title: name,
    traces: own.flatMap((one, place) => one.runs.filter(run => run.curves[name]).map((run, turn) => ({
      x: run.curves[name][0], y: run.curves[name][1], name: one.label, legendgroup: one.label, showlegend: !turn,
      mode: run.curves[name][0].length > 1 ? "lines" : "markers", line: {color: colour(place)}, hovertemplate: `%{y:.4g} at step %{x}<extra>${run.name}</extra>`,
    }))),
    layout: {xaxis: {title: {text: "optimizer step"}}},
  })));
});
