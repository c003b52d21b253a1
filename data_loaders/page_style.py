"""Style sheet of our pages; see `page_parts`."""

STYLE = """
:root {
  --back: #f6f7f9; --card: #fff; --text: #1c2330; --soft: #667085; --line: #e3e7ee;
  --accent: #3b6fe0; --bad: #b42318; --bad-back: #fef3f2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #0f1218; --card: #181d26; --text: #e6e9ef; --soft: #98a2b3; --line: #2a313d;
    --accent: #6f9bff; --bad: #ff8a80; --bad-back: #2c1816;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem clamp(1rem, 3vw, 3rem) 4rem; max-width: 110rem;
  background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
}
h1 { margin: 0 0 1.5rem; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 1rem; font-size: 1.15rem; }
h3 { margin: .75rem 0 .25rem; font-size: .95rem; overflow-wrap: anywhere; }
small { color: var(--soft); font-weight: 400; font-size: .8rem; }
.eyebrow {
  margin: 0; color: var(--accent); font-size: .75rem; font-weight: 600; letter-spacing: .08em;
  text-transform: uppercase;
}
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0; }
.facts div, figure, article {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
}
.facts div { padding: .6rem .9rem; }
dt { color: var(--soft); font-size: .78rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.plots { columns: 20rem; column-gap: .75rem; margin-top: .75rem; }
figure { margin: 0 0 .75rem; padding: .9rem; break-inside: avoid; }
figcaption { margin-bottom: .5rem; font-weight: 600; font-size: .85rem; }
.wide { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; border-radius: .35rem; }
table { width: 100%; border-collapse: collapse; font-size: .82rem; }
th { color: var(--soft); font-weight: 400; text-align: right; white-space: nowrap; }
td { text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
.bars td:nth-child(2) { width: 100%; padding: .15rem .6rem; }
.bars th { text-align: right; }
.bars i {
  display: block; min-width: 2px; height: .65rem; border-radius: .2rem; background: var(--accent);
}
.grid {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr));
}
article { padding: .75rem; overflow: hidden; }
article p { margin: .3rem 0; font-size: .88rem; }
video { display: block; width: 100%; height: auto; border-radius: .35rem; background: #000; }
.panels { display: flex; margin-top: .2rem; color: var(--soft); font-size: .75rem; }
.panels span { flex: 1; text-align: center; }
article ul { display: flex; flex-wrap: wrap; gap: .3rem; margin: .3rem 0 .5rem; padding: 0; }
article li {
  padding: .05rem .5rem; border: 1px solid var(--line); border-radius: 1rem; list-style: none;
  color: var(--soft); font-size: .76rem;
}
.long { color: var(--soft); }
.damaged { border-color: var(--bad); background: var(--bad-back); overflow-wrap: anywhere; }
.badge { display: inline-block; color: var(--bad); font-weight: 600; text-transform: uppercase; }
"""
