"use strict";
// What diagnostics recorded, as the layout of each table says: by layer a heat map over the steps, of two axes one of the
// chosen step, else curves.
{
  const MAPS = 4, LINES = 8;  // that are drawn
  const sentencesOf = sentences => element("p", {class: "soft"}, sentences.filter(Boolean).join(" "));
  const notAll = (own, ranked) =>
    own.length < ranked.length && `Shown are the best and the worst ${own.length} of ${ranked.length} configurations.`;
  const having = name => shownConfigurations()
    .map(one => ({...one, runs: one.runs.filter(run => Object.hasOwn(run.tables, name))})).filter(one => one.runs.length);

  // Runs with their titles: those of the chosen or the only configuration, or one of each of the best and the worst.
  function mapped(ranked) {
    const only = ranked.find(one => String(one.rank) === chosen.maps) ?? (ranked.length === 1 && ranked[0]);
    if (!only) {
      const first = runs => runs.find(run => run.status === "finished") ?? runs[0], several = ranked.some(one => one.runs.length > 1);
      const own = bestAndWorst(ranked, MAPS).map(one => [one.label, first(one.runs)]);
      return [own, several && "Of each configuration its first finished run.", notAll(own, ranked)];
    }
    const bySeed = only.runs.length > 1 && new Set(only.runs.map(run => run.seed)).size === only.runs.length;
    const own = only.runs.slice(0, MAPS).map(run => [bySeed ? `seed ${run.seed}` : run.name, run]);
    return [own, own.length < only.runs.length && `Shown are the first ${own.length} of ${only.runs.length} runs.`];
  }

  // Layers over steps, the input on top; a column reaches halfway to its neighbours, so that the axis ends at the last step.
  function overSteps({steps, rows, columns}, shape) {
    const between = steps.slice(1).map((step, place) => (step + steps[place]) / 2);
    const x = steps.length > 1 ? [steps[0], ...between, steps.at(-1)] : [steps[0] - .5, steps[0] + .5];
    return heatmap({
      ...shape, names: columns, x, xaxis: {title: {text: "optimizer step"}, nticks: 6},
      cells: columns.map((_, place) => rows.map(row => row[place])),
      hover: (down, across) => `${columns[down]}, step ${steps[across]}`,
    });
  }

  // Both axes at a step.
  function atPlace({rows, axes: [down, across]}, shape, title, place) {
    const tickvals = evenlySpaced(across.length, 8), ticktext = tickvals.map(index => plain(shortened(across[index], 12)));
    return heatmap({
      ...shape, names: down, x: across.map((_, index) => index), xaxis: {title: {text: plain(title)}, tickvals, ticktext},
      cells: down.map((_, index) => rows[place].slice(index * across.length, (index + 1) * across.length)),
      hover: (row, column) => `${down[row]}, ${title} ${across[column]}`,
    });
  }

  function drawMaps(body, name, {axes, scale, log}) {
    const ranked = having(name), two = axes.length === 2, [own, ...notes] = ranked.length ? mapped(ranked) : [[]];
    if (!own.length) return false;
    const tables = own.map(([, run]) => run.tables[name]), steady = tables.filter((_, place) => own[place][1].status !== "diverged");
    const range = colourRange((steady.length ? steady : tables).flatMap(table => table.rows), log), several = own.length > 1;
    const shape = {range, log, alone: !several, narrow: body.clientWidth < 600};
    const wanted = step => own.map(([label], map) => {
      const table = tables[map], place = Math.max(table.steps.findLastIndex(one => one <= step), 0);
      if (!two) return {title: label, ...overSteps(table, shape)};
      return {title: `${label}, step ${table.steps[place]}`, ...atPlace(table, shape, axes[1], place)};
    });
    const steps = two ? unionOf(tables.map(table => table.steps)) : [0];
    const [slider, step] = stepSlider("Step", `step-${name}`, steps, step => redraw(body, wanted(step).map(({title, traces}) => [title, traces])));
    const best = ranked.length > MAPS ? "best and worst" : "one of each configuration";
    const options = [["", best], ...ranked.map(one => [String(one.rank), shortened(one.label, 44)])];
    const leaves = steady.length && steady.length < tables.length;
    body.replaceChildren(...(ranked.length > 1 ? [menu("Runs", "maps", options)] : []), ...(steps.length > 1 ? [slider] : []), sentencesOf([
      `Colour: ${scale}${several ? ", one scale for all" : ""}.`, leaves && "Diverged runs don't set the scale.", ...notes, ...thinning(tables),
    ]));
    charts(body, wanted(step));
  }

  // Sentences on what the page does not carry.
  function thinning(tables) {
    const short = tables.find(table => table.thinned || (data.points && table.steps.length >= data.points));
    const narrow = tables.find(table => table.columns?.length < table.width);
    return [
      short && `Drawn are ${short.steps.length} of the recorded steps, evenly spaced.`,
      narrow && `Drawn are ${narrow.columns.length} of ${narrow.width} layers, evenly spaced.`,
    ];
  }

  // Of one run all columns in one chart; of several a chart a column, with a line a run in its configuration's colour.
  function drawCurves(body, name, {title, scale, log}) {
    const ranked = having(name), own = bestAndWorst(ranked, LINES), alone = own.length === 1 && own[0].runs.length === 1;
    const columns = [...new Set(own.flatMap(one => one.runs.flatMap(run => run.tables[name].columns)))], styles = alone ? columns.map((_, place) => ({color: colour(place)})) : stylesOf(own);
    if (!columns.length) return false;
    const line = (run, column, label, place, showlegend) => {
      const {steps, rows, columns} = run.tables[name], index = columns.indexOf(column), who = alone ? label : `${label} · ${run.name}`;
      return {
        x: steps, y: rows.map(row => isNumber(row[index]) ? row[index] : null), mode: steps.length > 1 ? "lines" : "markers",
        name: plain(label), legendgroup: `=${label}`, showlegend, line: styles[place],
        hovertemplate: `%{y:.4g} at step %{x}<extra>${plain(who)}</extra>`,
      };
    };
    const ofColumn = column => own.flatMap((one, place) => one.runs.filter(run => run.tables[name].columns.includes(column))
      .map((run, turn) => line(run, column, shortened(one.label, 44), place, !turn)));
    const yaxis = {title: {text: plain(scale)}, exponentformat: "power", ...(log ? {type: "log"} : {})};
    const layout = {xaxis: {title: {text: "optimizer step"}}, yaxis}, shown = evenlySpaced(columns.length, LINES).map(place => columns[place]);
    const some = shown.length < columns.length && `Shown are ${shown.length} of ${columns.length} columns.`;
    body.replaceChildren(sentencesOf([`${scale}.`, some, notAll(own, ranked)]));
    const ofOne = () => shown.map((column, place) => line(own[0].runs[0], column, column, place, true));
    charts(body, alone ? [{title, layout, traces: ofOne()}] : shown.map(title => ({title, layout, traces: ofColumn(title)})));
  }

  // Gradients come first, then updates, then what else there is.
  const order = ["gradients", "updates"], placeOf = name => order.includes(name) ? order.indexOf(name) : order.length;
  for (const [name, layout] of Object.entries(data.layouts).sort(([one], [other]) => placeOf(one) - placeOf(other))) {
    const {title, axes} = layout, isMap = axes.length === 2 || axes[0] === "layer";
    const by = axes.length === 2 ? ` by ${axes.join(" and ")}` : isMap ? " by layer and step" : "";
    view(`table-${name}`, title.slice(0, 1).toUpperCase() + title.slice(1) + by, body => (isMap ? drawMaps : drawCurves)(body, name, layout));
  }
}
