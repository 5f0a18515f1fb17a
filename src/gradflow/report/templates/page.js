"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const value = row => row.cells[place].dataset.value;
    const order = (one, other) => {
      const a = value(one), b = value(other);
      if (a === "" || b === "") return (a === "") - (b === "");
      const both = !isNaN(a) && !isNaN(b);
      return way * (both ? a - b : a.localeCompare(b, "en", {numeric: true}));
    };
    body.append(...[...body.rows].sort(order));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  }));
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
