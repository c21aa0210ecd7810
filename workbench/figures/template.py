"""The look of every figure: one plotly template, the colours of arms and the two colour scales.

Needs   names of arms.
Yields  TEMPLATE, a plotly template; `arm_colors`; the names of the scales for magnitude and for
        ratios.

Colours are those of Okabe and Ito (2008), which readers with any of the common colour-vision
deficiencies can tell apart. Yellow is kept out of the arms' hands: it means "dead expert" wherever
it appears.
Source: https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import plotly.graph_objects as go

INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e7e7e7"
TRUNK = "#555555"
"""History that all arms share, and lines that belong to no arm."""

DEAD = "#F0E442"
"""An expert that got no token at all."""

MAGNITUDE = "cividis"
RATIO = "RdBu_r"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif"

_KNOWN = {"main": "#000000", "continue": "#0072B2", "curriculum": "#D55E00", "code": "#009E73"}
_FREE = ("#CC79A7", "#56B4E9", "#E69F00", "#009E73", "#0072B2", "#D55E00")


def arm_colors(arms: Iterable[str]) -> dict[str, str]:
    """Arm name -> hex colour. The same name gets the same colour in every figure of every run.

    Names that the workbench gives itself are fixed; any other name picks by its checksum and moves
    on only where two arms of the same figure would meet. After the palette is used up colours
    repeat.

    Example:
        >>> arm_colors(["continue", "curriculum"])
        {'continue': '#0072B2', 'curriculum': '#D55E00'}
    """
    names = list(arms)
    chosen = {name: _KNOWN[name] for name in names if name in _KNOWN}
    # Sorted, so that the colour does not depend on the order in which the arms were given.
    for name in sorted(set(names) - set(chosen)):
        start = crc32(name.encode("utf-8", "replace"))
        ring = [_FREE[(start + i) % len(_FREE)] for i in range(len(_FREE))]
        chosen[name] = next((c for c in ring if c not in chosen.values()), ring[0])
    return {name: chosen[name] for name in names}


def faint(color: str, alpha: float = 0.18) -> str:
    """A hex colour as rgba(), for the band around a line of that colour.

    Example:
        >>> faint("#0072B2")
        'rgba(0,114,178,0.18)'
    """
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


_AXIS = {
    "showgrid": True,
    "gridcolor": GRID,
    "gridwidth": 1,
    "zeroline": False,
    "showline": True,
    "linecolor": "#bdbdbd",
    "ticks": "outside",
    "ticklen": 3,
    "tickcolor": "#bdbdbd",
    "tickfont": {"size": 11, "color": MUTED},
    "title": {"font": {"size": 12, "color": INK}, "standoff": 6},
    "automargin": True,
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "colorway": list(_KNOWN.values()),
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left", "namelength": -1},
        "title": {
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 14, "t": 12},
            "font": {"size": 16, "color": INK},
            "subtitle": {"font": {"size": 12, "color": MUTED}},
        },
        "legend": {"font": {"size": 12}, "itemsizing": "constant", "tracegroupgap": 4},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 64, "r": 24, "t": 60, "b": 52},
    }
)
