"""What a router is worth in another body is read off a grid."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError
from workbench.figures import caption_of, router_grid

EVIL = "<script>alert(1)</script><b>%{x}</b>, &\"'"


def grid(values, tasks=None, clear=()):
    """accuracy[router, body]; changes are clear of 0 in the cells `clear`."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    steps = np.arange(n) * 80
    change = values - np.diagonal(values, axis1=-2, axis2=-1)[..., None, :]
    low, high = change - 2, change + 2
    for i, j in clear:
        low[..., i, j], high[..., i, j] = change[..., i, j] - 0.01, change[..., i, j] + 0.01
    dims = (("task",) if tasks else ()) + ("router_from", "body_from")
    ds = xr.Dataset(
        {
            "accuracy": (dims, values), "accuracy_change": (dims, change),
            "accuracy_change_low": (dims, low), "accuracy_change_high": (dims, high),
        },
        coords={"router_from": steps, "body_from": steps},
        attrs={"n": 64, "n_meaning": "items of each task", "run": "demo", "rows": 9},
    )  # fmt: skip
    return ds.assign_coords(task=list(tasks)) if tasks else ds


def heat(fig):
    return next(t for t in fig.data if t.type == "heatmap")


ROUTING = [[0.1, 0.1, 0.2], [0.5, 0.5, 0.5], [0.8, 0.8, 0.9]]


def test_a_row_is_a_router_a_column_a_body_and_the_value_stands_in_the_cell():
    fig = router_grid(grid(ROUTING))
    np.testing.assert_array_equal(heat(fig).z, ROUTING)
    assert heat(fig).text[2][0] == "0.8"
    assert list(fig.layout.xaxis.ticktext) == ["step 0", "step 80", "step 160"]
    assert fig.layout.xaxis.title.text == "body of"
    told = heat(fig).customdata[2][0]
    assert told.startswith("router of step 160<br>body of step 0<br>accuracy 0.8")
    assert "+0.70 [−1.30, +2.70] against the body's own router" in told
    assert told.endswith("n = 64 items of each task")


def test_the_sentence_says_how_much_of_the_gap_each_half_recovers():
    assert caption_of(router_grid(grid(ROUTING, clear=[(2, 0)]))).sentence == (
        "From step 0 to step 160 the accuracy goes from 0.1 to 0.9. The late router in the early "
        "body gives 0.8 (+0.70 [+0.69, +0.71]), 88 % of the gap; the early router in the late body "
        "0.2 (−0.70 [−2.70, +1.30]; includes 0), 12 % of the gap kept."
    )


def test_where_nothing_was_gained_no_share_of_a_gap_is_told():
    said = caption_of(router_grid(grid([[0.5, 0.4], [0.6, 0.5]]))).sentence
    assert "%" not in said
    assert "there is no gain to be recovered" in said
    said = caption_of(router_grid(grid([[0.5, 0.4], [0.6, 0.51]]))).sentence
    assert "%" not in said


def test_a_frame_stands_around_a_change_that_is_clear_of_0_and_only_there():
    fig = router_grid(grid(ROUTING, clear=[(2, 0), (0, 2)]))
    frames = {(round(s.y0 + 0.46), round(s.x0 + 0.46)) for s in fig.layout.shapes}
    assert frames == {(2, 0), (0, 2)}
    assert "of 6 such intervals about one in twenty" in " ".join(caption_of(fig).notes)


def test_of_several_tasks_the_one_whose_ends_differ_most_is_shown_unless_one_is_named():
    flat = np.full((3, 3), 0.5)
    ds = grid([flat, ROUTING], tasks=("code/add", "logic/chain"))
    assert "accuracy on logic/chain" in caption_of(router_grid(ds)).title
    assert heat(router_grid(ds, "code/add")).z[2][0] == 0.5
    with pytest.raises(SchemaError, match="no task 'code/mul'"):
        router_grid(ds, "code/mul")


def test_a_lower_loss_is_the_lighter_and_its_gap_is_recovered_downwards():
    ds = grid([[4.0, 3.0], [3.0, 2.0]]).rename(
        {f"accuracy{end}": f"loss{end}" for end in ("", "_change", "_change_low", "_change_high")}
    )
    fig = router_grid(ds)
    assert heat(fig).colorscale[0][1] == "#fee838"
    assert "gives 3 (−1.00 [−3.00, +1.00]; includes 0), 50 % of the gap" in caption_of(fig).sentence
    assert "n = 9 rows of text." in caption_of(fig).notes
    assert caption_of(fig).table.columns[2:4] == ("loss (nats/token)", "change (nats/token)")


def test_arms_are_told_apart_and_hostile_names_are_text():
    ds = grid(ROUTING).assign_coords(
        router_branch=("router_from", ["main", "code", EVIL]),
        body_branch=("body_from", ["main", "code", "x" * 10_000]),
    )
    fig = router_grid(ds.assign_attrs(task=EVIL))
    ticks = [*fig.layout.xaxis.ticktext, *fig.layout.yaxis.ticktext]
    assert ticks[1] == "step 80<br>code"
    assert all("<script" not in t and "%{" not in t and len(t) < 90 for t in ticks)
    assert "<script" not in fig.layout.title.text


def test_blank_cells_one_checkpoint_and_other_data():
    holed = grid(ROUTING)
    holed["accuracy"][2, 2] = np.nan
    assert "without both ends there is no gap" in caption_of(router_grid(holed)).sentence
    assert "no other body" in caption_of(router_grid(grid([[0.5]]))).sentence
    with pytest.raises(SchemaError, match=r"no 'accuracy' over \(router_from, body_from\)"):
        router_grid(xr.Dataset({"accuracy": ("task", [1.0])}))
    with pytest.raises(SchemaError, match="an empty dataset"):
        router_grid(xr.Dataset())
