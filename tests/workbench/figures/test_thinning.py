"""What is drawn of a long curve holds its extremes, and the figure says how much it is."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.figures import balance, caption_of, loss, probe_result
from workbench.figures.bins import by_step
from workbench.figures.thinning import MOST, single_steps, thinned

LONG = 30_000


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.integers(1, 9000),
    most=st.integers(4, 400),
    holes=st.integers(0, 5),
    spikes=st.integers(0, 2),
)
def test_the_extremes_and_the_ends_are_always_drawn(seed, size, most, holes, spikes):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=size)
    for _ in range(spikes):
        y[rng.integers(size)] = rng.choice([-1, 1]) * 50
    for _ in range(holes):
        y[slice(*sorted(rng.integers(0, size, 2)))] = np.nan
    kept = thinned(y, most=most)
    assert kept.total == size
    assert (np.diff(kept.places) > 0).all()
    assert {0, size - 1} <= set(kept.places)
    # Every edge of a gap costs two points more than the extremes and the ends.
    assert len(kept.places) <= most + 2 + 4 * holes
    if np.isfinite(y).any():
        assert np.nanmax(y[kept.places]) == np.nanmax(y)
        assert np.nanmin(y[kept.places]) == np.nanmin(y)


def test_no_stretch_loses_its_own_spike():
    y = np.zeros(10_000)
    spikes = np.arange(50, 10_000, 500)
    y[spikes] = 1 + np.arange(len(spikes)) / 100
    assert set(spikes) <= set(thinned(y, most=100).places)


def test_a_line_does_not_cross_a_gap():
    y = np.ones(5000)
    y[2000:2010] = np.nan
    drawn = y[thinned(y, most=100).places]
    assert np.isnan(drawn).any()


def test_a_curve_that_fits_is_drawn_whole_and_nothing_is_said():
    kept = thinned(np.arange(MOST, dtype=float))
    assert len(kept.places) == MOST
    assert kept.note == ""


def _training(steps=LONG):
    y = 1 + 4 * np.exp(-np.arange(steps) / 5000)
    y[17_171] = 9.0
    clock = np.arange(1, steps + 1)
    return xr.Dataset(
        {"loss": ("step", y), "lr": ("step", np.full(steps, 1e-3))},
        coords={"step": clock, "tokens_seen": ("step", clock * 8), "utc": ("step", 1e9 + clock)},
    )


def _overview(train, bins=500):
    """What a store's overview holds of it."""
    each = train.sizes["step"] // bins
    parts = train.reset_coords(["tokens_seen", "utc"]).coarsen(step=each)
    sides = {"": parts.mean(), "_min": parts.min(), "_max": parts.max()}
    found = {f"{n}{end}": ("bin", v.values) for end, ds in sides.items() for n, v in ds.items()}
    last = train["step"].values[each - 1 :: each]
    coords = {"first_step": ("bin", last - each + 1), "last_step": ("bin", last),
              "rows": ("bin", np.full(bins, each))}  # fmt: skip
    return xr.Dataset(found, coords=coords)


@pytest.mark.parametrize("source", [lambda: _training(), lambda: _overview(_training())])
@pytest.mark.parametrize("x", ["step", "tokens", "utc"])
def test_a_spike_of_one_step_in_tens_of_thousands_is_seen_in_the_loss(source, x):
    fig = loss(source(), x=x)
    highest = max(np.nanmax(np.asarray(t.y, float)) for t in fig.data if t.yaxis == "y")
    assert highest == 9.0
    notes = " ".join(caption_of(fig).notes)
    assert f"of {LONG:,} points drawn; extremes kept." in notes
    assert sum(len(t.x) for t in fig.data) < 6000
    table = caption_of(fig).table
    [row] = table.rows
    assert row[table.columns.index("highest step (nats/token)")] == 9.0
    assert row[table.columns.index("steps")] == LONG


def test_an_overview_without_extremes_is_drawn_from_its_means():
    means = by_step(_overview(_training()))
    drawn, kept = single_steps(means.drop_vars(["loss_min", "loss_max"]), "loss")
    assert drawn.sizes["step"] == means.sizes["step"] == kept.total


def test_a_spike_of_one_layer_at_one_step_is_seen_in_the_balance():
    uneven = np.full((5000, 3), 0.5)
    uneven[3210, 1] = 7.0
    for layers in (3, 9):
        wide = np.concatenate([uneven, *[uneven[:, :1]] * (layers - 3)], axis=1)
        ds = xr.Dataset(
            {"max_violation": (("step", "layer"), wide)}, coords={"step": np.arange(1, 5001)}
        )
        fig = balance(ds)
        assert max(np.nanmax(np.asarray(t.y, float)) for t in fig.data) == 7.0
        assert "of 5,000 points drawn; extremes kept." in caption_of(fig).notes[-1]


def test_any_line_that_is_too_long_is_thinned_and_the_caption_says_so():
    from plotly.subplots import make_subplots

    from workbench.figures.caption import Caption
    from workbench.figures.clock import clock_of
    from workbench.figures.figure import Figure, finish
    from workbench.figures.lines import Line, draw_line, hover_of

    train = _training()
    clock = clock_of(train)
    y = train["loss"].values
    fig = Figure(make_subplots(rows=1, cols=1))
    band = (y - 1, y + 1)
    line = Line(name="a", x=clock.x, y=y, band=band, hover=hover_of("a", clock, y, "", band=band))
    draw_line(fig, line, row=1, col=1)
    around, drawn = fig.data
    assert len(drawn.x) == len(drawn.y) == len(drawn.text) == len(drawn.customdata) < 2 * MOST
    assert max(drawn.y) == 9.0
    assert max(around.y) == 10.0
    place = list(drawn.y).index(9.0)
    assert drawn.text[place].startswith("step 17,172")
    finish(fig, Caption(name="n", title="t", sentence="s."), height=100)
    assert caption_of(fig).notes[-1] == f"{len(drawn.x):,} of 30,000 points drawn; extremes kept."


def test_a_result_of_few_points_says_nothing_of_thinning():
    ds = xr.Dataset({"v": ("checkpoint", np.arange(30.0))}, coords={"checkpoint": np.arange(30)})
    assert "points drawn" not in " ".join(caption_of(probe_result(ds)).notes)
