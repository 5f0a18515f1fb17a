"use strict";
// The arithmetic of training curves: a curve is a pair of lists, places on the x axis and values. No element is touched here.

const extentOf = values => values.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);

// The exponential mean over a width of x. A point counts by the gap before it: points are logged unevenly, dense at first,
// and thinned out, so that their number says nothing.
function smoothed([x, y], width) {
  let sum = 0, weight = 0;
  return width <= 0 ? [x, y] : [x, y.map((value, place) => {
    const later = Math.max(place, 1), gap = Math.max(x[later] - x[later - 1] || 0, 1e-6 * width), kept = Math.exp(-gap / width);
    [sum, weight] = [sum * kept + value * (1 - kept), weight * kept + 1 - kept];
    return sum / weight;
  })];
}

// Mean and standard deviation wherever a run has been; between its own points it is interpolated.
function averaged(curves, most = 400) {
  const all = [...new Set(curves.flatMap(([x]) => x))].sort((one, other) => one - other), stride = (all.length - 1) / (most - 1);
  const x = all.length > most ? Array.from({length: most}, (_, place) => all[Math.round(place * stride)]) : all;
  const columns = curves.map(curve => interpolated(curve, x)), mean = [], sd = [], counts = [];
  const sum = values => values.reduce((total, value) => total + value, 0);
  x.forEach((_, place) => {
    const known = columns.map(column => column[place]).filter(Number.isFinite), middle = sum(known) / known.length;
    mean.push(middle);
    sd.push(known.length > 1 ? Math.sqrt(sum(known.map(value => (value - middle) ** 2)) / (known.length - 1)) : 0);
    counts.push(known.length);
  });
  return {x, mean, sd, counts};
}

function interpolated([x, y], wanted) {
  let place = 0;
  return wanted.map(at => {
    while (place < x.length - 1 && x[place + 1] <= at) place += 1;
    if (at < x[0] || at > x[x.length - 1]) return NaN;  // a run that diverged earlier has nothing to say here
    const width = x[place + 1] - x[place];
    return width > 0 ? y[place] + (y[place + 1] - y[place]) * (at - x[place]) / width : y[place];
  });
}

// Whether values over several decades are better read on a logarithmic axis; a rate or a learning rate never is: it may
// end in 0.
function wantsLog(name, values) {
  const [low, high] = extentOf(values);
  return low > 0 && high > 20 * low && !/^lr\b/.test(name) && (high > 1 || /^(loss|grad|update)\//.test(name));
}

// Where an axis over so many powers of ten has its ticks: plotly's own choice has labels that run into each other.
const powersOfTen = span => span < 1 || span > 8 ? {} : {dtick: span < 2.5 ? "D2" : 1};

// The y axis of values and of the edges of bands, which may take as much room again. It spans a tenth of the values at
// least, for a loss that does not move should look so, and has the trivial answers that are near in view.
function yAxis(values, edges, trivial, log) {
  const scale = log ? Math.log10 : value => value, type = log ? "log" : "linear";
  const usable = list => list.filter(value => Number.isFinite(value) && (!log || value > 0)).map(scale);
  let [low, high] = extentOf(usable(values));
  if (!(low <= high)) return {type};
  const size = log ? 1 : Math.max(Math.abs(low), Math.abs(high)) || 1, span = Math.max(high - low, (log ? .2 : .1) * size);
  const near = usable(trivial).filter(value => value > low - Math.max(span, size / 4) && value < high + Math.max(span, size / 4));
  const bands = usable(edges).map(value => Math.min(Math.max(value, low - span), high + span)), middle = (low + high) / 2;
  [low, high] = extentOf([middle - span / 2, middle + span / 2, ...near, ...bands]);
  return {type, range: [low - .04 * (high - low), high + .04 * (high - low)], ...(log ? powersOfTen(high - low) : {})};
}

// What the best answer that ignores the input scores: a line where that is in view, else a word at the edge beyond which
// it lies.
function trivialLines(values, {type, range}) {
  const ink = styleOf("--soft"), font = {size: 11, color: ink}, shapes = [], annotations = [];
  for (const value of range ? values : []) {
    const text = `trivial answer ${Number(value.toPrecision(4))}`, place = type === "log" ? Math.log10(value) : value;
    if (place >= range[0] && place <= range[1]) {
      const line = {type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: {color: ink, dash: "dot", width: 1.2}};
      const high = place > range[1] - .1 * (range[1] - range[0]);  // where no text would have room above the line
      shapes.push({...line, label: {text, textposition: "end", yanchor: high ? "top" : "bottom", font}});
    } else {
      const edge = place > range[1] ? {y: 1, yanchor: "top", text: `${text} ↑`} : {y: 0, yanchor: "bottom", text: `${text} ↓`};
      annotations.push({...edge, xref: "paper", yref: "paper", x: 1, xanchor: "right", showarrow: false, font});
    }
  }
  return {shapes, annotations};
}
