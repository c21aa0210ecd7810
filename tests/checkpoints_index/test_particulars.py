"""What a checkpoint says of itself: read where it is there, never believed where it cannot be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.particulars import footprint, particulars


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, plain in files.items():
        (folder / f"{name}.json").write_text(json.dumps(plain))
    return folder


def test_how_a_config_was_saved_does_not_change_what_architecture_it_is(tmp_path):
    shape = {"model_type": "olmoe", "num_experts": 64}
    a = write(tmp_path / "a", config={**shape, "transformers_version": "4.0", "dtype": "float32"})
    b = write(tmp_path / "b", config={"num_experts": 64, "model_type": "olmoe"})
    c = write(tmp_path / "c", config={**shape, "num_experts": 32})
    hashes = [particulars(path)["architecture_hash"] for path in (a, b, c)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_trainer_s_last_rate_and_the_optimizer_are_seen(tmp_path):
    state = {"global_step": 7, "log_history": [{"learning_rate": 1.0}, {"learning_rate": 0.5}, {}]}
    folder = write(tmp_path / "checkpoint-7", trainer_state=state)
    assert particulars(folder) == {"kind": "training", "lr": 0.5}
    assert particulars(write(tmp_path / "plain", config={}))["kind"] == "weights"


def test_a_tokenizer_is_the_same_however_its_file_is_laid_out(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.save(str(write(tmp_path / "a") / "tokenizer.json"), pretty=True)
    made.save(str(write(tmp_path / "b") / "tokenizer.json"), pretty=False)
    a, b = (particulars(tmp_path / name)["tokenizer_hash"] for name in "ab")
    assert a == b
    from model.data.tokenizer import tokenizer_digest

    assert a == tokenizer_digest(made)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["state", "config", "trainer_state", "tokenizer"]), plain))
def test_files_that_hold_anything_at_all_do_no_harm(files):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), **files)
        assert isinstance(particulars(folder), dict)


def test_a_stamp_changes_when_a_file_does_and_not_otherwise(tmp_path):
    folder = write(tmp_path / "a", config={}, other={})
    size, stamp = footprint(folder)
    assert footprint(folder) == (size, stamp)
    write(folder, config={"x": 1})
    assert footprint(folder)[1] != stamp
    assert footprint(folder / "config.json")[0] == len('{"x": 1}')
