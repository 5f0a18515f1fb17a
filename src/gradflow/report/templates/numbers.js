"use strict";
// The arithmetic of the views, and how they write numbers. No element is touched here.
const short = (value, digits = 3) => String(+(+value).toPrecision(digits));
const decades = value => value.toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−");
const cut = (text, most) => text.length <= most ? text : `${text.slice(0, most >> 1)}…${text.slice((most >> 1) + 1 - most)}`;
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const deviation = values => { const middle = mean(values); return Math.sqrt(mean(values.map(value => (value - middle) ** 2)) * values.length / (values.length - 1)); };
const extent = values => values.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);
const isWide = (low, high) => low > 0 && high > 20 * low;  // from which on an axis is logarithmic
const unionOf = lists => [...new Set(lists.flat())].sort((one, other) => one - other);
const evenlySpaced = (count, most) =>  // places, the first and the last among them
  Array.from({length: Math.min(count, most)}, (_, place) => count <= most ? place : Math.round(place * (count - 1) / (most - 1)));

// A curve is a pair of lists: places on the x axis, and values. This is its exponential mean over a width of x. A point
// counts by the gap before it: points are logged unevenly, dense at first, and thinned out, so that their number says nothing.
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
  const all = unionOf(curves.map(([x]) => x)), x = evenlySpaced(all.length, most).map(place => all[place]);
  const columns = curves.map(curve => interpolated(curve, x)), known = x.map((_, place) => columns.map(column => column[place]).filter(Number.isFinite));
  return {x, mean: known.map(mean), sd: known.map(values => deviation(values) || 0), counts: known.map(values => values.length)};
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
