"""Results of probes: computed once for the same inputs, and never mistaken for an arm."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
import zarr

from workbench.errors import SchemaError, UsageError
from workbench.store.result_key import Asked
from workbench.store.results import BRANCH, Results
from workbench.store.run_store import RunStore
from workbench.store.space import collect
from workbench.store.verification import verify_store

LOAD = xr.Dataset(
    {
        "load": (("step", "expert"), np.arange(8.0).reshape(4, 2), {"units": "1"}),
        "dead": ("expert", [True, False]),
        "count": ("expert", np.array([3, -1], "int16")),
    },
    coords={"step": [1, 2, 3, 4], "domain": ("expert", ["prose", "code_text"]), "layer": 3},
    attrs={"unit": "share"},
)


class Probe:
    """A probe that counts how often it is computed."""

    def __init__(self, result=LOAD):
        self.calls = 0
        self.result = result

    def __call__(self):
        self.calls += 1
        return self.result


@pytest.fixture
def results(small_store):
    return Results(small_store)


def test_what_comes_back_is_what_was_computed_then_and_later(small_store, results):
    first = results.fetch("load", 1, {"router": "abc"}, Probe())
    again = Results(RunStore.open(small_store.path)).get("load", 1, {"router": "abc"})
    for kept in (first, again):
        xr.testing.assert_identical(kept.load().drop_attrs(), LOAD.drop_attrs())
        assert {name: v.dtype for name, v in kept.variables.items()} == {
            name: v.dtype for name, v in LOAD.variables.items()
        }
        assert kept["load"].attrs["units"] == "1"
        assert kept.attrs["unit"] == "share"
        assert kept.attrs["inputs"] == '{"router": "abc"}'


def test_the_variables_come_back_in_the_order_in_which_they_were_returned(small_store, results):
    names = [f"v{i}" for i in (7, 2, 9, 0, 5, 3, 8, 1, 6, 4)]
    made = xr.Dataset(
        {n: ("x", ["a", "b"] if n == "v9" else [1.0, 2.0]) for n in names},
        coords={"x": [0, 1], "apart": 3},
    )
    results.fetch("many", 1, {}, Probe(made))
    again = Results(RunStore.open(small_store.path)).get("many", 1, {})
    assert list(again.data_vars) == names
    xr.testing.assert_identical(again[names].load().drop_attrs(), made)
    assert "apart" in again.coords


def test_the_same_inputs_are_computed_once_and_lazily_read(results):
    probe = Probe()
    for inputs in ({"a": 1, "b": (1, 2)}, {"b": [1, 2], "a": np.int64(1)}):
        kept = results.fetch("load", 1, inputs, probe, params={"q": 0.5})
        assert not kept["load"].variable._in_memory
    assert probe.calls == 1


@pytest.mark.parametrize(
    ("version", "inputs", "params"),
    [(2, {"a": 1}, {"q": 1}), (1, {"a": 2}, {"q": 1}), (1, {"a": 1}, {"q": 2}),
     (1, {"a": 1, "b": 0}, {"q": 1}), (1, {"q": 1}, {"a": 1}), (1, {"a": "1"}, {"q": 1})],
)  # fmt: skip
def test_another_version_input_or_parameter_is_computed_again(results, version, inputs, params):
    probe = Probe()
    results.fetch("load", 1, {"a": 1}, probe, params={"q": 1})
    results.fetch("load", version, inputs, probe, params=params)
    assert probe.calls == 2
    assert len(results.list()) == 2


def test_a_stretch_of_the_record_is_an_input_that_changes_with_its_steps_only(
    small_store, rows, results
):
    def write(first, last, tag):
        with small_store.writer("main") as w:
            for group, values in zip(("router", "train"), rows(first, last), strict=True):
                w.append(group, values)
            w.commit("rows")
            if tag:
                w.tag_checkpoint(last)

    probe = Probe()

    def fetch():
        results.fetch("load", 1, {"record": small_store.identity("main", 10)}, probe)

    write(1, 10, tag=True)
    fetch()
    write(11, 20, tag=False)
    fetch()
    assert probe.calls == 1
    small_store.rollback("main", 0)
    write(1, 10, tag=True)
    fetch()
    assert probe.calls == 2


def test_an_interrupted_computation_leaves_nothing(small_store, results):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.fetch("load", 1, {}, interrupted)
    assert results.list() == []
    assert small_store.repository.list_branches() == {"main"}
    probe = Probe()
    results.fetch("load", 1, {}, probe)
    assert probe.calls == 1


def test_two_processes_that_compute_the_same_end_with_one_result(small_store, start):
    code = """
import xarray as xr
from workbench.store.results import Results

def compute():
    print("computing", flush=True)
    sys.stdin.read(1)
    return xr.Dataset({"who": ("n", np.array([os.getpid()]))})

