"""A view of a run is one line of an address, and nothing that an address says breaks the page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.app.dashboard.view import PAGES, View
from workbench.errors import UsageError

STEPS = st.integers(0, 10**17)


@st.composite
def views(draw):
    start = draw(STEPS)
    stop = draw(st.none() | st.integers(start + 1, 10**17 + 1))
    return View(
        page=draw(st.sampled_from(PAGES)), arm=draw(st.text(max_size=40)),
        layer=draw(STEPS), expert=draw(STEPS), start=start, stop=stop,
        clock=draw(st.sampled_from(["step", "tokens", "utc"])),
    )  # fmt: skip


@given(views())
def test_a_view_that_went_through_its_address_is_the_same_view(view):
    assert View.from_query(view.query) == view


@given(st.text(max_size=200))
def test_whatever_an_address_says_is_read_as_some_view(text):
    view = View.from_query(text)
    assert View.from_query(view.query) == view


@pytest.mark.parametrize(
    "query",
    ["?page=nowhere", "?layer=-1", "?layer=%F0", "?start=9&stop=3", "?stop=0", "?clock=lunar",
     "?layer=" + "9" * 400, "?" + "&".join(f"a{i}=1" for i in range(500)), "?start=1e3"],
)  # fmt: skip
def test_what_is_no_view_is_left_at_its_default(query):
    found = View.from_query(query)
    assert found.page == "overview"
    assert found.layer == 0
    assert found.stop is None


@given(views(), st.integers(0, 4), st.integers(0, 6), st.integers(0, 1000))
def test_every_view_is_fitted_to_the_run_that_is_there(view, layers, experts, last):
    fitted = view.within(arms=["a", "b"], layers=layers, experts=experts, last_step=last)
    assert fitted.arm in ("a", "b")
    assert fitted.layer <= max(layers - 1, 0)
    assert fitted.expert <= max(experts - 1, 0)
    assert 0 <= fitted.start < max(last, 1)
    assert fitted.stop is None or fitted.start < fitted.stop < last
    again = fitted.within(arms=["a", "b"], layers=layers, experts=experts, last_step=last)
    assert again == fitted


def test_the_default_view_is_an_empty_address():
    assert View().query == ""


def test_a_view_refuses_what_no_run_has():
    with pytest.raises(UsageError, match="comes after"):
        View(start=5, stop=5)
    with pytest.raises(UsageError, match="expected a page"):
        View(page="main")
