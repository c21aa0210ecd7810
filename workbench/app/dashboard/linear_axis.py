"""Linear axis: one clock for all charts of a page, as the scrubber has it.

Needs   a figure's layout.
Yields  `linear`, which puts its logarithmic x axes, and the texts on them, on linear ones.

A figure that stands alone draws a whole run over the logarithm of its steps (figures/clock.py).
Here it stands under others, images among them, and under a slider that counts steps: a place on one
must be the same step on all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def linear(layout: Mapping[str, Any]) -> dict[str, Any]:
    """A layout as JSON, changed.

    Example:
        >>> found = linear({
        ...     "xaxis": {"type": "log", "range": [0, 2]},
        ...     "annotations": [{"x": 2, "xref": "x", "text": "fork"}],
        ... })
        >>> found["xaxis"], found["annotations"][0]["x"]
        ({'type': 'linear', 'range': [1, 100]}, 100.0)
    """
    found, logarithmic = dict(layout), set()
    for name, axis in layout.items():
        if name.startswith("xaxis") and axis.get("type") == "log":
            logarithmic.add(name.replace("axis", ""))
            found[name] = {k: v for k, v in axis.items() if k != "dtick"} | {"type": "linear"}
            if axis.get("range") is not None:
                found[name]["range"] = [10**end for end in axis["range"]]
    # Of a text plotly wants the logarithm of its place, of a line the place.
    found["annotations"] = [
        {**a, "x": 10.0 ** a["x"]} if a.get("xref") in logarithmic else a
        for a in layout.get("annotations", ())
    ]
    return found
