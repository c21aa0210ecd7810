"""A whole run stands over the logarithm of its steps, its last stretch and its forks do not."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workbench.figures import Mark, balance, caption_of, loss, probe_result
from workbench.figures.bins import binned
from workbench.figures.clock import clock_of

STEPS = np.arange(1, 2001)


def training(steps=STEPS):
    return xr.Dataset(
        {"loss": ("step", 5.0 / steps)},
        coords={"step": steps, "tokens_seen": ("step", steps * 64),
                "utc": ("step", 1.75e9 + steps)},
    )  # fmt: skip


def kinds(fig):
    return {axis.type for axis in fig.select_xaxes()}


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_a_whole_run_is_logarithmic_in_steps_and_tokens_and_its_last_stretch_is_not(x):
    assert kinds(loss(training(), x=x)) == {"log"}
    assert "log" not in kinds(loss(training().isel(step=slice(1600, None)), x=x))


def test_time_arms_and_forks_are_linear():
    assert "log" not in kinds(loss(training(), x="utc"))
    assert "log" not in kinds(loss({"a": training(), "b": training() * 1.1}))
    assert "log" not in kinds(loss(training(), marks=[Mark(1600, "fork", "fork")]))


def test_marks_and_their_texts_stand_at_their_step_on_the_logarithm():
    fig = loss(training(), marks=[Mark(50, "stable"), Mark(1600, "final")])
    lines = {shape.x0 for shape in fig.layout.shapes}
    assert lines == {50, 1600}
    texts = {a.text: a for a in fig.layout.annotations if a.text in ("stable", "final")}
    assert texts["stable"].x == pytest.approx(np.log10(50))
    assert texts["final"].x == pytest.approx(np.log10(1600))
    # 1,600 of 2,000 is far to the right of a logarithm: its text must not leave the panel.
    assert texts["final"].xanchor == "right"


def test_a_sample_at_step_0_keeps_its_place_on_a_linear_axis():
    clock = clock_of(xr.Dataset(coords={"checkpoint": [0, 1, 10, 1000]}))
    assert not clock.for_axis().log


def test_every_panel_of_a_figure_has_the_same_axis():
    even = xr.Dataset(
        {name: (("step", "layer"), np.full((2000, 2), 0.5))
         for name in ("max_violation", "normalized_entropy", "dead_experts")},
        coords={"step": STEPS},
    )  # fmt: skip
    assert kinds(balance(even)) == {"log"}
    many = xr.Dataset({"value": (("step", "task"), np.ones((2000, 9)))}, coords={"step": STEPS})
    shown = [a for a in probe_result(many).select_xaxes() if a.visible is not False]
    assert {a.type for a in shown} == {"log"}


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_the_first_decades_of_a_long_run_are_drawn_step_by_step(x):
    steps = np.arange(1, 50_001)
    train = training(steps).assign(lr=("step", np.full(50_000, 1e-3)))
    train["loss"][2] = 40.0
    fig = loss(train, x=x)
    mean = max((t for t in fig.data if t.yaxis == "y"), key=lambda t: t.line.width)
    single = min((t for t in fig.data if t.yaxis == "y"), key=lambda t: t.line.width)
    each = 1 if x == "step" else 64
    for line in (mean, single):
        assert {each * n for n in range(1, 20)} <= {int(v) for v in line.x}
        assert max(line.y) == 40.0
        assert len(line.x) <= 1202
    # No stretch of the axis is bare: no gap is wider than a tenth of a decade.
    assert np.diff(np.log10(np.asarray(mean.x, float)))[5:].max() < 0.1
    note = caption_of(fig).notes[0]
    assert note.startswith(f"50,000 steps are drawn as {len(mean.x)} points")


def test_bins_of_a_logarithm_hold_every_sample_once():
    y = xr.Dataset({"y": ("step", np.arange(10_000.0))}, coords={"step": np.arange(1, 10_001)})
    short = binned(y, log_x=y["step"].values)
    assert short.n.sum() == 10_000
    assert len(short.n) <= 400
    assert (short.first[1:] == short.last[:-1] + 1).all()
    assert float((short.mean["y"] * short.n).sum()) == pytest.approx(float(y["y"].sum()))


def test_a_loss_without_a_number_is_a_row_of_dashes():
    table = caption_of(loss(training().assign(loss=("step", np.full(2000, np.nan))))).table
    assert all(np.isnan(cell) for cell in table.rows[0][2:])
