"use strict";
// What diagnostics recorded by layer, as heat maps over the steps; of tables with two axes, at a chosen step.
{
  const MAPS = 4;  // that are drawn

  // Runs with their titles: those of the chosen or the only configuration, or one of each of the best and the worst.
  function mapped(ranked) {
    const only = ranked.find(one => String(one.rank) === chosen.maps) ?? (ranked.length === 1 && ranked[0]);
    if (only) return [only.runs.slice(0, MAPS).map(run => [`${nameOf(run)}, seed ${run.seed}`, run]),
                      only.runs.length > MAPS && `Of ${only.runs.length} runs the first ${MAPS} are drawn.`];
    const [own, note] = bestAndWorst(ranked, MAPS), first = runs => runs.find(run => run.status === "finished") ?? runs[0];
    return [own.map(one => [one.label, first(one.runs)]), own.some(one => one.runs.length > 1) && "Of each configuration its first finished run.", note];
  }

  // Layers over steps, the input on top; a column reaches halfway to its neighbours, so that the axis ends at the last step.
  function overSteps({steps, rows, columns}) {
    const between = steps.slice(1).map((step, place) => (step + steps[place]) / 2);
    return {
      names: columns, x: steps.length > 1 ? [steps[0], ...between, steps.at(-1)] : [steps[0] - .5, steps[0] + .5],
      xaxis: {title: {text: "optimizer step"}, nticks: 6}, cells: columns.map((_, place) => rows.map(row => row[place])),
      hover: (down, across) => `${columns[down]}, step ${steps[across]}`,
    };
  }

  // Both axes at a step.
  function atStep({rows, axes: [down, across]}, title, place) {
    const tickvals = evenlySpaced(across.length, 8), ticktext = tickvals.map(index => plain(cut(across[index], 12)));
    return {
      names: down, x: across.map((_, index) => index), xaxis: {title: {text: plain(title)}, tickvals, ticktext},
      cells: down.map((_, index) => rows[place].slice(index * across.length, (index + 1) * across.length)),
      hover: (row, column) => `${down[row]}, ${title} ${across[column]}`,
    };
  }

  const maps = (name, {axes, scale, log}) => redraw => {
    const ranked = shownConfigurations(run => Object.hasOwn(run.tables, name)), two = axes.length === 2;
    if (!ranked.length) return null;
    const [own, ...notes] = mapped(ranked), tables = own.map(([, run]) => run.tables[name]);
    const steady = own.filter(([, run]) => run.status !== "diverged").map(([, run]) => run.tables[name]);
    const range = colourRange((steady.length ? steady : tables).flatMap(table => table.rows.flat()), log);
    const steps = two ? unionOf(tables.map(table => table.steps)) : [0], [slider, step] = stepSlider("Step", `step-${name}`, steps, redraw);
    const options = [["", ranked.length > MAPS ? "best and worst" : "one of each configuration"],
                     ...ranked.map(one => [String(one.rank), cut(one.label, 44)])];
    const some = tables.find(table => table.thinned || (data.points && table.steps.length >= data.points));
    const narrow = tables.find(table => table.columns?.length < table.width);
    return {
      above: [ranked.length > 1 ? menu("Runs", "maps", options) : "", slider],
      charts: own.map(([label, run]) => {
        const table = run.tables[name], place = Math.max(table.steps.findLastIndex(one => one <= step), 0);
        const [title, map] = two ? [`${label}, step ${table.steps[place]}`, atStep(table, axes[1], place)] : [label, overSteps(table)];
        const {traces, layout} = heatmap({...map, range, log, alone: own.length === 1});
        return {title, traces, layout: {...layout, uirevision: label}};
      }),
      below: [
        `Colour: ${scale}${own.length > 1 ? ", one scale for all" : ""}.`,
        steady.length && steady.length < tables.length && "Diverged runs don't set the scale.", ...notes,
        some && `Drawn are ${some.steps.length} of the recorded steps, evenly spaced.`,
        narrow && `Drawn are ${narrow.columns.length} of ${narrow.width} layers, evenly spaced.`,
      ],
    };
  };

  // Gradients come first, then updates, then what else there is.
  const order = ["gradients", "updates"], placeOf = name => order.indexOf(name) >>> 0;
  for (const [name, layout] of Object.entries(data.layouts).sort(([one], [other]) => placeOf(one) - placeOf(other))) {
    const {title, axes} = layout, by = axes.length === 2 ? axes.join(" and ") : "layer and step";
    view(`table-${name}`, `${title.slice(0, 1).toUpperCase()}${title.slice(1)} by ${by}`, maps(name, layout));
  }
}