print(int(Results(store).fetch("who", 1, {}, compute).who[0]), flush=True)
"""
    both = [start(code), start(code)]
    assert [process.stdout.readline() for process in both] == ["computing\n"] * 2
    said = [process.communicate("x")[0].strip() for process in both]
    assert said[0] == said[1]
    assert int(said[0]) == both[0].pid
    assert len(Results(RunStore.open(small_store.path)).list()) == 1


@pytest.mark.parametrize(
    "name", ["", "../main", "/etc", "a/b", "a\0b", "x" * 65, "<b>", "Load", ".hidden", "a b", None]
)
def test_a_name_that_could_lead_elsewhere_is_refused(small_store, results, name):
    probe = Probe()
    for ask in (
        lambda: results.fetch(name, 1, {}, probe),
        lambda: results.get(name, 1, {}),
    ):
        with pytest.raises(UsageError, match="a name is 1 to 64"):
            ask()
    assert probe.calls == 0
    assert small_store.repository.list_branches() == {"main"}


@pytest.mark.parametrize(
    "inputs", [{"a": float("nan")}, {1: 2}, {"a": {None: 1}}, {"a": object()}, {"a": {1, 2}}]
)
def test_inputs_that_are_no_plain_data_are_refused(results, inputs):
    with pytest.raises(UsageError, match="inputs cannot be a key"):
        results.fetch("load", 1, inputs, Probe())


@pytest.mark.parametrize(
    "result",
    [
        LOAD["load"],
        LOAD.assign_attrs(inputs="mine"),
        LOAD.assign_attrs(model=object()),
        xr.Dataset({"a": ("n", np.array([object()], dtype=object))}),
    ],
)
def test_what_cannot_be_stored_is_told_and_leaves_nothing(small_store, results, result):
    with pytest.raises(SchemaError):
        results.fetch("load", 1, {}, Probe(result))
    assert results.list() == []
    small_store.commit_lock().acquire()


def test_results_are_no_arm_and_survive_gc(small_store, rows, results):
    with small_store.writer("main") as w:
        w.append("train", rows(1, 3)[1])
    results.fetch("load", 1, {}, Probe())
    assert small_store.branches == ["main"]
    assert BRANCH in small_store.repository.list_branches()
    collect(small_store, older_than=timedelta(0))
    fresh = RunStore.open(small_store.path)
    xr.testing.assert_equal(Results(fresh).get("load", 1, {}).load(), LOAD)
    assert verify_store(fresh).sound


def test_the_list_tells_what_is_kept_and_from_what(results):
    results.fetch("load", "1a", {"router": "x"}, Probe(), params={"q": 1})
    results.fetch("other", 1, {}, Probe())
    first, other = results.list()
    assert (first.probe, first.version, first.params) == ("load", "1a", {"q": 1})
    assert first.inputs == {"router": "x"}
    assert first.utc.startswith("20")
    assert first.nbytes > 64
    assert results.list("other") == [other]
    assert results.list("nothing") == []


def test_a_result_under_anothers_key_is_found(small_store, results):
    results.fetch("load", 1, {}, Probe())
    session = small_store.repository.writable_session(BRANCH)
    root = zarr.open_group(session.store, mode="r+")
    group = root[results.list()[0].path]
    group.attrs["version"] = "2"
    session.commit("changed by hand")
    (fault,) = verify_store(small_store).faults
    assert fault.kind == "result"
    assert fault.group.startswith("probes/load/")


def test_dropped_results_are_gone_and_their_space_comes_back_with_gc(small_store, results):
    noise = xr.Dataset({"a": ("n", np.random.default_rng(0).random(20_000))})
    results.fetch("large", 1, {}, Probe(noise))
    results.fetch("load", 1, {}, Probe())
    assert results.drop("nothing") == 0
    assert results.drop("large") == 1
    assert [s.probe for s in results.list()] == ["load"]
    kept = results.get("load", 1, {})
    xr.testing.assert_identical(kept.load().drop_attrs(), LOAD.drop_attrs())
    assert collect(small_store, older_than=timedelta(0)).bytes > 100_000
    assert verify_store(small_store).sound
    assert results.drop() == 1
    assert results.list() == []
    assert small_store.repository.list_branches() == {"main"}


def test_what_another_process_drops_while_it_is_read_is_missing(small_store, results):
    """Dropped, its space freed: between the look at the branch and the read."""
    results.fetch("load", 1, {}, Probe())
    other = Results(RunStore.open(small_store.path))
    opened = results._root

    def slow(tip):
        root = opened(tip)
        if other.list():
            other.drop()
            collect(other.store, older_than=timedelta(0))
        return root

    results._root = slow
    assert results.kept([Asked("load", 1, {}, {})], load=True) == [None]
    assert results.get("load", 1, {}) is None
    assert results.list() == []


def test_what_is_dropped_before_it_is_given_out_is_given_out_all_the_same(small_store, results):
    other = Results(RunStore.open(small_store.path))
    keep = results._keep

    def kept_and_dropped(computed):
        keep(computed)
        other.drop()

    results._keep = kept_and_dropped
    found = results.fetch("load", 1, {}, Probe())
    xr.testing.assert_equal(found.load(), LOAD)
    assert found.attrs["probe"] == "load"
    assert results.list() == []


def test_listing_reads_no_array(results, monkeypatch):
    results.fetch("count", 1, {}, lambda: xr.Dataset({"n": ("expert", np.zeros(8))}))
    monkeypatch.setattr(zarr.Group, "arrays", lambda group: pytest.fail("an array was looked up"))
    [stored] = results.list()
    assert stored.nbytes == 64
