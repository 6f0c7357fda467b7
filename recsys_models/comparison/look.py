"""The style sheet of a comparison's page."""

LOOK = """
:root { --ink: #1f2430; --soft: #5b6472; --line: #dfe3ea; --accent: #0b5394; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
       background: #f3f5f8; margin: 0; }
header { background: #16324f; color: #fff; padding: 2.2rem max(1.2rem, calc(50vw - 41rem)) 1.8rem; }
header p { color: #c9d6e4; margin: .3rem 0; } h1 { font-weight: 650; margin: 0; line-height: 1.2; }
header pre { background: #0e2338; color: #dbe7f3; padding: .6rem .9rem; border-radius: 6px;
             overflow-x: auto; margin: .9rem 0 0; font-size: 13px; }
main { max-width: 84rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; margin-top: 1.2rem;
          padding: 1.2rem 1.5rem 1.4rem; }
h2 { font-size: 1.15rem; font-weight: 650; margin: 0 0 .3rem; }
p { max-width: 60rem; color: var(--soft); margin: .2rem 0 .8rem; }
ul { color: var(--soft); max-width: 60rem; padding-left: 1.2rem; margin: .8rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .28rem .75rem; text-align: right; }
th { border-bottom: 2px solid var(--ink); font-weight: 600; font-size: 13px; vertical-align: bottom;
     white-space: normal; }
.label { text-align: left; } td.label:first-child { color: var(--soft); font-weight: 600; }
tr:hover td { box-shadow: inset 0 0 0 99px #0b53940d; }
tr.block td { border-top: 1px solid #aab3c0; }
td[style] { background: rgb(11 83 148 / calc(var(--s) * .22)); }
td.best { font-weight: 700; color: var(--accent); }
td i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .55em; }
svg { max-width: 100%; height: auto; font-family: inherit; }
.tabs input { position: absolute; opacity: 0; }
.tabs label { display: inline-block; padding: .3rem .9rem; border: 1px solid var(--line);
              border-radius: 99px; margin: 0 .4rem .8rem 0; cursor: pointer; color: var(--soft); }
.tabs input:checked + label { background: #16324f; color: #fff; border-color: #16324f; }
.tabs input:focus-visible + label { outline: 2px solid var(--accent); }
.tab { display: none; }
.tabs input:nth-of-type(1):checked ~ .tab:nth-of-type(1),
.tabs input:nth-of-type(2):checked ~ .tab:nth-of-type(2),
.tabs input:nth-of-type(3):checked ~ .tab:nth-of-type(3),
.tabs input:nth-of-type(4):checked ~ .tab:nth-of-type(4) { display: block; }
@media print { body { background: #fff; } .tab { display: block; } .tabs label { display: none; } }
"""
