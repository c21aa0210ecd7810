"""A checkpoint's record: whatever comes from a file is checked before it is believed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.errors import RecordError
from checkpoints_index.record import CheckpointRecord

RECORD = CheckpointRecord(
    run="demo", branch="main", phase="final", step=400, tokens_seen=1_638_400, utc=1.75e9,
    lr=3e-4, parent=("main", 360), mixture_hash="ab12", data_position={"document": 7, "at": [1, 2]},
    architecture_hash="cd34", tokenizer_hash="ef56", dtype="float32", format="native",
    uri="checkpoints/main/step-00000400", size_bytes=3_300_000, fingerprint="00ff",
)  # fmt: skip

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["C"]), max_size=40)
counts = st.integers(0, 2**63 - 1)
prints = st.text("0123456789abcdef", min_size=8, max_size=32)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
records = st.builds(
    CheckpointRecord,
    run=words.filter(len), branch=names, step=counts, tokens_seen=counts, size_bytes=counts,
    utc=st.floats(0, 1e11), format=st.just("native"), uri=names, phase=words,
    lr=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    parent=st.none() | st.tuples(names, counts), dtype=st.none() | words,
    data_position=st.none() | st.dictionaries(words, plain, max_size=3), complete=st.booleans(),
    kind=st.sampled_from([None, "training", "weights"]), trainer=st.none() | words,
    merged_from=st.lists(st.tuples(names, counts) | prints, max_size=3).map(tuple),
    digests=st.none() | st.dictionaries(names, st.just("sha256:" + "0f" * 32), max_size=3),
)  # fmt: skip


@given(records)
def test_a_record_is_the_same_after_a_trip_through_its_json(record):
    assert CheckpointRecord.from_json(record.to_json()) == record


@given(st.data())
def test_a_record_with_any_value_replaced_is_itself_valid_or_refused_by_name(data):
    fields = json.loads(RECORD.to_json())
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(plain)
    refusal, record = "", None
    try:
        record = CheckpointRecord.from_json(json.dumps(fields))
    except RecordError as error:
        refusal = str(error)
    if record is None:
        assert name in refusal
        assert "\n" not in refusal
    else:
        assert CheckpointRecord.from_json(record.to_json()) == record


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_record_are_refused_and_nothing_else_happens(junk):
    with pytest.raises(RecordError):
        CheckpointRecord.from_json(junk)


@given(st.integers(0, len(RECORD.to_json()) - 3))
def test_a_record_cut_short_is_refused(length):
    with pytest.raises(RecordError):
        CheckpointRecord.from_json(RECORD.to_json()[:length])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("branch", "../main"), ("branch", "Main"), ("branch", ""), ("branch", "a" * 65),
        ("branch", "a\n"), ("uri", "../../etc/passwd"), ("uri", "a/../../b"), ("uri", "a\0b"),
        ("uri", "x" * 10_000), ("uri", ""), ("uri", "..\\up"), ("run", "a\x1b[31m"), ("step", -1),
        ("step", True), ("step", 4.0), ("step", 2**63), ("tokens_seen", "7"), ("utc", float("nan")),
        ("utc", None), ("lr", float("inf")), ("complete", 1), ("parent", ("main",)),
        ("parent", ("../x", 3)), ("parent", ("main", -3)), ("data_position", {1: 2}),
        ("data_position", {"a": float("nan")}), ("data_position", {"a": b"x"}), ("size_bytes", -5),
        ("fingerprint", "\ud800"), ("kind", "optimizer"), ("trainer", "a\x9b31m"),
        ("merged_from", (("../x", 3),)), ("merged_from", ("main",)), ("merged_from", [["main", 3]]),
        ("merged_from", (("main", 3, 4),)), ("merged_from", ("ab" * 8,) * 1001),
        ("digests", {"../x": "sha256:" + "0" * 64}), ("digests", {"a": "md5:0"}),
        ("digests", {"/etc/passwd": "sha256:" + "0" * 64}), ("digests", ["a"]),
        ("pruned", "to make room"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_in_one_line(name, value):
    with pytest.raises(RecordError, match=name) as refused:
        CheckpointRecord(**{**asdict(RECORD), name: value})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_record_of_before_reads_as_one_whose_writer_did_not_say():
    later = ("merged_from", "kind", "trainer", "digests", "pruned")
    before = {k: v for k, v in json.loads(RECORD.to_json()).items() if k not in later}
    record = CheckpointRecord.from_json(json.dumps(before))
    assert [getattr(record, name) for name in later] == [(), None, None, None, None]


def test_every_fault_is_named_at_once():
    with pytest.raises(RecordError, match=r"branch=.*step=.*lr="):
        CheckpointRecord(**{**asdict(RECORD), "branch": "", "step": -1, "lr": "x"})
    with pytest.raises(RecordError, match="run, branch, step"):
        CheckpointRecord.from_json("{}")


def test_keys_of_a_later_version_are_ignored():
    later = {**json.loads(RECORD.to_json()), "colour": ["a", "b"]}
    assert CheckpointRecord.from_json(json.dumps(later)) == RECORD


def test_a_place_inside_the_run_follows_the_run_and_one_outside_stays():
    assert RECORD.path("/moved") == Path("/moved/checkpoints/main/step-00000400")
    outside = CheckpointRecord(**{**asdict(RECORD), "uri": "/archive/step-400"})
    assert outside.path("/moved") == Path("/archive/step-400")
    remote = CheckpointRecord(**{**asdict(RECORD), "uri": "s3://bucket/step-400"})
    with pytest.raises(RecordError, match="not a local path"):
        remote.path("/moved")


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/x", "simplecache::memory://bucket/x", "MEMORY://bucket/x", "zip://a::s3://b/x"],
)
def test_every_url_that_is_opened_is_a_url_in_a_record_too(uri):
    record = replace(RECORD, uri=uri)
    assert record.is_remote
    with pytest.raises(RecordError, match="not a local path"):
        record.path("runs/demo")


def test_a_password_in_a_record_s_url_is_not_printed():
    record = replace(RECORD, uri="sftp://me:secret@host/x")
    with pytest.raises(RecordError, match=r"me:\*\*\*@host"):
        record.path("runs/demo")
