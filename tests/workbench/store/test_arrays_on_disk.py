"""How rows lie on disk: any sizes come back, chunks are whole, a flipped bit is found."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import StoreDamaged
from workbench.store.arrays import CHUNK_BYTES, chunk_shape
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore

WIDE = Layout(
    layers=(0, 3),
    experts=3,
    k=1,
    domains=("a", "b"),
    tasks=(Task("code/x", 0.5, 2), Task("logic/y", 0.1, 4)),
    tokens=ProbeTokens((7, 8, 9), ("a", "a", "b")),
)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 130), st.booleans()), min_size=1, max_size=6),
    gap=st.integers(1, 3),
)
def test_appends_of_any_size_with_commits_anywhere_read_back_exactly(sizes, gap):
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore.create(Path(folder) / "store", WIDE)
        random = np.random.default_rng(sum(n for n, _ in sizes))
        kept, next_step, next_sample = [], gap, gap
        writer = store.writer("main")
        for n, reopen in sizes:
            part = {
                "step": np.arange(next_step, next_step + n * gap, gap),
                "domain_assignments": random.integers(0, 2**60, (n, 2, 2, 3)),
                "entropy": random.standard_normal((n, 2)).astype("float32"),
                "sample": np.arange(next_sample, next_sample + n // 7),
                "coactivation": random.integers(0, 9, (n // 7, 2, 3, 3)),
            }
            next_step, next_sample = next_step + n * gap, next_sample + n // 7
            writer.append("router", part)
            kept.append(part)
            if reopen:
                writer.commit("now")
                writer.close()
                writer = store.writer("main")
        writer.commit("the rest")
        writer.close()
        seen = store.read("main")
        whole = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
        if not len(whole["step"]):
            assert seen.groups == ()
            return
        router = seen.dataset("router").load()
        for name, expected in whole.items():
            if len(expected):
                assert np.array_equal(router[name].values, expected)
        assert router.layer.values.tolist() == [0, 3]


@given(
    rows=st.sampled_from(["step", "sample", "checkpoint"]),
    layers=st.integers(1, 100),
    experts=st.integers(1, 512),
    itemsize=st.sampled_from([1, 4, 8]),
)
def test_a_chunk_is_neither_tiny_nor_huge(rows, layers, experts, itemsize):
    length, split, whole = chunk_shape((rows, "layer", "expert"), (layers, experts), itemsize)
    assert whole == experts
    assert 1 <= split <= layers
    assert length >= (50 if rows == "step" else 1)
    assert length * split * whole * itemsize <= CHUNK_BYTES or split == 1
    if rows == "step":
        assert length % 50 == 0


def test_full_chunks_committed_at_their_boundary_are_never_written_twice(tmp_path):
    store = RunStore.create(tmp_path / "store", Layout(layers=(0, 1, 2), experts=64, k=2))
    random = np.random.default_rng(0)
    counts = random.integers(0, 2**62, (200, 3, 64))
    with store.writer("main") as w:
        for begin in range(0, 200, 50):
            w.append(
                "router",
                {
                    "step": np.arange(begin + 1, begin + 51),
                    "assignments": counts[begin : begin + 50],
                },
            )
            w.commit("a chunk")
    chunks = sum(p.stat().st_size for p in (store.path / "chunks").iterdir())
    # Random bits do not compress: each was written once, and nearly nothing besides.
    assert counts.nbytes <= chunks < 1.03 * counts.nbytes


def test_a_flipped_bit_in_a_chunk_is_an_error_and_not_a_number(tmp_path):
    store = RunStore.create(tmp_path / "store", WIDE)
    steps = np.arange(1, 51)
    values = np.random.default_rng(1).integers(0, 2**40, (50, 2, 3))
    with store.writer("main") as w:
        w.append("router", {"step": steps, "assignments": values})
    biggest = max((store.path / "chunks").iterdir(), key=lambda p: p.stat().st_size)
    raw = bytearray(biggest.read_bytes())
    raw[len(raw) // 2] ^= 4
    biggest.write_bytes(raw)
    with pytest.raises(StoreDamaged, match=r"(?i)checksum"):
        RunStore.open(store.path).read("main").dataset("router").assignments.load()


def test_every_codec_chain_ends_with_a_checksum(tmp_path):
    store = RunStore.create(tmp_path / "store", WIDE)
    with store.writer("main") as w:
        w.append(
            "activations",
            {"checkpoint": np.array([1]), "expert_ids": np.zeros((1, 3, 2, 1), "int16")},
        )
    for _, array in store.read("main").root.members(max_depth=None):
        if isinstance(array, zarr.Array):
            assert type(array.compressors[-1]).__name__ == "Crc32cCodec"


def test_unwritten_cells_read_as_missing_and_not_as_zero(tmp_path):
    store = RunStore.create(tmp_path / "store", WIDE)
    with store.writer("main") as w:
        w.append("train", {"step": np.array([1]), "loss": np.array([1], "float32")})
    array = store.read("main").root["train/loss"]
    assert np.isnan(array.fill_value)
    assert store.read("main").root["train/step"].fill_value == -1
