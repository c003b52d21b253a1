"""Parts of our pages: one HTML file each that needs nothing else, with videos and posters in it."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np
from jaxtyping import UInt8

from data_loaders.decode import encode_preview
from data_loaders.page_style import STYLE

_PANEL_HEIGHT = 240
"""Pixels of the height of a panel, about."""


def document(title: str, *, kind: str, body: str) -> str:
    """A whole page.

    Args:
        title: Text.
        kind: What the page is about, text, above the title.
        body: HTML.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><p class="eyebrow">{escape(kind)}</p><h1>{escape(title)}</h1></header>
<main>
{body}
</main>
</body>
</html>
"""


def tiles(facts: Mapping[str, str]) -> str:
    """Facts side by side, name above value."""
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{shown}</dl>'


def bars(title: str, *, counts: Mapping[str, int]) -> str:
    """A histogram."""
    most = max(counts.values())
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td><i style="width:{100 * count / most:.1f}%"></i></td>'
        f"<td>{count:,}</td></tr>"
        for name, count in counts.items()
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f"<table class=bars><tbody>{rows}</tbody></table></figure>"
    )


def damaged(name: str, *, reason: str) -> str:
    """In place of a sample that cannot be shown."""
    return (
        f'<article class="damaged"><h3>{escape(name)}</h3><p class="badge">damaged</p>'
        f"<p>{escape(reason)}</p></article>"
    )


def moving_picture(panels: Mapping[str, UInt8[np.ndarray, "t h w 3"]], *, fps: float) -> str:
    """Videos of one size side by side, with their names below.

    Args:
        panels: Name -> frames that `fit` made.
        fps: Frames per second.
    """
    rgb = side_by_side(list(panels.values()))
    poster = cv2.imencode(".jpg", rgb[len(rgb) // 2][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    video = b64encode(encode_preview(rgb, fps=fps)).decode()
    image = b64encode(poster.tobytes()).decode()
    labels = "".join(f"<span>{escape(name)}</span>" for name in panels)
    height, width = rgb.shape[1:3]
    return f"""<video autoplay loop muted playsinline width="{width}" height="{height}"
 poster="data:image/jpeg;base64,{image}" src="data:video/mp4;base64,{video}"></video>
<div class="panels">{labels}</div>"""


def fit(rgb: UInt8[np.ndarray, "t h w 3"], *, exact: bool) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Scale to about `_PANEL_HEIGHT`: whole pixels when enlarged, smooth when reduced.

    `exact`: never mix colours.
    """
    height, width = rgb.shape[1:3]
    if height <= _PANEL_HEIGHT:
        factor = max(1, _PANEL_HEIGHT // height)
        return rgb.repeat(factor, axis=1).repeat(factor, axis=2)
    size = (max(1, round(width * _PANEL_HEIGHT / height)), _PANEL_HEIGHT)
    how = cv2.INTER_NEAREST if exact else cv2.INTER_AREA
    return np.stack([cv2.resize(frame, size, interpolation=how) for frame in rgb])


def side_by_side(panels: Sequence[UInt8[np.ndarray, "t h w 3"]]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Panels in a row; even sizes, as 4:2:0 needs, by repeating the last row or column."""
    row = np.concatenate(panels, axis=2)
    height, width = row.shape[1:3]
    return np.pad(row, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
