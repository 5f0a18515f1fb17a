"use strict";
// Gradient profiles: the norm of ∂L/∂h by block, and of ∂L/∂x by time step, relative to the last one, at any recorded step.
{
  const MOST = 8, FEW = 60;  // lines that can be told apart; points of a line of which each gets a mark
  const [CAUTION, FAIL] = data.limits, SHADES = [["CAUTION", CAUTION, FAIL, "#F0E442"], ["FAIL", FAIL, 330, "#CC79A7"]];
  const AXES = {
    gradient: ["block l (1 is next to the input)", "‖∂L/∂h<sub>l</sub>‖ / ‖∂L/∂h<sub>L</sub>‖"],
    time: ["time step t (the loss is at the last)", "‖∂L/∂x<sub>t</sub>‖ / ‖∂L/∂x<sub>T</sub>‖"],
  };

  // At each place the geometric mean and the range of ratios above 0, and how many runs have 0 or no finite number there.
  function summaryOf(norms) {
    return norms[0].map((_, place) => {
      const ratios = norms.map(one => one[place] === 0 ? 0 : (one[place] ?? NaN) / (one.at(-1) ?? NaN));
      const logs = ratios.filter(ratio => ratio > 0 && ratio < Infinity).map(Math.log10), [low, high] = extent(logs);
      const zeros = ratios.filter(ratio => ratio === 0).length, n = ratios.length, bad = n - zeros - logs.length;
      return {mean: logs.length ? 10 ** mean(logs) : null, low: 10 ** low, high: 10 ** high, n, zeros, bad};
    });
  }

  // What is drawn of a configuration at a step, of each run its latest snapshot up to there; or, without a step, of theory
  // where it predicts anything: relative to the last place that is 1 by definition.
  function pointsOf({runs}, key, step) {
    const latest = run => run.snapshots.findLast(one => one.step <= step) ?? run.snapshots[0];
    const norms = runs.map(run => (step === undefined ? run.theory : latest(run))[key])
      .filter(own => step === undefined ? own.filter(Number.isFinite).length > 1 : own.length);
    return norms.length ? summaryOf(norms.filter(own => own.length === norms[0].length)) : [];
  }

  // The traces of a line: its band, the mean, and marks at the floor of the chart where a gradient is 0 or not finite.
  function tracesOf(points, run, key, floor, {name, color, dash}, isTheory) {
    const places = run.places[key], where = index => `${places[index]}${key === "gradient" && run.trunk[index] ? `, ${run.trunk[index]}` : ""}`;
    const odd = ({zeros, bad, n}) => [zeros && `0 in ${zeros} of ${n} runs`, bad && `not finite in ${bad} of ${n} runs`].filter(Boolean);
    const range = ({low, high, n}) => high > low ? ` (${short(low, 4)} to ${short(high, 4)}, ${n} runs)` : "";
    const text = points.map((point, index) => plain(
      `${where(index)}: ${[...point.mean === null ? [] : [short(point.mean, 4) + range(point)], ...odd(point)].join("; ")}`));
    const shared = {name: plain(name), legendgroup: `=${name}`, hovertemplate: "%{text}<extra>%{fullData.name}</extra>"};
    const at = keep => points.map((_, index) => index).filter(index => keep(points[index])), marked = isTheory ? [] : at(point => point.zeros || point.bad);
    const known = at(point => point.mean !== null), values = end => known.map(index => points[index][end]);
    return [
      ...(known.some(index => points[index].high > points[index].low)
        ? [{...bandOf(known.map(index => places[index]), values("low"), values("high"), color), ...shared, showlegend: false}] : []),
      {...shared, ...(isTheory ? {name: plain(`${name}, theory`), showlegend: !name} : {}), x: places, y: points.map(one => one.mean), text,
       line: {color, dash: isTheory ? "dot" : dash, width: 2}, marker: {size: 5}, mode: points.length <= FEW && !isTheory ? "lines+markers" : "lines"},
      ...(marked.length ? [{
        ...shared, showlegend: false, mode: "markers", meta: "marks", x: marked.map(index => places[index]), y: marked.map(() => floor),
        text: marked.map(index => text[index]),
        marker: {size: 9, color, symbol: marked.map(index => points[index].zeros ? "triangle-down" : "x")},
      }] : []),
    ];
  }

  // One y axis for all steps, so that a moving slider moves nothing but lines; shaded as the verdict judges.
  function layoutOf(key, own, steps) {
    const ends = own.flatMap(one => [undefined, ...steps].flatMap(step => pointsOf(one, key, step)))
      .filter(one => one.mean !== null).flatMap(one => [Math.log10(one.low), Math.log10(one.high)]);
    const [low, high] = extent([-1.5, 1.5, ...ends]).map((end, place) => end + [-.5, .5][place]);
    const shades = SHADES.flatMap(([word, start, end, fillcolor]) => [
      {word, fillcolor, y0: start, y1: Math.min(end, high)}, {word, fillcolor, y0: Math.max(-end, low), y1: -start},
    ]).filter(({y0, y1}) => y0 < y1);
    const shade = {type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, opacity: .15, line: {width: 0}};
    const note = {xref: "paper", x: 1, xanchor: "right", showarrow: false, opacity: .7, font: {size: 10}};
    const [across, down] = AXES[key].map(text => ({title: {text}})), last = Math.max(...own.flatMap(one => one.runs.map(run => run.places[key].at(-1))));
    return {
      showlegend: false,
      xaxis: {...across, ...(last <= 12 ? {dtick: 1} : {})}, yaxis: {...down, ...logAxis(high - low), range: [low, high]},
      shapes: shades.map(({y0, y1, fillcolor}) => ({...shade, y0: 10 ** y0, y1: 10 ** y1, fillcolor})),
      annotations: shades.filter(({y0, y1}) => y1 - y0 > (high - low) / 20).map(({word, y0, y1}) => ({...note, text: word, y: (y0 + y1) / 2})),
    };
  }

  // A chart of the start of training, with what theory predicts, and one of the step that is chosen.
  const profile = key => redraw => {
    const all = shownConfigurations(run => run.snapshots.length && run.snapshots[0][key].length > 1), [own, note] = bestAndWorst(all, MOST);
    if (!own.length) return null;
    const runs = own.flatMap(one => one.runs), steps = unionOf(runs.map(run => run.snapshots.map(one => one.step)));
    const layout = layoutOf(key, own, steps), floor = 10 ** (layout.yaxis.range[0] + .12), styles = stylesOf(own), off = listed("off");
    const [slider, step] = stepSlider("Probe at", `probe-${key}`, steps, redraw), shown = [steps[0], ...(steps.length > 1 ? [step] : [])];
    const ratio = ({mean, zeros}) => mean !== null ? decades(Math.log10(mean)) : zeros ? "−∞" : "not finite";
    const chart = (at, place) => {
      const lines = own.flatMap((one, rank) => off.has(one.label) ? [] : [at, ...(place ? [] : [undefined])].flatMap(step => {
        const style = {...styles[rank], name: cut(one.label, 44)};
        return tracesOf(pointsOf(one, key, step), one.runs[0], key, floor, style, step === undefined);
      })).filter(trace => trace.x.length && trace.y.length);
      const ratios = own.length > 1 ? "" : `: log₁₀ gradient ratio, first over last, ${ratio(pointsOf(own[0], key, at)[0])}`;
      const when = place ? `at step ${at}` : `at the start, step ${at}`;
      return {title: when + ratios, traces: lines, layout: {...layout, uirevision: place}};
    };
    return {above: [legend(own, styles, off), slider], charts: shown.map(chart), below: [
      "Shaded: where the verdict is CAUTION or FAIL.", own.some(one => pointsOf(one, key).length) && "Dotted: theory at initialisation.",
      own.some(one => one.runs.length > 1) && "Lines are geometric means over runs, bands their range.",
      "▾ marks a gradient of exactly 0, × one that is not finite.", note,
    ]};
  };

  view("gradient-depth", "Gradient by depth", profile("gradient"));
  view("gradient-time", "Gradient through time", profile("time"));
}
