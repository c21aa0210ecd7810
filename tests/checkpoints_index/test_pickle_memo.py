"""A small `.metadata` cannot ask for much memory, nor change what reads it."""

from __future__ import annotations

import pickle
import resource
import struct

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

from checkpoints_index.errors import CheckpointIncomplete, RecordError
from checkpoints_index.formats import dcp_table, open_weights
from checkpoints_index.formats.pickle_memo import MemoTooLarge, check_memo

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)
LARGE = (
    b"r" + struct.pack("<I", 60_000_000),
    b"r" + struct.pack("<I", 2**32 - 1),
    b"r" + struct.pack("<I", 70_000),
    b"p60000000\n",
    b"p 6_0000_000\n",
    b"p" + b"9" * 5000 + b"\n",
)


@given(plain=PLAIN, protocol=st.integers(0, 5))
def test_whatever_pickle_writes_passes(plain, protocol):
    check_memo(pickle.dumps(plain, protocol=protocol))


@given(plain=PLAIN, protocol=st.integers(0, 5), large=st.sampled_from(LARGE))
def test_a_large_number_is_found_behind_any_operations(plain, protocol, large):
    raw = pickle.dumps(plain, protocol=protocol)
    with pytest.raises(MemoTooLarge):
        check_memo(raw[:-1] + large + b".")


@given(text=st.binary(max_size=600))
def test_a_number_inside_a_text_is_none(text):
    check_memo(pickle.dumps([LARGE[1] + text, str(LARGE[3] + text)], protocol=4))
    check_memo(text)


def test_many_objects_may_have_large_numbers():
    check_memo(pickle.dumps([str(i) for i in range(100_000)], protocol=2))


def test_a_table_of_ten_bytes_takes_no_memory_and_is_refused(tmp_path):
    (tmp_path / ".metadata").write_bytes(b"\x80\x02N" + LARGE[0] + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointIncomplete, match="of 9 bytes that numbers an object 60000000"):
        len(open_weights(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("name", sorted(dcp_table.ADMITTED))
def test_a_table_leaves_no_attribute_on_what_stands_in(tmp_path, name):
    stands_in = dcp_table.ADMITTED[name]
    for state in (b"}X\x04\x00\x00\x00evilK\x01s", b"N}X\x04\x00\x00\x00evilK\x01s\x86"):
        raw = b"\x80\x02c" + "\n".join(name).encode() + b"\n" + state + b"b."
        (tmp_path / ".metadata").write_bytes(raw)
        with pytest.raises(CheckpointIncomplete):
            len(open_weights(tmp_path))
        assert not hasattr(stands_in, "evil")


@pytest.mark.parametrize("kind", ["complex128", "float8_e8m0fnu", "float8_e4m3fnuz"])
def test_a_type_that_is_not_read_is_named_and_not_called_code(tmp_path, kind):
    state = {"model": {"w": torch.zeros(2, dtype=getattr(torch, kind))}}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(RecordError, match=f"of type torch.{kind}, which is not read") as refused:
        len(open_weights(tmp_path))
    assert "code" not in str(refused.value)
