"""What an expert sees: the surest ids first, their text visible, and no claim without bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from workbench.errors import SchemaError, UsageError
from workbench.figures import caption_of, to_html, vocabulary
from workbench.figures.token_text import token_names, visible

EVIL = "<script>alert(1)</script><b>%{x}</b>&\"'"
TEXT = {5: " the", 6: "\n", 7: "cup", 8: " of"}


def seen(bounds=True, layers=2, experts=4):
    """In the last layer expert 1 takes all of id 5 (100 times), and all of id 7 (8 times: unsure);
    everything else goes to all experts alike."""
    ids, counts = [5, 6, 7, 8], np.array([100.0, 50, 8, 200])
    share = np.full((layers, 4, experts), 1 / experts)
    for place in (0, 2):
        share[-1, place] = 0
        share[-1, place, 1] = 1
    dims = ("layer", "token_id", "expert")
    found = xr.Dataset(
        {"share": (dims, share), "count": ("token_id", counts),
         "kappa": ("layer", np.linspace(0, 0.4, layers)),
         "kappa_low": ("layer", np.linspace(-0.1, 0.3, layers)),
         "kappa_high": ("layer", np.linspace(0.1, 0.5, layers))},
        coords={"layer": np.arange(layers), "token_id": ids, "expert": np.arange(experts)},
        attrs={"run": "demo", "min_count": 8, "ids_left_out": 3},
    )  # fmt: skip
    if bounds:
        half = (1.5 / np.sqrt(counts))[None, :, None]
        found["share_low"] = (dims, np.clip(share - half, 0, 1))
        found["share_high"] = (dims, np.clip(share + half, 0, 1))
    return found


def dots(fig):
    return fig.data[0]


def test_of_equal_shares_the_surer_stands_first_and_bars_are_the_bounds():
    fig = vocabulary(seen(), layer=1, expert=1, tokens=TEXT)
    assert [t.split("  ")[0] for t in fig.layout.yaxis.ticktext] == ["␣the", "cup", "␣of", "↵"]
    dot = dots(fig)
    assert dot.x[0] == 1
    assert dot.error_x.arrayminus[0] == pytest.approx(0.15)
    assert dot.marker.symbol == "circle"


def test_an_id_seen_a_few_times_does_not_stand_first():
    found = seen()
    found["share"][1, 0, 1] = 0.9
    found["share_low"][1, 0, 1] = 0.75
    first = vocabulary(found, layer=1, expert=1).layout.yaxis.ticktext[0]
    assert first.startswith("id 5")
    assert vocabulary(found.drop_vars(["share_low", "share_high"]), layer=1, expert=1
                      ).layout.yaxis.ticktext[0].startswith("id 7")  # fmt: skip


def test_without_bounds_the_dots_are_hollow_and_the_words_say_so():
    fig = vocabulary(seen(bounds=False), layer=1, expert=1)
    assert dots(fig).marker.symbol == "circle-open"
    assert dots(fig).error_x.array is None
    assert "how surely is not known" in caption_of(fig).sentence
    assert any("no interval is known" in note for note in caption_of(fig).notes)


def test_the_words_say_what_the_expert_takes_of_all_and_of_its_first():
    # (100 + 8 + 250 / 4) of 358.
    assert caption_of(vocabulary(seen(), layer=1, expert=1, tokens=TEXT)).sentence == (
        "Expert 1 of layer 1 takes 48 % of these 358 tokens. Of 4 ids it takes 1 more often than "
        "that, by their 95 % intervals. First “␣the” (100 % of it), “cup” (100 % of it) and “␣of” "
        "(25 % of it)."
    )


def test_where_no_interval_lies_over_the_load_no_first_is_named():
    said = caption_of(vocabulary(seen(), layer=0, expert=1)).sentence
    assert "it takes 0 more often than that" in said
    assert "First" not in said


def test_the_table_of_a_layer_takes_the_layer_in_which_the_id_says_most():
    fig = vocabulary(seen(), tokens=TEXT)
    assert "layer 1" in caption_of(fig).title
    cells = fig.data[0].text
    assert cells[1][0] == "␣the  100%"
    assert len(cells) == 4
    assert len(cells[0]) == 6
    assert "kappa 0.4 [0.3, 0.5]" in caption_of(fig).sentence
    assert "Furthest over its load is expert 1 on “␣the”" in caption_of(fig).sentence


def test_a_layer_whose_ids_say_nothing_is_not_talked_up():
    said = caption_of(vocabulary(seen(), layer=0)).sentence
    assert "It is not shown that a token's id says anything of its experts" in said
    assert "No expert surely takes more of a token than of all tokens." in said


def test_an_expert_without_a_token_says_so():
    found = seen(bounds=False)
    found["share"][1, :, 2] = 0
    fig = vocabulary(found, layer=1, expert=2)
    assert caption_of(fig).sentence == "Expert 2 of layer 1 takes none of these 358 tokens."
    assert len(dots(fig).x) == 0
    assert vocabulary(found, layer=1).data[0].text[2][0] == ""


def test_text_can_come_as_a_list_a_function_or_a_tokenizer():
    class Tokenizer:
        def decode(self, ids):
            return {5: "a", 6: ""}[ids[0]]

        def id_to_token(self, i):
            return f"<{i}>"

    assert token_names([0, 1, 9], ["a", "b"]) == ["a", "b", "id 9"]
    assert token_names([3], lambda i: "x" * i) == ["xxx"]
    assert token_names([5, 6], Tokenizer()) == ["a", "<6>"]
    with pytest.raises(UsageError, match="tokens is str; expected id -> text"):
        token_names([1], "abc")


def test_white_space_is_seen_and_ids_that_look_alike_are_told_apart():
    assert visible("\t\n ") == "⇥↵␣"
    assert visible("\u202e") == "(U+202E)"
    assert token_names([1, 2, 3], {1: "a", 2: "a", 3: "\ufffd"}) == ["a #1", "a #2", "\ufffd #3"]


@pytest.mark.parametrize("expert", [None, 1])
def test_hostile_tokens_are_text(expert):
    texts = {5: EVIL, 6: "x" * 10_000, 7: "%{x}", 8: "\x00\u202e"}
    fig = vocabulary(seen(), layer=1, expert=expert, tokens=texts)
    told = json.dumps(fig.to_plotly_json(), default=str)
    drawn = json.dumps([fig.data[0].to_plotly_json().get("text", [])], default=str)
    assert "<script" not in drawn
    assert "xxxxxxxxxxxxxxxxxxxx" not in drawn
    assert "&lt;script" in told
    assert "<script>alert" not in to_html(fig)


def test_sixty_four_experts_of_many_ids_fit_a_page():
    rng = np.random.default_rng(0)
    found = xr.Dataset(
        {"share": (("layer", "token_id", "expert"), rng.beta(1, 15, (1, 2000, 64))),
         "count": ("token_id", np.full(2000, 20.0))},
        coords={"token_id": np.arange(2000)},
    )  # fmt: skip
    fig = vocabulary(found)
    assert fig.layout.height < 2000
    assert len(fig.to_json()) < 1e6
    assert len(caption_of(fig).table.rows) == 64 * 6


def test_what_is_not_there_is_refused_with_what_is():
    with pytest.raises(UsageError, match="no expert 9 in layer 1; there are 0 to 3"):
        vocabulary(seen(), layer=1, expert=9)
    with pytest.raises(UsageError, match="no layer 5; there are 0 and 1"):
        vocabulary(seen(), layer=5)
    with pytest.raises(UsageError, match="expected 1 or more ids"):
        vocabulary(seen(), top=0)
    with pytest.raises(SchemaError, match=r"expected share \(expert, layer, token_id\)"):
        vocabulary(xr.Dataset({"loss": ("step", [1.0])}))
    with pytest.raises(UsageError, match="lower min_count"):
        vocabulary(seen().isel(token_id=slice(0, 0)))


def test_a_percent_sign_in_a_token_stays_as_it_is():
    said = caption_of(vocabulary(seen(), layer=1, expert=1, tokens={5: ")%"})).sentence
    assert "“)%” (100 % of it)" in said


def test_only_the_text_of_ids_that_are_shown_is_asked_for():
    rng = np.random.default_rng(0)
    found = xr.Dataset(
        {"share": (("layer", "token_id", "expert"), rng.beta(1, 15, (1, 20_000, 8))),
         "count": ("token_id", np.full(20_000, 20.0))},
    )  # fmt: skip
    asked = []
    vocabulary(found, tokens=lambda i: asked.append(i) or str(i))
    assert len(asked) <= 8 * 6 + 1
