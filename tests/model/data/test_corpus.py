"""Rows of tokens: the same row for the same number, real text that is what it says."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from model.data.corpus import DOMAINS, TEXT_DOMAINS, Corpus, RealText, collect_standard_library
from model.data.tokenizer import DOCUMENT, train_tokenizer
from model.data.world import TASKS, World
from model.errors import DataError

ROW = 33


@pytest.fixture(scope="module")
def text():
    return collect_standard_library(max_bytes=1_000_000)


@pytest.fixture(scope="module")
def corpus(text):
    world = World(0)
    sample = [world.document(t, i) for t in TASKS for i in range(200)] + list(text.code[:50])
    return Corpus(world, text, train_tokenizer(sample, 600), ROW, seed=1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_row_does_not_depend_on_what_was_read_before(corpus, domain):
    together = corpus.rows(domain, 5, 6)
    assert together.shape == (6, ROW)
    assert np.array_equal(together[4], corpus.rows(domain, 9, 1)[0])


@pytest.mark.parametrize("domain", TASKS)
def test_a_world_row_is_documents_of_its_task_end_to_end(corpus, domain):
    row = corpus.rows(domain, 3, 1)[0]
    parts = corpus.tokenizer.decode(row.tolist(), skip_special_tokens=False).split(DOCUMENT)
    assert parts[0] == ""
    assert len(parts) > 2 or len(parts[1]) > 40
    # All but the last, which the row's end cuts, are whole documents.
    per_row = -(-ROW // 4)
    made = {corpus.world.document(domain, 3 * per_row + d) for d in range(per_row)}
    assert set(parts[1:-1]) <= made


@pytest.mark.parametrize("domain", TEXT_DOMAINS)
def test_an_epoch_of_real_text_shows_every_row_once_and_the_next_in_another_order(corpus, domain):
    rows = len(corpus._pack(corpus.text.code if domain == "code_text" else corpus.text.prose))
    first, second = corpus.rows(domain, 0, rows), corpus.rows(domain, rows, rows)
    assert sorted(map(tuple, first)) == sorted(map(tuple, second))
    assert not np.array_equal(first, second)


def test_held_out_rows_are_in_no_training_row(corpus):
    for domain in ("code_text", "logic/chain"):
        held = {tuple(r) for r in corpus.held_out_rows(domain, 2)}
        assert held.isdisjoint(map(tuple, corpus.rows(domain, 0, 400)))


def test_code_has_no_docstrings_and_no_piece_comes_twice(text):
    parsed = 0
    for piece in text.code:
        try:
            tree = ast.parse(piece)
        except SyntaxError:  # a body that was nothing but its docstring
            continue
        parsed += 1
        assert ast.get_docstring(tree.body[0]) is None or isinstance(
            tree.body[0].body[0].value.value, str
        )
        assert not any(
            isinstance(n, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(n)
            for n in ast.walk(tree)
        )
    assert parsed > 0.9 * len(text.code)
    assert len(set(text.code)) == len(text.code)


def test_prose_is_mostly_letters(text):
    for piece in text.prose:
        assert sum(c.isalpha() or c.isspace() for c in piece) > 0.75 * len(piece)
        assert ">>>" not in piece


def test_the_digest_is_that_of_the_text(text):
    again = collect_standard_library(max_bytes=1_000_000)
    assert again.digest == text.digest
    changed = RealText((*text.code, "x = 1"), text.prose, text.code_held_out, text.prose_held_out)
    assert changed.digest != text.digest


def test_an_unknown_domain_is_refused(corpus):
    with pytest.raises(DataError, match="no domain 'poetry'; the domains are"):
        corpus.rows("poetry", 0, 1)
