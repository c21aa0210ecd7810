"""An arm keeps its colour; numbers and names are written so that they can be read."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from workbench.figures.bins import binned
from workbench.figures.caption import Table
from workbench.figures.clock import clock_of
from workbench.figures.template import DEAD, arm_colors
from workbench.figures.wording import label, number, plain


def test_an_arm_keeps_its_colour_whatever_stands_beside_it():
    alone = arm_colors(["curriculum"])["curriculum"]
    for names in permutations(["curriculum", "continue", "main", "mine"]):
        assert arm_colors(names)["curriculum"] == alone


@given(st.lists(st.text(min_size=1), max_size=5, unique=True))
def test_arms_of_one_figure_differ_and_none_looks_like_a_dead_expert(names):
    colors = arm_colors(names)
    assert len(set(colors.values())) == len(names)
    assert DEAD not in colors.values()
    assert colors == {name: arm_colors(list(reversed(names)))[name] for name in names}


@given(st.text())
def test_a_label_holds_nothing_that_plotly_would_read_as_html_or_template(name):
    shown = label(name)
    assert "<" not in shown
    assert ">" not in shown
    assert "%{" not in shown
    assert "\n" not in shown
    assert len(plain(name)) <= 48


@pytest.mark.parametrize("name", ["a\u202eb", "a\x00b", "a\u200bb", "a\ud800b"])
def test_characters_that_cannot_be_seen_are_dropped(name):
    assert plain(name) == "ab"


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_a_number_is_written_without_exponent_and_near_to_itself(value):
    text = number(value, 3).replace("−", "-").replace(",", "")
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=0.01, abs=1e-300)


def test_a_cell_that_a_spreadsheet_would_run_is_made_harmless():
    text = Table(("task",), (("=cmd()",), ("@x",), ("-1+1",))).to_csv()
    assert text.splitlines()[1:] == ["'=cmd()", "'@x", "'-1+1"]


@given(st.integers(1, 500), st.integers(1, 60))
def test_bins_keep_every_step_and_their_weighted_mean_is_the_mean(size, most):
    values = xr.DataArray(
        np.arange(size, dtype=float), coords={"step": np.arange(1, size + 1)}, name="v"
    )
    short = binned(values, most=most)
    assert short.n.sum() == size
    assert len(short.n) <= most
    assert np.average(short.mean["v"], weights=short.n) == pytest.approx(float(values.mean()))
    assert (short.first[0], short.last[-1]) == (1, size)


def test_a_bin_leaves_missing_steps_out_of_its_mean():
    values = xr.DataArray([1.0, np.nan, 3.0, np.nan], coords={"step": [1, 2, 3, 4]}, name="v")
    assert binned(values, most=2).mean["v"].values.tolist() == [1, 3]
    assert np.isnan(binned(values * np.nan, most=2).mean["v"]).all()


def test_clocks_and_layers_come_through_the_bins():
    ds = xr.Dataset(
        {"v": (("step", "layer"), np.zeros((10, 3)))},
        coords={
            "step": np.arange(10),
            "layer": [4, 5, 6],
            "tokens_seen": ("step", np.arange(10) * 8),
        },
        attrs={"run": "demo"},
    )
    short = binned(ds, most=5)
    assert clock_of(short.mean, "tokens").x.tolist() == [4, 20, 36, 52, 68]
    assert short.mean["layer"].values.tolist() == [4, 5, 6]
    assert short.mean.attrs["run"] == "demo"
