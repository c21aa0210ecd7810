"""Docstrings become pages in which nothing is markup that was not meant."""

from __future__ import annotations

import warnings

import pytest
from building.prose import set_docstring, set_text
from docutils.core import publish_parts


def html(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"halt_level": 2, "report_level": 2}  # a warning is an exception
        return publish_parts("\n".join(lines), writer_name="html", settings_overrides=settings)[
            "body"
        ]


@pytest.mark.parametrize(
    "text",
    [
        "overlap of |S_t ∩ S_u| / k, a*b*c and a_ trailing_ underscore_",
        "1. not a list\nafter it",
        "- 3 is less\nthan 4 ** 2",
        ":x: and [1]_ and <b>bold</b> and `a` and a ` lonely one",
        "... and so on\n.. as it were",
        "C:\\temp\\*",
    ],
)
def test_what_looks_like_markup_is_text(text):
    shown = html(set_text(text))
    assert "<b>bold" not in shown
    assert "<em>" not in shown
    assert "system-message" not in shown


def test_aligned_terms_become_a_list_of_terms():
    shown = html(set_text("chance  what is left\n        to luck\nkappa   the rest"))
    assert shown.count("<dt>") == 2
    assert "what is left to luck" in shown


def test_an_indented_formula_keeps_its_lines():
    shown = html(set_text("The sum is\n\n    a = b\n      + c\n\nof these."))
    assert "a = b\n  + c" in shown


def test_an_arxiv_number_leads_there():
    assert 'href="https://arxiv.org/abs/2101.03961"' in html(set_text("Fedus, arXiv:2101.03961."))


def test_sections_keep_the_place_where_napoleon_looks_for_them():
    lines = ["One *star*.", "", "Args:", "    a: a `b` of |c|.", "", "Example:", "    >>> a | b"]
    told = set_docstring(lines)
    assert told[0] == r"One \*star\*."
    assert "Args:" in told
    assert r"    a: a \ ``b``\  of \|c\|." in told
    assert "    >>> a | b" in told
