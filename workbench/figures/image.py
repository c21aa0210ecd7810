"""A figure as a picture: PNG or SVG, drawn by a browser of this machine that is told no address.

Needs   a figure; the package kaleido and a Chromium or Chrome.
Yields  `to_image`, the bytes of the file.

Kaleido would fetch MathJax from a server unless it is forbidden, and plotly's own
`pio.defaults.mathjax = False` does not forbid it: an unset and a false default are told apart
nowhere on the way. So kaleido is called here, with a page that holds plotly.js and nothing else. A
browser also asks for updates and the time of its own accord; it is given a proxy that is nowhere.
"""

from __future__ import annotations

import html
import json
from functools import partial
from typing import Any, Literal

import plotly.graph_objects as go

from workbench.errors import DrawingFailed

WIDTH_PX = 1100
"""Width of a picture; a page is as wide as its window."""
SECONDS = 90
"""After which a browser that has not drawn is given up."""
NOWHERE = "http://127.0.0.1:9"
"""Where the browser is told to send what it would ask of any address: nothing listens there."""

Form = Literal["png", "svg"]


def to_image(
    fig: go.Figure, form: Form = "png", *, width: int | None = None, scale: float = 2
) -> bytes:
    """The figure as PNG or SVG.

    Args:
        form: "png" or "svg".
        width: pixels; by default the figure's own, else 1,100. The height is the figure's own.
        scale: pixels of a PNG for each of the figure's.

    Raises:
        DrawingFailed: kaleido or a browser is missing, or the browser did not draw.

    Example:
        >>> to_image(figures.expert_load(load))[:4]                         # doctest: +SKIP
        b'\\x89PNG'
    """
    kaleido = _kaleido()
    size = {
        "width": width or fig.layout.width or WIDTH_PX,
        "height": fig.layout.height or 450,
        "scale": scale if form == "png" else 1,
    }
    draw = partial(
        kaleido.calc_fig_sync,
        # Plain JSON: what the page draws is what a file of the figure holds.
        json.loads(fig.to_json()),
        opts={"format": form, **size},
        kopts={"mathjax": False, "timeout": SECONDS, "proxy_server": NOWHERE},
    )
    try:
        drawn = draw()
    except Exception as error:  # a browser can fail in as many ways as there are browsers
        raise DrawingFailed(_why(error, form)) from error
    return bytes(drawn)


def _kaleido() -> Any:
    try:
        import kaleido
    except ImportError:
        raise DrawingFailed(
            "PNG and SVG need the package kaleido: pip install 'training-dynamics-workbench"
            "[figures]'; .html, .json and .csv need nothing more."
        ) from None
    return kaleido


def _why(error: BaseException, form: str) -> str:
    if type(error).__name__ == "ChromeNotFoundError":
        return (
            f"{form.upper()} needs Chromium or Chrome and none was found: install one, or set "
            "BROWSER_PATH to it; .html, .json and .csv need none."
        )
    said = " ".join(html.unescape(str(error)).split())[:200]
    return (
        f"the browser did not draw the {form.upper()} ({type(error).__name__}"
        f"{': ' + said if said else ''}). Set BROWSER_PATH to a Chromium or Chrome that starts; "
        ".html, .json and .csv need none."
    )
