"""Every parameter has its area, every change its place on one axis."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures import caption_of, weight_changes
from workbench.figures.weight_change_map import MOST_EXPERTS

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def moved(layers=3, experts=4, sizes=True):
    """Layer l's experts moved by 0.1 (l + 1), its router not at all; the embeddings by 0.5."""
    rows = [
        ("model", "model", -1, 0.2, 0), ("experts", "experts", -1, 0.25, 0),
        ("router", "router", -1, 0.0, 0), ("embeddings", "embeddings", -1, 0.5, 300),
    ]  # fmt: skip
    for layer in range(layers):
        rows.append((f"blocks.{layer} experts", "experts", layer, 0.1 * (layer + 1), 100))
        rows.append((f"blocks.{layer} router", "router", layer, 0.0, 10))
    names, kinds, of_layer, change, counts = zip(*rows, strict=True)
    ds = xr.Dataset(
        {
            "change": ("part", np.array(change)),
            "expert_change": (
                ("layer", "expert"),
                np.full((layers, experts), 0.1) * np.arange(1, layers + 1)[:, None],
            ),
        },
        coords={
            "part": list(names), "kind": ("part", list(kinds)),
            "layer_of_part": ("part", list(of_layer)), "layer": np.arange(layers),
            "expert": np.arange(experts),
        },
        attrs={"run": "demo"},
    )  # fmt: skip
    return ds.assign_coords(parameters=("part", list(counts))) if sizes else ds


def tree(fig):
    return next(t for t in fig.data if t.type == "treemap")


def test_the_area_of_every_cell_is_its_parameters_and_parts_fill_their_whole():
    cells = tree(weight_changes(moved()))
    size = dict(zip(cells.ids, cells.values, strict=True))
    assert size["model"] == 300 + 3 * 110
    assert size["layer 1"] == 110
    children = {}
    for id, parent in zip(cells.ids, cells.parents, strict=True):
        children.setdefault(parent, []).append(size[id])
    for id, parts in children.items():
        if id:
            assert sum(parts) == pytest.approx(size[id])
    assert len([id for id in cells.ids if id.count("/") == 2]) == 12


def test_a_part_that_moved_further_is_lighter_and_what_only_holds_others_is_grey():
    cells = tree(weight_changes(moved()))
    colour = dict(zip(cells.ids, cells.marker.colors, strict=True))

    def light(id):
        return sum(map(float, colour[id][4:-1].split(",")))

    ladder = [light(f"layer {i}/blocks.{i} experts") for i in range(3)]
    assert light("layer 0/blocks.0 router") < ladder[0] < ladder[1] < ladder[2]
    assert light("outside the blocks/embeddings") > ladder[2]
    assert colour["layer 1"] == "#ececec"


def test_the_dots_are_the_same_numbers_with_the_kind_that_moved_most_on_top():
    fig = weight_changes(moved())
    assert list(fig.layout.yaxis.ticktext) == ["embeddings", "experts", "router"]
    dots = [
        t for t in fig.data if t.type == "scatter" and t.marker.symbol is None and t.x != (None,)
    ]
    assert list(dots[1].x) == pytest.approx([0.1, 0.2, 0.3])
    rings = [t for t in fig.data if t.type == "scatter" and t.marker.symbol == "circle-open"]
    assert [t.x[0] for t in rings] == [0.5, 0.25, 0.0]
    [line] = fig.layout.shapes
    assert line.x0 == 0.2


def test_the_sentence_names_the_stretch_the_kinds_and_the_part_of_a_block():
    over = moved().expand_dims(checkpoint=[80, 100]).assign_coords(against=("checkpoint", [80, 80]))
    assert caption_of(weight_changes(over)).sentence == (
        "From step 80 to 100 the model moved by 0.2 of its own norm. Of its kinds embeddings moved "
        "most, by 0.5, and router least, by 0. Of 6 parts of blocks it is the experts of layer 2 "
        "that moved most, by 0.3."
    )
    assert "from step 80 to 80" in caption_of(weight_changes(over, checkpoint=80)).title
    with pytest.raises(SchemaError, match="no checkpoint 70; there are"):
        weight_changes(over, checkpoint=70)


def test_the_table_holds_every_part_and_expert_with_its_parameters():
    table = caption_of(weight_changes(moved())).table
    assert table.columns == ("part", "kind", "layer", "change (share of its norm)", "parameters")
    assert len(table.rows) == 10 + 12
    assert ("blocks.1 experts", "experts", 1, 0.2, 100) in table.rows


def test_uncounted_parameters_have_equal_areas_and_the_notes_say_so():
    fig = weight_changes(moved(sizes=False))
    assert tree(fig).values[0] == 7
    assert "the same for all" in caption_of(fig).notes[0]


def test_a_part_without_a_size_is_grey_and_counted():
    ds = moved()
    ds["change"][5] = np.nan
    fig = weight_changes(ds)
    assert "Grey: 1 part that had no size before." in caption_of(fig).notes
    ds["change"][:] = np.nan
    assert "No part has a size" in caption_of(weight_changes(ds)).sentence


def test_more_experts_than_can_be_seen_are_one_cell_a_layer():
    fig = weight_changes(moved(layers=24, experts=64))
    assert MOST_EXPERTS < 24 * 64
    assert not [id for id in tree(fig).ids if id.count("/") == 2]
    assert 300 < fig.layout.height < 700


def test_hostile_names_are_text():
    ds = moved(layers=1)
    ds = ds.assign_coords(kind=("part", [EVIL if k == "router" else k for k in ds.kind.values]))
    fig = weight_changes(ds)
    texts = [*tree(fig).labels, *tree(fig).text, *fig.layout.yaxis.ticktext]
    assert all("<script" not in t and "%{" not in t for t in texts)


def test_something_else_is_refused():
    with pytest.raises(SchemaError, match=r"expected change \(part\) with kind"):
        weight_changes(xr.Dataset({"change": ("part", [1.0])}))
    with pytest.raises(SchemaError, match="of no checkpoint"):
        weight_changes(moved().expand_dims(checkpoint=[1]).isel(checkpoint=[]))
