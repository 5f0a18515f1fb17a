"use strict";
// A table of numbers as colours. A cell is a number, null for nan, or the text inf or -inf.
const NOT_FINITE = "#D55E00", LEAST = 4;  // no colour of the scale; powers of ten that logarithmic colours span at least
const isNumber = cell => typeof cell === "number";
const inWords = cell => isNumber(cell) ? short(cell, 4) : `not finite${cell === null ? "" : cell === "inf" ? ": ∞" : ": −∞"}`;

// The ends of the colours, of logarithms where `log`: from the smallest to the largest of these cells, no less and no more.
function colourRange(cells, log) {
  const [low, high] = extent(cells.filter(cell => isNumber(cell) && (!log || cell > 0)));
  if (!(low <= high)) return log ? [-LEAST, 0] : [0, 1];
  return log ? [Math.min(Math.log10(low), Math.log10(high) - LEAST), Math.log10(high)] : [low, high > low ? high : low + 1];
}

// The traces and the layout of cells, a list for each of the `names` from top to bottom. Zero has no logarithm: it and what
// is not finite have colours that are not on the scale, a word in the legend, and their own in the hover text.
function heatmap({names, x, xaxis, cells, hover, log, range: [zmin, zmax], alone}) {
  const height = alone ? Math.min(Math.max(names.length, 8), 40) * 16 : Math.min(Math.max(names.length, 8) * 14, 400);
  const onScale = cell => isNumber(cell) && (!log || cell > 0), y = names.map((_, place) => place);
  const each = change => cells.map((row, down) => row.map((cell, across) => change(cell, down, across)));
  const text = each((cell, down, across) => plain(`${hover(down, across)}: ${inWords(cell)}`));
  const grid = {type: "heatmap", x, y, text, hoverongaps: false, hovertemplate: "%{text}<extra></extra>"};
  const powers = {tickprefix: "10<sup>", ticksuffix: "</sup>", tick0: 0, dtick: Math.ceil((zmax - zmin) / 8)};
  const colorbar = {thickness: 12, outlinewidth: 0, ...(log ? powers : {exponentformat: "power", nticks: 6})};
  const z = each(cell => !onScale(cell) ? null : log ? Math.log10(cell) : cell);
  const traces = [{...grid, z, zmin, zmax, colorscale: "Viridis", colorbar}];
  const swatch = {x: [null], y: [null], mode: "markers", hoverinfo: "skip", showlegend: true};  // for the legend
  const zero = ["zero", darkness.matches ? "#4a505a" : "#c4c8ce", cell => isNumber(cell) && !onScale(cell)];
  for (const [name, color, is] of [zero, ["not finite", NOT_FINITE, cell => !isNumber(cell)]]) {
    if (!cells.some(row => row.some(is))) continue;
    traces.push({...grid, name, z: each(cell => is(cell) ? 1 : null), colorscale: [[0, color], [1, color]], showscale: false});
    traces.push({...swatch, name, marker: {symbol: "square", size: 11, color}});
  }
  const stride = Math.ceil(names.length / (height / 13)), tickvals = y.filter(place => place % stride === 0);
  const ticktext = tickvals.map(place => plain(cut(names[place], innerWidth < 600 ? 16 : 28)));
  const yaxis = {range: [names.length - .5, -.5], showgrid: false, tickvals, ticktext, tickfont: {size: 10}};
  const legend = {orientation: "h", y: 1, yanchor: "bottom", x: 0}, margin = {l: 48, r: 8, t: 32, b: 40};
  return {traces, layout: {height: height + 100, margin, legend, showlegend: traces.length > 1, xaxis: {...xaxis, showgrid: false}, yaxis}};
}
