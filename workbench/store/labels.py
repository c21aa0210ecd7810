"""The labels of the fixed dims, and what the root of a store says of itself.

Needs   a layout; the root group of a writable session.
Yields  `write_labels`; `label_values`, the labels of one dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr

from workbench.store.arrays import create_array
from workbench.store.layout import Layout
from workbench.store.schema import COORDINATES, GROWING, SCHEMA, VERSION
from workbench.store.snapshot import ROOT


def label_values(layout: Layout, group: str, name: str) -> np.ndarray | None:
    """The labels of a fixed dim, or None where the layout leaves them open."""
    tokens = layout.tokens
    values: dict[str, Any] = {
        "layer": layout.layers,
        "expert": range(layout.experts),
        "expert2": range(layout.experts),
        "domain": tokens and tokens.domains if group == "activations" else layout.domains,
        "task": [task.name for task in layout.tasks],
        "family": [task.family for task in layout.tasks],
        "chance": [task.chance for task in layout.tasks],
        "item_count": [task.items for task in layout.tasks],
        "token_id": tokens and tokens.ids,
    }
    if not values[name]:
        return None
    dtype = COORDINATES[group][name].dtype
    return np.array(values[name], dtype=object if dtype == "str" else dtype)


def write_labels(root: zarr.Group, layout: Layout, attrs: Mapping[str, Any]) -> None:
    """Write the layout: root attributes, and in every group the labels that are stated and not
    there yet.
    """
    note: dict[str, Any] = {"schema": VERSION, "layout": layout.to_json(), "attrs": dict(attrs)}
    root.attrs[ROOT] = note
    for name in SCHEMA:
        group = root.require_group(name)
        off_axis = [n for n, v in COORDINATES[name].items() if v.dims != (n,)]
        if off_axis:
            # Tells xarray that these are labels although no axis has their name.
            group.attrs["coordinates"] = " ".join(off_axis)
        for label, variable in COORDINATES[name].items():
            if variable.dims[0] in GROWING[name] or label in group:
                continue
            values = label_values(layout, name, label)
            if values is not None:
                create_array(group, label, variable, layout.sizes)[:] = values
