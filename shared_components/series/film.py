"""The moving part of a series' report: all frames in one picture a row, drawn frame by frame by a small script."""

from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
from PIL import Image

from .screen import Screen

MOST_FRAMES = 240
_FASTEST, _SLOWEST, _USUAL = 25.0, 2.0, 10.0  # frames a second

STYLE = """
.reel { display: flex; flex-wrap: wrap; gap: 10px; margin: 10px 0; }
.reel figure { margin: 0; flex: 1 1 170px; max-width: 340px; }
.reel canvas { width: 100%; height: auto; display: block; background: #000; }
.reel figcaption { font-size: 13px; color: var(--soft); margin: 0 0 3px; }
.reel .gain { filter: brightness(2.5); }
.sheets { display: none; }
.controls select { font: inherit; } .controls input { flex: 1 1 240px; }
"""

SCRIPT = """
(function () {
  var film = document.getElementById("film");
  if (!film) return;
  document.documentElement.className = "js";
  var d = JSON.parse(film.querySelector(".reel").dataset.film), canvases = film.querySelectorAll("canvas");
  var sheets = {}, slider = film.querySelector("input"), button = film.querySelector("button");
  var speed = film.querySelector("select"), shown = film.querySelector(".shown"), at = 0, timer = 0;
  film.querySelectorAll(".sheets img").forEach(function (i) { sheets[i.dataset.name] = i; });
  function tile(context, name) {
    var k = name === "fixed" ? 0 : at, columns = name === "fixed" ? 1 : d.columns;
    context.drawImage(sheets[name], (k % columns) * d.width, Math.floor(k / columns) * d.height, d.width, d.height,
      0, 0, d.width, d.height);
  }
  function draw() {
    canvases.forEach(function (c) {
      var context = c.getContext("2d"), names = c.dataset.shows.split(" ");
      context.globalCompositeOperation = "source-over";
      tile(context, names[0]);
      if (names[1]) { context.globalCompositeOperation = "difference"; tile(context, names[1]); }
    });
    slider.value = at;
    var number = d.numbers[at], time = d.seconds ? ", " + (number * d.seconds).toFixed(2) + " s" : "";
    shown.textContent = "frame " + number + time + (number === d.fixed ? " (fixed)" : "");
  }
  function step() { at = (at + 1) % d.numbers.length; draw(); }
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(step, 1000 / (d.rate * speed.value)) : 0;
    button.textContent = on ? "Pause" : "Play";
  }
  button.addEventListener("click", function () { play(!timer); });
  speed.addEventListener("change", function () { if (timer) play(true); });
  slider.addEventListener("input", function () { play(false); at = +slider.value; draw(); });
  window.addEventListener("load", function () {
    draw();
    play(!window.matchMedia("(prefers-reduced-motion: reduce)").matches);
  });
})();
"""

_PANES = (
    ("Fixed", "fixed", ""),
    ("Moving", "moving", ""),
    ("Moved", "moved", ""),
    ("Difference before", "fixed moving", "gain"),
    ("Difference after", "fixed moved", "gain"),
)


def _jpeg(picture: np.ndarray, quality: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _shrunk(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _sheet(stack: np.ndarray, size: tuple[int, int], columns: int) -> np.ndarray:
    """Lay frames (N, rows, columns) side by side, row after row."""
    width, height = size
    whole = np.zeros((math.ceil(len(stack) / columns) * height, columns * width), np.uint8)
    for k, frame in enumerate(stack):
        top, left = k // columns * height, k % columns * width
        whole[top : top + height, left : left + width] = _shrunk(frame, size)
    return whole


def film(screen: Screen, longest: int, quality: int) -> str:
    """Return the HTML of the film.

    Args:
        screen: the frames.
        longest: pixels along the longer side of a picture.
        quality: of the JPEG.
    """
    total = len(screen.moving)
    numbers = list(range(0, total, math.ceil(total / MOST_FRAMES)))
    w_mm, h_mm = screen.size_mm
    size = tuple(max(8, round(longest * side / max(w_mm, h_mm))) for side in (w_mm, h_mm))
    columns = math.ceil(math.sqrt(len(numbers)))
    seconds = screen.series.seconds
    rate = _USUAL if seconds is None else min(max(1 / seconds, _SLOWEST), _FASTEST)
    facts = {
        "width": size[0], "height": size[1], "columns": columns, "numbers": numbers,
        "fixed": screen.fixed_number, "seconds": seconds, "rate": rate,
    }  # fmt: skip
    stacks = {"moving": screen.moving, "moved": screen.moved}
    sheets = {name: _sheet(stack[numbers], size, columns) for name, stack in stacks.items()}
    sheets["fixed"] = _shrunk(screen.fixed, size)
    pictures = "".join(
        f'<img data-name="{name}" alt="" src="data:image/jpeg;base64,{_jpeg(sheet, quality)}">'
        for name, sheet in sheets.items()
    )
    panes = "".join(
        f'<figure><figcaption>{words}</figcaption><canvas class="{kind}" width="{size[0]}" height="{size[1]}" '
        f'data-shows="{shows}"></canvas></figure>'
        for words, shows, kind in _PANES
    )
    controls = (
        '<div class="controls"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(numbers) - 1}" value="0" aria-label="Frame">'
        '<select aria-label="Speed"><option value="0.25">¼ speed</option><option value="0.5">½ speed</option>'
        '<option value="1" selected>speed 1</option><option value="2">speed 2</option></select>'
        '<span class="shown" aria-live="off"></span></div>'
    )
    data = json.dumps(facts).replace('"', "&quot;")
    return f'{controls}<div class="reel" data-film="{data}">{panes}</div><div class="sheets">{pictures}</div>'
