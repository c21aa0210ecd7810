"""Checkpoints lie in the plane as far from each other as they are, and the figure says how true."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import SchemaError
from workbench.figures import caption_of, trajectory
from workbench.figures.placing import placed

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"


def between(points):
    return np.linalg.norm(points[:, None] - points, axis=-1)


def apart(points, steps, branch=None, **attrs):
    ds = xr.Dataset(
        {"distance": (("checkpoint", "other"), between(np.asarray(points, float)), attrs)},
        coords={"checkpoint": list(steps),
                "tokens_seen": ("checkpoint", np.array(steps) * 64)},
        attrs={"run": "demo", "n": 256, "n_meaning": "tokens"},
    )  # fmt: skip
    return ds if branch is None else ds.assign_coords(branch=("checkpoint", list(branch)))


# A trunk along x to (3, 0); "a" goes on by 1, "b" turns off by 4.
POINTS = [(0, 0), (1, 0), (3, 0), (4, 0), (3, 4)]
STEPS = [0, 50, 100, 120, 120]
BRANCH = ["", "", "", "a", "b"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 30))
def test_points_of_a_plane_are_found_again_but_for_turns_and_mirrors(seed, n):
    points = np.random.default_rng(seed).normal(size=(n, 2))
    found = placed(between(points))
    np.testing.assert_allclose(between(found.points_C2), between(points), atol=1e-6)
    assert found.stress < 1e-6
    if n > 2:
        assert sum(found.shares) == pytest.approx(1)
        assert found.shares[0] >= found.shares[1]


def test_what_a_plane_cannot_hold_is_told():
    # The corners of a simplex: all directions alike.
    found = placed(1.0 - np.eye(5))
    assert sum(found.shares) == pytest.approx(0.5)
    assert found.stress > 0.2


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (np.ones((2, 3)), "shape"),
        (np.full((2, 2), np.nan), "no numbers"),
        (np.array([[0, 1], [2, 0.0]]), "differ by direction"),
        (np.array([[0, -1], [-1, 0.0]]), "negative"),
        (np.ones((2, 2)), "from themselves"),
        (np.zeros((0, 0)), "shape"),
    ],
)
def test_what_are_no_distances_is_refused(matrix, why):
    with pytest.raises(SchemaError, match=why):
        placed(matrix)


def lines(fig):
    return [t for t in fig.data if t.mode == "lines+markers"]


def test_arms_set_out_from_the_fork_and_their_own_plane_shows_what_came_after_it():
    fig = trajectory(apart(POINTS, STEPS, BRANCH))
    names = [(t.name, t.xaxis) for t in lines(fig)]
    assert names == [("shared history", "x"), ("a", "x"), ("b", "x"), ("a", "x2"), ("b", "x2")]
    trunk, a, b = lines(fig)[:3]
    assert (a.x[0], a.y[0]) == (b.x[0], b.y[0]) == (trunk.x[-1], trunk.y[-1])
    assert np.hypot(b.x[1] - b.x[0], b.y[1] - b.y[0]) == pytest.approx(4)
    assert fig.layout.yaxis.scaleanchor == "x"
    assert fig.layout.yaxis2.scaleanchor == "x2"
    assert lines(fig)[1].text[1] == "a<br>step 120, 7,680 tokens"


def test_the_sentence_tells_distances_that_are_and_not_those_drawn():
    caption = caption_of(trajectory(apart(POINTS, STEPS, BRANCH, units="√bit")))
    assert caption.sentence == (
        "The plane holds 100 % of the squared distances between 5 checkpoints. From the fork at "
        "step 100 to the end a moves by 1 √bit and b moves by 4 √bit. The ends lie 4.12 √bit from "
        "each other."
    )
    rows = {(row[0], row[1]): row for row in caption.table.rows}
    assert caption.table.columns[4:] == ("from the first (√bit)", "from the one before (√bit)")
    assert rows["b", 120][4:] == (5.0, 4.0)


def test_one_arm_is_one_plane_in_the_order_of_training_whatever_order_it_comes_in():
    shuffled = apart(POINTS[:3], STEPS[:3]).isel(checkpoint=[2, 0, 1], other=[2, 0, 1])
    fig = trajectory(shuffled)
    [line] = lines(fig)
    assert list(np.round(np.diff(line.x), 6)) == [1, 2]
    assert caption_of(fig).sentence.endswith("At step 100 it lies 3 from where it was at step 0.")
    assert not fig.layout.showlegend


def test_scores_of_essential_dynamics_are_drawn_as_they_are_with_their_shares():
    ds = xr.Dataset(
        {
            "score": (("checkpoint", "component"), [[-4.0, 1, 0], [0, -2, 1], [4, 1, -1]],
                      {"units": "nats"}),
            "explained": ("component", [0.8, 0.15, 0.05]),
            "explained_low": ("component", [0.7, 0.1, 0.0]),
            "explained_high": ("component", [0.9, 0.2, 0.1]),
        },
        coords={"checkpoint": [0, 10, 20]}, attrs={"branch": "code"},
    )  # fmt: skip
    fig = trajectory(ds)
    [line] = lines(fig)
    assert list(line.x) == [-4, 0, 4]
    assert line.name == "code"
    assert fig.layout.xaxis.title.text == "first axis: 80 % of the squares (nats)"
    assert "95 %" in caption_of(fig).sentence
    assert (
        "Shares of the axes with other text (95 %): 70–90 % and 10–20 %." in caption_of(fig).notes
    )
    assert trajectory(ds.isel(component=[0])).data


def test_many_arms_one_checkpoint_and_checkpoints_that_are_all_alike():
    rng = np.random.default_rng(0)
    steps, branch = [0, 10], ["", ""]
    for arm in range(8):
        steps += [20, 30]
        branch += [f"arm {arm}"] * 2
    fig = trajectory(apart(rng.normal(size=(18, 5)), steps, branch))
    assert "The ends of" in caption_of(fig).sentence
    assert "no way to be shown" in caption_of(trajectory(apart([(0, 0)], [5]))).sentence
    assert trajectory(apart([(0, 0)] * 3, [0, 1, 2])).data


def test_hostile_arms_are_text():
    fig = trajectory(apart(POINTS, STEPS, ["", "", "", EVIL, "x" * 10_000]))
    texts = [a.text for a in fig.layout.annotations] + [t.name for t in lines(fig)]
    texts += [t for line in lines(fig) for t in line.text]
    assert all("<script" not in t and "%{" not in t and len(t) < 400 for t in texts)


def test_something_else_is_refused_with_what_was_expected():
    with pytest.raises(SchemaError, match=r"expected distance \(checkpoint, other\), or score"):
        trajectory(xr.Dataset({"distance": ("checkpoint", [0.0])}))
    with pytest.raises(SchemaError, match="an empty dataset"):
        trajectory(xr.Dataset())
    holed = apart(POINTS, STEPS, BRANCH)
    holed["distance"][0, 1] = np.nan
    with pytest.raises(SchemaError, match="1 distances are no numbers"):
        trajectory(holed)


def test_points_that_lie_in_a_plane_have_no_stress_at_all():
    from workbench.figures.placing import placed

    corners = np.array([[0.0, 3.0], [4.0, 0.1], [0.3, 0.7], [2.2, 1.9]])
    apart = np.linalg.norm(corners[:, None] - corners, axis=-1)
    assert placed((apart + apart.T) / 2).stress == 0
