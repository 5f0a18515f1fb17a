"""The style and the script of a page: both stand in it, so that it opens from disk and asks nobody for anything."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2328; --soft: #59636e; --paper: #ffffff; --line: #d9dde2; --card: #f6f7f9; --mark: #fff3c4;
  --ok: #cdeee2; --caution: #fbe6b8; --fail: #fbd5c1; --link: #0060a0; color-scheme: light; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa4af; --paper: #16191e; --line: #363c45; --card: #1f242b; --mark: #4a4013;
    --ok: #0e4a3a; --caution: #5a4308; --fail: #642c10; --link: #6fbcf0; color-scheme: dark; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .5rem; }
p { margin: .3rem 0 .6rem; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
.lead { font-size: 1.08rem; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: .5rem; margin: .8rem 0; padding: 0; list-style: none; }
.cards li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .7rem; }
.cards b { display: block; font-size: 1.15rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
.long { max-height: 36rem; overflow-y: auto; }
.long thead th { position: sticky; top: 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--card); white-space: nowrap; font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.best { background: var(--mark); font-weight: 700; }
td.best::before { content: "★ "; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--link); }
th button::after { content: " ↕"; opacity: .35; }
th[aria-sort=ascending] button::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: " ↓"; opacity: 1; }
.OK, .CAUTION, .FAIL { margin-right: .25rem; border-radius: .3rem; padding: .05rem .4rem; white-space: nowrap; }
.OK { background: var(--ok); } .CAUTION { background: var(--caution); } .FAIL { background: var(--fail); }
figure { margin: .6rem 0 1.2rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { position: sticky; left: 0; }
code { font: .84rem/1.45 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .7rem;
  margin: .3rem 0; white-space: pre-wrap; }
summary { cursor: pointer; color: var(--link); }
td details { min-width: 9rem; max-width: 34rem; }
@media (max-width: 640px) { body { padding: .8rem .6rem 3rem; } }
@media print { body { max-width: none; font-size: 11px; } .scroll { overflow: visible; max-height: none; border: 0; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } th button::after { content: ""; }
  figure img { max-width: 100%; } table { font-size: 9px; } th, td { padding: .15rem .25rem; }
  td.number, thead th, thead th.number { white-space: normal; } }
"""

SCRIPT = """
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
"""
