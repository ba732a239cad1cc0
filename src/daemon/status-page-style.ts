/**
 * The whole style of the status page: nothing is fetched, and the page's policy names this very text by its hash. Colours follow
 * the reader's system and keep a contrast of 4.5 to 1 (https://www.w3.org/TR/WCAG22/#contrast-minimum); none of them says
 * anything that a word does not say too.
 */
export const STATUS_PAGE_STYLE = `
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --line: #dde1e7; --text: #1b2027; --quiet: #59636f;
  --good: #10672f; --good-back: #dff3e4; --bad: #a31621; --bad-back: #fde5e5; --busy: #7a4b00; --busy-back: #fcefd2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151a; --card: #1b2027; --line: #2f3742; --text: #e6eaf0; --quiet: #9aa6b5;
    --good: #7bdc98; --good-back: #15351f; --bad: #ff9d9d; --bad-back: #46191c; --busy: #f2c76b; --busy-back: #3d2f0e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 1rem; font-weight: 600; color: var(--quiet); }
.verdict { margin: .25rem 0 0; font-size: 1.5rem; font-weight: 650; line-height: 1.25; }
.verdict.good { color: var(--good); }
.verdict.bad { color: var(--bad); }
.facts { margin: .35rem 0 1.25rem; color: var(--quiet); }
.row { display: grid; gap: .15rem 1rem; grid-template-columns: minmax(0, 2.4fr) 8.5rem 5.5rem 7.5rem 7.5rem; align-items: baseline; }
.titles { padding: 0 1rem .4rem 2.1rem; font-size: .8rem; color: var(--quiet); }
ul { margin: 0; padding: 0; list-style: none; }
.database { margin-bottom: .5rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.database.bad { border-color: var(--bad); }
summary { position: relative; padding: .6rem 1rem .6rem 2.1rem; cursor: pointer; list-style: none; border-radius: .5rem; }
summary::-webkit-details-marker { display: none; }
summary::before { content: "\\25B8"; position: absolute; left: .9rem; color: var(--quiet); }
details[open] > summary::before { content: "\\25BE"; }
summary:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
.name { font-weight: 600; }
.state { justify-self: start; padding: 0 .55rem; border-radius: 1rem; font-size: .87rem; white-space: nowrap; }
.state.good { color: var(--good); background: var(--good-back); }
.state.bad { color: var(--bad); background: var(--bad-back); }
.state.busy { color: var(--busy); background: var(--busy-back); }
.label { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.trouble { display: block; margin-top: .35rem; color: var(--bad); }
.more { margin: 0 1rem 0 2.1rem; padding: .6rem 0 .8rem; border-top: 1px solid var(--line); }
dl { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: .2rem 1rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
dd ul li + li { margin-top: .15rem; }
.quiet { color: var(--quiet); }
.bad-text { color: var(--bad); }
code { font: .92em ui-monospace, "Cascadia Mono", Menlo, "DejaVu Sans Mono", monospace; }
footer { margin-top: 1.5rem; color: var(--quiet); font-size: .87rem; }
a { color: inherit; }
@media (max-width: 46rem) {
  .titles { display: none; }
  summary { padding: .55rem .8rem .55rem 1.7rem; }
  summary::before { left: .6rem; }
  .more { margin: 0 .8rem 0 1.7rem; }
  .row { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .3rem .75rem; }
  .name { grid-column: 1 / 3; }
  .state { grid-column: 3; justify-self: end; }
  .label { position: static; width: auto; height: auto; clip-path: none; display: block; font-size: .78rem; color: var(--quiet); }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { .database { break-inside: avoid; } }
`;
