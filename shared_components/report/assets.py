"""Style sheet and script of the page, inline so that the file needs nothing else."""

STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --accent: #0b6a88; --moving: #b8660a; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f4f6f8; line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 40px 56px; background: #fff; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; font-weight: 650; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 0 0 12px; max-width: 84ch; } .lead, .caption { color: var(--soft); }
nav { font-size: 14px; margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 16px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.verdict { border-left: 3px solid #2f8f57; background: #eef8f1; padding: 8px 14px; margin: 12px 0; max-width: 84ch; }
.verdict.check { border-color: #d9822b; background: #fff7ec; }
.verdict.failed { border-color: #b3261e; background: #fdeeec; }
.verdict ul { margin: 4px 0 0; padding-left: 20px; } .verdict p { margin: 6px 0 0; }
.note { border-left: 3px solid #d9822b; background: #fff7ec; padding: 8px 14px; margin: 12px 0; max-width: 84ch; }
img { display: block; max-width: 100%; height: auto; }
figure { margin: 10px 0 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 10px 0 4px; }
th, td { text-align: left; padding: 4px 18px 4px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 500; padding-left: calc(var(--depth, 0) * 18px); }
thead th { color: var(--soft); font-size: 13px; }
.metrics { min-width: 480px; } .metrics td, .metrics thead th + th { text-align: right; min-width: 92px; }
.metrics td.unit, .metrics thead th:last-child { text-align: left; color: var(--soft); padding-left: 8px; }
.group th { font-weight: 650; padding-top: 10px; }
.facts th { color: var(--soft); white-space: nowrap; } .facts td { overflow-wrap: anywhere; }
.matrix { margin: 0; } .matrix td { border: 0; text-align: right; padding: 0 14px 0 0; }
code { font: 13px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; color: var(--accent); margin-top: 8px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 4px 0 2px;
  vertical-align: -1px; border: 1px solid #0003; }
.key { white-space: nowrap; } .keys .key { margin-right: 10px; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 14px; margin: 10px 0; font-size: 14px; }
.controls button { font: inherit; padding: 4px 13px; border: 1px solid #b9c4ce; border-radius: 6px;
  background: #fff; color: inherit; cursor: pointer; }
.controls button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: #fff; }
.controls button:focus-visible, input:focus-visible { outline: 2px solid #62b6d0; outline-offset: 1px; }
.controls input { width: 240px; accent-color: var(--accent); } .shown { min-width: 15em; color: var(--soft); }
.layer figcaption { font-size: 13px; color: var(--soft); margin: 12px 0 2px; }
.layer:first-child figcaption { margin-top: 0; }
.js .stack { position: relative; width: fit-content; max-width: 100%; }
.js .layer { margin: 0; } .js .layer figcaption { display: none; }
.js .layer + .layer { position: absolute; inset: 0; }
.controls { display: none; } .js .controls { display: flex; }
@page { margin: 14mm; }
@media print {
  body { background: #fff; font-size: 11pt; } main { padding: 0; max-width: none; }
  nav, .js .controls { display: none; } h2, .keep { break-after: avoid; } section, figure, tr { break-inside: avoid; }
  h2 { margin-top: 16px; } p { max-width: none; }
  .js .layer, .js .layer + .layer { position: static; opacity: 1 !important; clip-path: none !important; }
  .js .layer figcaption { display: block; margin-top: 8px; } img { max-height: 23cm; width: auto; }
  .layer img { max-height: 7.2cm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
(function () {
  var viewer = document.getElementById("viewer");
  document.documentElement.className = "js";
  var layers = viewer.querySelectorAll(".layer"), slider = viewer.querySelector("input");
  var buttons = viewer.querySelectorAll("button"), shown = viewer.querySelector(".shown");
  var names = ["fixed", "moving before", "moved"], state = { top: 2, wipe: false, timer: 0 };
  var spans = JSON.parse(viewer.dataset.spans);
  function wiped(part) { // the left part of every picture: rectangles joined along the upper edge
    return "polygon(" + spans.map(function (s) {
      var l = 100 * s[0] + "%", r = 100 * (s[0] + part * (s[1] - s[0])) + "%";
      return l + " 0," + r + " 0," + r + " 100%," + l + " 100%," + l + " 0";
    }).join(",") + ")";
  }
  function draw() {
    var part = slider.value / 100;
    for (var i = 1; i < 3; i++) {
      var on = i === state.top;
      layers[i].style.opacity = on ? (state.wipe ? 1 : part) : 0;
      layers[i].style.clipPath = on && state.wipe ? wiped(part) : "none";
    }
    buttons.forEach(function (b) {
      var d = b.dataset, on = d.top ? +d.top === state.top : d.wipe ? state.wipe === (d.wipe === "1") : !!state.timer;
      b.setAttribute("aria-pressed", on);
    });
    var name = names[state.top];
    shown.textContent = part <= 0 ? names[0] : part >= 1 ? name
      : state.wipe ? name + " left, fixed right" : Math.round(100 * part) + " % " + name + " over fixed";
  }
  function flip() { slider.value = slider.value > 50 ? 0 : 100; draw(); }
  function flicker(on) { clearInterval(state.timer); state.timer = on ? setInterval(flip, 600) : 0; draw(); }
  viewer.addEventListener("click", function (event) {
    var d = event.target.dataset;
    if (d.top) { state.top = +d.top; if (+slider.value === 0) slider.value = 100; draw(); }
    else if (d.wipe) { state.wipe = d.wipe === "1"; draw(); }
    else if (d.flicker) flicker(!state.timer);
  });
  slider.addEventListener("input", function () { if (state.timer) flicker(false); draw(); });
  draw();
})();
"""
