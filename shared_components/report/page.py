"""The page: sections in reading order, pictures embedded, nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import figures
from .assets import SCRIPT, STYLE
from .data import ReportData
from .figures import ERROR_COLOUR, FIXED_COLOUR, FOLD_COLOUR, MOVING_COLOUR, Views
from .sheet import Drawing
from .tables import facts_table, metrics_table, number, text, verdict_banner

# Nothing may be fetched and nothing sent, whatever a name in a file header tries to smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_DIRECTION = (
    "The field gives for each point of the fixed image the way to the matching point of the moving image (pull-back): "
    "moved(p) = moving(p + ddf(p)). Points go from the fixed to the moving image through it, images the other way."
)
_UNITS = (
    "Displacements are in mm. Positions and vectors on this page are RAS mm; a field saved as NIfTI or read by ITK, "
    "ANTs and Slicer holds LPS mm, that is, x and y with the opposite sign."
)


def picture(drawing: Drawing, alternative: str) -> str:
    """Return a picture as an element that holds its bytes."""
    code = base64.b64encode(drawing.png).decode("ascii")
    size = f'width="{drawing.width}" height="{drawing.height}"'
    return f'<img src="data:image/png;base64,{code}" {size} alt="{text(alternative)}">'


def section(key: str, heading: str, caption: str, body: str) -> str:
    """Return a section of a page; ``caption`` and ``body`` are HTML."""
    words = f'<p class="caption">{caption}</p>' if caption else ""
    return f'<section id="{key}"><div class="keep"><h2>{heading}</h2>{words}</div>{body}</section>'


def figure(key: str, heading: str, caption: str, drawing: Drawing) -> str:
    """Return a section that is one picture."""
    return section(key, heading, caption, f"<figure>{picture(drawing, heading)}</figure>")


def _swatch(colour: str, words: str) -> str:
    return f'<span class="key"><span class="swatch" style="background:{colour}"></span>{words}</span>'


def _keys(*words: str) -> str:
    return f'<span class="keys">{" ".join(words)}</span>'


def _viewer(views: Views) -> str:
    names = (
        ("fixed", "Fixed"),
        ("moved_before", "Moving, before registration"),
        ("moved", "Moved, after registration"),
    )
    rows = [(words, figures.image_row(views, name)) for name, words in names]
    layers = "".join(
        f'<figure class="layer"><figcaption>{words}</figcaption>{picture(row, words)}</figure>' for words, row in rows
    )
    controls = (
        '<div class="controls"><span>Over the fixed image:</span>'
        '<button type="button" data-top="1">Before</button><button type="button" data-top="2">After</button>'
        '<span aria-hidden="true">·</span>'
        '<button type="button" data-wipe="0">Blend</button><button type="button" data-wipe="1">Wipe</button>'
        '<input type="range" min="0" max="100" value="100" aria-label="From fixed to moving">'
        '<button type="button" data-flicker="1">Flicker</button><span class="shown" aria-live="off"></span></div>'
    )
    spans = [list(span) for span in rows[0][1].spans]
    caption = "Slide or flicker between the fixed image and the moving one, as it came and as it was moved."
    body = f'<div id="viewer" data-spans="{spans}">{controls}<div class="stack">{layers}</div></div>'
    return section("images", "Fixed and moving", caption, body)


def _orientation(views: Views) -> str:
    if views.data.frame.ndim == 2:
        return (
            "Letters name the world axes x and y (RAS mm): +x is on the left and +y on top. A picture file, whose "
            "columns run to −x and rows to −y, so stands as in any viewer."
        )
    words = (
        "Radiological convention: the patient's right is on the left of axial and coronal slices, anterior on the left "
        "of sagittal ones. Slices lie near the centre of mass of the fixed image; their position is given in RAS mm."
    )
    degrees = views.display.oblique_degrees
    if degrees > 0.5:
        words += f" The fixed grid is oblique by {degrees:.0f}°; slices follow the grid, letters the nearest body axis."
    return words


def _beyond(data: ReportData) -> str:
    return "" if data.initial_world is None else " The initial transform is taken out: this is what registration added."


def _difference_section(views: Views) -> str:
    caption = (
        "Fixed minus moving, on one colour scale. Where the two images have different contrast, read the outlines, not "
        "the colours."
    )
    return figure("difference", "Difference", caption, figures.difference(views))


def _grid_section(views: Views) -> str:
    caption = (
        "Straight lines of the fixed image, drawn where the transform sends them, over the fixed image. "
        f"{'' if views.data.frame.ndim == 2 else 'Only movement within the slice shows. '}Lines that cross are folds."
        + _beyond(views.data)
    )
    return figure("grid", "Deformed grid", caption, figures.deformed_grid(views))


def _displacement_section(views: Views) -> str:
    drawing, largest = figures.displacement(views)
    caption = f"Length of the displacement in mm; at most {number(largest)} mm shown." + _beyond(views.data)
    return figure("displacement", "Displacement", caption, drawing)


def _jacobian_section(views: Views) -> str:
    drawing, folds = figures.jacobian(views)
    size, parts = ("Area", "pixels") if views.data.frame.ndim == 2 else ("Volume", "voxels")
    whole = ""
    if views.data.jacobian is not None:
        count = int((~(views.data.jacobian > 0)).sum())
        whole = f", {count:,} of {views.data.jacobian.size:,} in the whole image"
    caption = (
        f"{size} in the moving image per {size.lower()} in the fixed one, on a log scale. Above 1 tissue is shrunk "
        f"onto the fixed image, below 1 it is stretched. {_swatch(FOLD_COLOUR, 'Folds (determinant ≤ 0)')}: {folds:,} "
        f"{parts} shown{whole}."
    )
    return figure("jacobian", "Jacobian determinant", caption, drawing)


def _labels_section(views: Views) -> str:
    many = any(
        np.unique(views.cut(plane, views.data.fixed_label)).size > figures.MOST_LABELS + 1 for plane in views.planes
    )
    which = f" The {figures.MOST_LABELS} largest labels of each picture are drawn." if many else ""
    caption = f"{_keys(_swatch(FIXED_COLOUR, 'fixed'), _swatch(MOVING_COLOUR, 'moving'))} over the fixed image.{which}"
    return figure("labels", "Label outlines", caption, figures.label_outlines(views))


def _landmark_section(views: Views) -> str:
    data = views.data
    words = ['<span class="key">○ landmark of the fixed image</span>']
    if data.mapped_points_mm is not None:
        words.append(_swatch(FIXED_COLOUR, "arrow to where it was mapped"))
    if data.moving_points_mm is not None:
        words.append(_swatch(MOVING_COLOUR, "+ where it lies in the moving image"))
    if data.moving_points_mm is not None and data.mapped_points_mm is not None:
        words.append(_swatch(ERROR_COLOUR, "what is left between the two"))
    drawn = "Drawn on" if data.frame.ndim == 2 else "Projected onto"
    caption = f"{_keys(*words)}<br>{drawn} the moving image as it was before registration"
    count = data.fixed_points_mm.shape[0]
    most = figures.MOST_ARROWS
    caption += f", the {most} of {count} nearest to each slice." if count > most and data.frame.ndim == 3 else "."
    return figure("landmarks", "Landmarks", caption + _landmark_error(data), figures.landmarks(views))


def _landmark_error(data: ReportData) -> str:
    if data.moving_points_mm is None or data.mapped_points_mm is None or not len(data.fixed_points_mm):
        return ""
    start = np.linalg.norm(data.without_initial(data.moving_points_mm) - data.fixed_points_mm, axis=1).mean()
    end = np.linalg.norm(data.moving_points_mm - data.mapped_points_mm, axis=1).mean()
    return f" Mean distance {number(float(start))} mm before, {number(float(end))} mm after."


def _sections(views: Views) -> list[str]:
    data = views.data
    parts = []
    if data.metrics:
        parts.append(section("metrics", "Metrics", "", metrics_table(data.metrics)))
    parts.append(_viewer(views))
    tiles = "Tiles of the fixed and of the moving image in turn: edges that run on across tiles agree."
    parts.append(figure("checkerboard", "Checkerboard", tiles, figures.checkerboard(views)))
    parts += [_difference_section(views), _grid_section(views), _displacement_section(views), _jacobian_section(views)]
    if data.expected_error_mm is not None:
        words = "How far the field may be wrong, from what the network itself contradicts; before any refinement."
        parts.append(figure("uncertainty", "Expected error", words, figures.expected_error(views)))
    if data.has_labels:
        parts.append(_labels_section(views))
    if data.has_points:
        parts.append(_landmark_section(views))
    spacing = " × ".join(number(float(step)) for step in data.frame.spacing)
    shape = " × ".join(str(n) for n in data.frame.shape)
    facts = {"fixed grid": f"{shape} {'pixels' if data.frame.ndim == 2 else 'voxels'} of {spacing} mm", **data.run}
    facts.setdefault("direction", _DIRECTION)
    facts.setdefault("units", _UNITS)
    parts.append(section("run", "Run", "", facts_table(facts)))
    return parts


_LINKS = (
    ("metrics", "Metrics"), ("images", "Images"), ("checkerboard", "Checkerboard"), ("difference", "Difference"),
    ("grid", "Grid"), ("displacement", "Displacement"), ("jacobian", "Jacobian"),
    ("uncertainty", "Expected error"), ("labels", "Labels"), ("landmarks", "Landmarks"), ("run", "Run"),
)  # fmt: skip


def build_page(data: ReportData, dpi: int) -> str:
    """Return the whole HTML document as text.

    Args:
        data: what to show.
        dpi: resolution of the pictures.
    """
    views = Views.of(data, dpi)
    return document(data.title, _orientation(views), data.notes, _sections(views), _LINKS, verdict=data.verdict)


def document(
    title: str,
    lead: str,
    notes: Sequence[str],
    sections: Sequence[str],
    links: Sequence[tuple[str, str]],
    style: str = STYLE,
    script: str = SCRIPT,
    verdict: Mapping[str, Any] | None = None,
) -> str:
    """Return a page that loads nothing from anywhere.

    Args:
        title: heading.
        lead: HTML of the first paragraph.
        notes: sentences to be read first.
        sections: HTML, see ``section``.
        links: (key, words) of sections, for a line of links to those that there are.
        style: CSS.
        script: JavaScript.
        verdict: of the result, see ``ReportData``.
    """
    there = [(key, word) for key, word in links if any(f'<section id="{key}"' in s[:40] for s in sections)]
    line = "".join(f'<a href="#{key}">{word}</a>' for key, word in there)
    warnings = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{style}</style></head>\n<body><main>"
        f'<h1>{text(title)}</h1>{verdict_banner(verdict)}<p class="lead">{lead}</p>{warnings}<nav>{line}</nav>\n'
        + "\n".join(sections)
        + f"</main><script>{script}</script></body></html>\n"
    )
