"""The style sheet of the report; nothing in it refers to another file."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5a6878; --paper: #ffffff; --panel: #f4f6f8; --line:
  #d9dfe5; --accent: #0b6e99; --good: #176639; --bad: #a3261b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #a3afbb; --paper: #14191f; --panel: #1d242c;
  --line: #36404a; --accent: #6cc3e8; --good: #7bd3a0; --bad: #ff9b8f; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.62 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
header, .page, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3rem; }
h1 { font-size: 2.2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.6rem; line-height: 1.25; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p, dl, .note { max-width: 46rem; }
.lead { font-size: 1.2rem; color: var(--soft); margin: 0 0 1rem; }
a { color: var(--accent); text-underline-offset: .15em; }
.page { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem 3rem; }
nav { font-size: .9rem; line-height: 1.45; padding: 1rem 1.2rem; background: var(--panel); border-radius: .6rem; }
nav ul { list-style: none; margin: .4rem 0 0; padding: 0; }
nav ul ul { padding-left: .9rem; margin: .2rem 0 .6rem; }
nav li { margin: .25rem 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
@media (min-width: 66rem) { .page { grid-template-columns: 15rem minmax(0, 1fr); } nav { position: sticky; top:
  1rem; align-self: start; max-height: calc(100vh - 2rem); overflow: auto; } }
main section > h2 { margin-top: .5rem; }
main section + section { margin-top: 4rem; }
figure { margin: 1.4rem 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .6rem; padding: .6rem; }
figcaption { font-size: .93rem; color: var(--soft); }
figcaption p { margin: .55rem 0 0; }
figcaption b { color: var(--ink); }
.table { overflow-x: auto; margin: 1.4rem 0 .4rem; }
table { border-collapse: collapse; font-size: .93rem; min-width: 32rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 .5rem; }
th, td { padding: .42rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; font-weight: 500; min-width: 13rem; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody tr:hover { background: var(--panel); }
td.good { color: var(--good); font-weight: 600; }
td.bad { color: var(--bad); font-weight: 600; }
td.quiet { color: var(--soft); }
.note { font-size: .93rem; color: var(--soft); margin-top: .3rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.tiles div { background: var(--panel); border-radius: .6rem; padding: .9rem 1.1rem; }
.tiles b { display: block; font-size: 1.7rem; line-height: 1.2; color: var(--accent); font-variant-numeric:
  tabular-nums; }
.tiles span { font-size: .9rem; line-height: 1.4; color: var(--soft); display: block; margin-top: .25rem; }
pre { background: var(--panel); border-radius: .6rem; padding: .9rem 1.1rem; overflow-x: auto; font-size: .88rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
dl { margin: .6rem 0; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: .1rem 0 0; color: var(--soft); }
footer { margin-top: 4rem; padding-bottom: 3rem; border-top: 1px solid var(--line); font-size: .88rem; }
footer h2 { font-size: 1.1rem; margin-top: 1.5rem; }
footer dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem; max-width: none; }
footer dt, footer dd { margin: 0; }
@media print { nav { display: none; } .page { display: block; } figure, table { break-inside: avoid; } }
"""
