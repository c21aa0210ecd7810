"""Rows without labels of their own: traces, recorded sites, ragged interiors."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import RunNotFound, SchemaError
from workbench.store.arrays import CHUNK_BYTES, chunk_shape
from workbench.store.layout import Layout, ProbeTokens
from workbench.store.ragged import expert_rows
from workbench.store.run_store import RunStore
from workbench.store.schema import INTERIORS, Variable, conform

E, L, K, PROBE = 3, 2, 2, 4
LAYOUT = Layout(
    layers=(0, 4), experts=E, k=K, domains=("a", "b"),
    tokens=ProbeTokens((7, 8, 9, 7), ("a", "a", "b", "b")),
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "store", LAYOUT)


def traces(steps):
    """One row for every entry of `steps`, and every number of a row says its step."""
    steps = np.asarray(steps, np.int64)
    wide = np.broadcast_to(steps[:, None, None], (len(steps), L, K))
    return {
        "step": steps,
        "expert_ids": wide.astype("int16"),
        "gates": wide.astype("float32"),
        "token": steps.astype("int32"),
        "position": steps.astype("int32"),
        "document": steps * 1000,
        "domain": (steps % 2).astype("int16"),
    }


def site(*dims, dtype="float32", widened_from=""):
    return Variable(("checkpoint", "token", *dims), dtype, "1", "A site.", widened_from)


def test_traces_of_several_tokens_a_step_and_of_none_read_back_in_their_order(store):
    steps = [1, 1, 1, 2, 5, 5]
    with store.writer("main") as w:
        w.append("traces", traces(steps[:3]))
        w.append("traces", traces(steps[3:4]))
        w.commit("one")
        w.append("traces", traces(steps[4:]))
        assert w.last("traces") == 5
    read = store.read().dataset("traces").load()
    assert read.step.values.tolist() == steps
    assert read.document.values.tolist() == [s * 1000 for s in steps]
    assert (read.gates == read.step).all()
    assert "trace" not in read.indexes
    xr.testing.assert_identical(
        conform(read.drop_vars(["step", "layer"]), "traces"), read.drop_vars(["step", "layer"])
    )


def test_a_trace_of_an_earlier_step_is_refused(store):
    with store.writer("main") as w:
        w.append("traces", traces([3, 3]))
        w.append("traces", traces([3]))
        for steps in ([2], [4, 3]):
            with pytest.raises(SchemaError, match="must ascend"):
                w.append("traces", traces(steps))
        with pytest.raises(SchemaError, match="step: missing"):
            w.append("traces", {k: v for k, v in traces([4]).items() if k != "step"})
        assert w.waiting == 3


def test_traces_go_back_with_a_rollback_and_on_from_there(store):
    with store.writer("main") as w:
        for step in (1, 2, 3):
            w.append("train", {"step": np.array([step]), "tokens_seen": np.array([step])})
            w.append("traces", traces([step] * step))
            w.commit(str(step))
            w.tag_checkpoint(step)
    store.rollback("main", 2)
    assert store.read().dataset("traces").step.values.tolist() == [1, 2, 2]
    with store.writer("main") as w:
        assert w.last("traces") == 2
        w.append("traces", traces([3]))
    assert store.read().dataset("traces").step.values.tolist() == [1, 2, 2, 3]


def test_a_checkpoint_is_not_tagged_while_traces_of_a_later_step_are_there(store):
    from workbench.errors import UsageError

    with store.writer("main") as w:
        w.append("traces", traces([1, 2]))
        w.commit("two")
        with pytest.raises(UsageError, match="already holds traces up to step 2"):
            w.tag_checkpoint(1)


@settings(max_examples=15)
@given(
    appends=st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=6),
)
def test_traces_in_any_portions_with_commits_anywhere_are_all_there(appends):
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore.create(Path(folder) / "store", LAYOUT)
        expected = []
        writer = store.writer("main")
        for step, (count, reopen) in enumerate(appends, start=1):
            writer.append("traces", traces([step] * count))
            expected += [step] * count
            if reopen:
                writer.commit("now")
                writer.close()
                writer = store.writer("main")
        writer.commit("rest")
        writer.close()
        if expected:
            read = store.read().dataset("traces").load()
            assert read.step.values.tolist() == expected
            assert (read.expert_ids == read.step).all()


def test_a_site_is_learnt_when_it_is_first_recorded_and_says_what_it_was(store):
    values = np.arange(2 * PROBE * 5, dtype="float32").reshape(2, PROBE, 5)
    name = "blocks.1.hook_resid_post"
    for n in range(2):
        with store.writer("main") as w:
            w.append(
                "activations",
                {"checkpoint": np.array([n + 1]), name: values[n : n + 1]},
                {name: site("dim_5", widened_from="bfloat16")},
            )
    read = store.read().dataset("activations")
    assert read[name].dims == ("checkpoint", "token", "dim_5")
    assert read[name].attrs["widened_from"] == "bfloat16"
    assert np.array_equal(read[name].values, values)
    conform(read.drop_vars(list(read.coords)), "activations")


def test_sites_may_come_and_go_and_read_as_missing_where_they_were_not_recorded(store):
    ones, ids = np.ones((1, PROBE, 2), "float32"), np.ones((1, PROBE), "int64")
    with store.writer("main") as w:
        w.append("activations", {"checkpoint": np.array([1]), "a": ones}, {"a": site("d")})
        w.append(
            "activations",
            {"checkpoint": np.array([2]), "a": 2 * ones, "b": 2 * ids},
            {"a": site("d"), "b": site(dtype="int64")},
        )
        w.commit("two")
        w.append("activations", {"checkpoint": np.array([3]), "b": 3 * ids})
        w.commit("three")
        w.append("activations", {"checkpoint": np.array([4]), "a": 4 * ones})
        w.append("activations", {"checkpoint": np.array([5]), "b": 5 * ids})
    read = store.read().dataset("activations").load()
    assert read.sizes["checkpoint"] == 5
    assert np.array_equal(read.a[:, 0, 0], [1, 2, np.nan, 4, np.nan], equal_nan=True)
    assert read.b[:, 0].values.tolist() == [-1, 2, 3, -1, 5]


def test_a_variable_that_begins_late_reads_as_missing_before(store):
    with store.writer("main") as w:
        w.append("train", {"step": np.array([1]), "loss": np.ones(1, "float32")})
        w.commit("one")
        late = {"step": np.array([2]), "loss": np.ones(1, "float32")}
        w.append("train", late | {"captured_every": np.ones(1, "int32")})
        with pytest.raises(SchemaError, match="captured_every: missing"):
            w.append("train", late | {"step": np.array([3])})
    assert store.read().dataset("train").captured_every.values.tolist() == [-1, 1]


def test_a_site_of_another_shape_or_under_a_taken_name_is_refused(store):
    with store.writer("main") as w:
        rows = {"checkpoint": np.array([1]), "a": np.ones((1, PROBE, 2), "float32")}
        w.append("activations", rows, {"a": site("d")})
        rows["checkpoint"] = np.array([2])
        with pytest.raises(SchemaError, match="record it in another run"):
            w.append("activations", rows, {"a": site("d", "e")})
        with pytest.raises(SchemaError, match=r"d=2"):
            w.append("activations", rows | {"a": np.ones((1, PROBE, 3), "float32")})
        for taken in ("token_id", "token", "layer"):
            with pytest.raises(SchemaError, match=taken):
                w.append("activations", rows, {taken: site("d")})
        with pytest.raises(SchemaError, match="not a name"):
            w.append("router", {"step": np.array([1])},
                     {"b": Variable(("step",), "int64", "1", "")})  # fmt: skip
        assert w.waiting == 1


def interior(counts, checkpoint, seed=0):
    """Rows for experts that received `counts` (layer, expert) tokens."""
    counts = np.asarray(counts)
    rows = int(counts.sum())
    ends = np.cumsum(counts.ravel()).reshape(counts.shape)
    begins = ends - counts
    offsets = np.concatenate([begins, ends[:, -1:]], axis=1)
    random = np.random.default_rng(seed)
    return {
        "checkpoint": np.array([checkpoint]),
        "offsets": offsets[None].astype("int64"),
        "values": random.standard_normal((rows, 5)).astype("float32"),
        "token": random.integers(0, PROBE, rows).astype("int32"),
        "gate": random.random(rows).astype("float32"),
    }


@settings(max_examples=20)
@given(
    saved=st.lists(
        st.tuples(st.lists(st.integers(0, 90), min_size=L * E, max_size=L * E), st.booleans()),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_the_rows_of_any_expert_at_any_checkpoint_come_back(saved):
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore.create(Path(folder) / "store", LAYOUT)
        kept = {}
        writer = store.writer("main")
        for step, (counts, reopen) in enumerate(saved, start=1):
            kept[step] = interior(np.reshape(counts, (L, E)), step, seed=step)
            before = kept[step]["offsets"].copy()
            writer.append("interiors", kept[step])
            assert np.array_equal(before, kept[step]["offsets"])
            if reopen:
                writer.commit("now")
                writer.close()
                writer = store.writer("main")
        writer.commit("rest")
        writer.close()
        if not sum(sum(counts) for counts, _ in saved):
            return
        read = store.read().dataset("interiors")
        for step, given_rows in kept.items():
            for at, layer in enumerate(LAYOUT.layers):
                for expert in range(E):
                    first, stop = given_rows["offsets"][0, at, expert : expert + 2]
                    found = expert_rows(read, layer=layer, expert=expert, checkpoint=step)
                    for name in ("values", "token", "gate"):
                        assert np.array_equal(found[name], given_rows[name][first:stop])


@pytest.mark.parametrize("shift", [[0, 0, 1], [1, 0, 0], [0, -2, 0]])
def test_offsets_that_do_not_divide_the_rows_are_refused_and_nothing_is_taken_in(store, shift):
    rows = interior([[1, 1, 1], [0, 2, 0]], 1)
    rows["offsets"][0, 1, :3] += shift
    with store.writer("main") as w:
        with pytest.raises(SchemaError, match="offsets"):
            w.append("interiors", rows)
        with pytest.raises(SchemaError, match="appended together"):
            w.append("interiors", {k: rows[k] for k in ("checkpoint", "offsets")})
        assert w.waiting == 0


def test_interiors_say_from_what_they_were_widened(store):
    with store.writer("main") as w:
        w.append(
            "interiors",
            interior([[1, 1, 1], [0, 2, 0]], 1),
            {"values": replace(INTERIORS["values"], widened_from="float16")},
        )
    read = store.read().dataset("interiors")
    assert read["values"].attrs["widened_from"] == "float16"
    with pytest.raises(RunNotFound, match=r"no interiors of layer 1; near it: 0, 4"):
        expert_rows(read, layer=1, expert=0)
    with pytest.raises(RunNotFound, match=r"no interiors of checkpoint 9; near it: 1"):
        expert_rows(read, layer=4, expert=0, checkpoint=9)
    with pytest.raises(RunNotFound, match=r"no interiors of expert 3"):
        expert_rows(read, layer=4, expert=E)


@given(
    dims=st.sampled_from(
        [("checkpoint", "token", "d"), ("row", "d_mlp", "d"), ("trace", "k", "d")]
    ),
    row=st.tuples(st.integers(1, 5000), st.integers(1, 3000)),
    at_first=st.integers(0, 10**6),
)
def test_a_chunk_of_many_rows_is_bounded(dims, row, at_first):
    shape = chunk_shape(dims, row, 4, at_first)
    assert 4 * np.prod(shape) <= CHUNK_BYTES or shape[0] == 1
    assert shape[0] >= 1
    if dims[0] == "checkpoint":
        assert 4 * np.prod(shape) <= max(CHUNK_BYTES, 4 * row[1])
    elif at_first >= 256:
        assert shape[0] < 2 * at_first


def test_the_schema_states_the_thresholds_and_bins_that_capture_uses():
    from workbench.capture.accumulators import ENTROPY_BINS, NEAR_TIE_LOGITS
    from workbench.store.schema import ROUTER

    assert f"within {NEAR_TIE_LOGITS} logits" in ROUTER["near_tie"].meaning
    assert f"{ENTROPY_BINS} equal bins" in ROUTER["entropy_histogram"].meaning
    assert LAYOUT.sizes["bin"] == ENTROPY_BINS
