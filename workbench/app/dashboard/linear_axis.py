"""Linear axis: one clock for all charts of a page, as the scrubber has it.

Needs   a figure.
Yields  `linear`, which puts its logarithmic x axes, and the texts on them, on linear ones.

A figure that stands alone draws a whole run over the logarithm of its steps (figures/clock.py).
Here it stands under others, images among them, and under a slider that counts steps: a place on one
must be the same step on all.
"""

from __future__ import annotations

import plotly.graph_objects as go


def linear(fig: go.Figure) -> None:
    """Changes the figure in place.

    Example:
        >>> fig = go.Figure(go.Scatter(x=[1, 100], y=[0, 1]))
        >>> _ = fig.update_xaxes(type="log").add_annotation(x=2, y=1, text="fork", xref="x")
        >>> linear(fig)
        >>> fig.layout.xaxis.type, fig.layout.annotations[0].x
        ('linear', 100.0)
    """
    logarithmic = set()
    for axis in fig.select_xaxes():
        if axis.type == "log":
            logarithmic.add(axis.plotly_name.replace("axis", ""))
            limits = None if axis.range is None else [10**end for end in axis.range]
            axis.update(type="linear", dtick=None, range=limits)
    for text in fig.layout.annotations:
        # Of a text plotly wants the logarithm of its place, of a line the place.
        if text.xref in logarithmic:
            text.x = 10.0**text.x
