"""The tokenizer: nothing is lost, digits stand alone, and a wrong one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer
from model.errors import DataError, TokenizerMismatch

TEXTS = ["Ada has the lamp. Ben has the cup.", "x = [1, 22, 333]", "naïve café"] * 20
TOKENIZER = train_tokenizer(TEXTS, 400)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_comes_back_whole(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_every_digit_is_a_token_of_its_own():
    assert TOKENIZER.encode("1234").tokens == ["1", "2", "3", "4"]


def test_the_same_texts_make_the_same_tokenizer():
    assert tokenizer_digest(train_tokenizer(TEXTS, 400)) == tokenizer_digest(TOKENIZER)
    assert tokenizer_digest(train_tokenizer(TEXTS, 280)) != tokenizer_digest(TOKENIZER)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    size = TOKENIZER.get_vocab_size()
    load_tokenizer(tmp_path / "tokenizer.json", size)
    with pytest.raises(TokenizerMismatch, match=f"has {size} entries, the model d_vocab=280"):
        load_tokenizer(tmp_path / "tokenizer.json", 280)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_a_broken_tokenizer_file_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a tokenizer"):
        load_tokenizer(path, 500)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "tokenizer.json", 500)


def test_a_vocabulary_under_the_bytes_is_refused():
    with pytest.raises(DataError, match="258"):
        train_tokenizer(TEXTS, 100)
