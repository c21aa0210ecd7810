"""Probes by name over checkpoints: one load each, kept as they come, the same on workers."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from checkpoints_index.errors import CheckpointIncomplete
from probes import registry, subject
from probes.exam import Exam
from probes.examine import examine
from probes.registry import find, probe
from probes.running import one_pass, work
from probes.running.kept import holds
from workbench.errors import ProbeFailed, RunNotFound, UsageError, WorkbenchError


@pytest.fixture
def run_path(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(autouse=True)
def _own_probes_are_forgotten():
    registry.names()  # what is imported once is not marked again
    before = dict(registry._KNOWN)
    yield
    registry._KNOWN.clear()
    registry._KNOWN.update(before)


@pytest.fixture
def loads(monkeypatch):
    """Steps of the checkpoints whose weights were loaded, in order."""
    steps: list[int] = []
    build = subject.build_model

    def counted(checkpoint):
        steps.append(checkpoint.step)
        return build(checkpoint)

    monkeypatch.setattr(subject, "build_model", counted)
    return steps


def _norms(version=1):
    @probe("norms", question="How large are the routers?", reads="checkpoint", version=version)
    def norms(subject, scale=1.0):
        values = [scale * w.norm().item() for w in subject.router_weights]
        return xr.Dataset({"norm": ("layer", values, {"units": "1"})})


def _moved(needs=("resid_post",)):
    @probe("moved", question="How far is the stream?", reads="pair", needs=needs)
    def moved(subject, reference):
        gap = (subject["resid_post"] - reference["resid_post"]).norm(dim=(1, 2))
        return xr.Dataset({"gap": ("layer", gap.numpy(), {"units": "1"})})


def test_a_checkpoint_is_loaded_once_for_all_probes(run_path, loads):
    _norms()
    _moved()
    run = wb.open_run(run_path)
    found = examine(run, "norms", "moved")
    # The reference is the last checkpoint, loaded first and kept until its own turn.
    assert sorted(loads) == run.checkpoints.steps
    assert found["norms"]["norm"].dims == ("checkpoint", "layer")
    assert found["norms"].checkpoint.values.tolist() == run.checkpoints.steps
    assert found["norms"].tokens_seen.values.tolist() == [c.tokens_seen for c in run.checkpoints]
    assert (found["moved"]["gap"].isel(checkpoint=-1) == 0).all()
    assert (found["moved"]["gap"].isel(checkpoint=0) > 0).all()


def test_what_a_probe_finds_is_what_the_weights_say(run_path):
    _norms()
    run = wb.open_run(run_path)
    found = examine(run, "norms")["norms"]
    for checkpoint in run.checkpoints:
        for layer in (0, 1):
            name = f"blocks.{layer}.mlp.router.weight"
            weights = checkpoint.weights
            key = next(n for n in weights if n.startswith(f"blocks.{layer}.mlp.router"))
            want = weights.load([key])[key].norm().item()
            got = found["norm"].sel(checkpoint=checkpoint.step).values[layer]
            assert got == pytest.approx(want, rel=1e-6), name


def test_a_second_question_loads_nothing_and_a_longer_line_only_what_is_new(run_path, loads):
    _norms()
    trunk = examine(wb.open_run(run_path), "norms")["norms"].load()
    loads.clear()
    again = examine(wb.open_run(run_path), "norms")["norms"]
    assert loads == []
    xr.testing.assert_equal(again.drop_attrs(), trunk.drop_attrs())
    arm = wb.open_run(run_path, "curriculum")
    longer = examine(arm, "norms")["norms"]
    assert loads == [s for s in arm.checkpoints.steps if s > arm.fork_step]
    np.testing.assert_array_equal(
        longer["norm"].sel(checkpoint=trunk.checkpoint).values, trunk["norm"].values
    )


@pytest.mark.parametrize("change", ["version", "params", "exam"])
def test_another_version_parameter_or_exam_is_computed_anew(run_path, loads, change):
    _norms()
    run = wb.open_run(run_path)
    examine(run, "norms")
    loads.clear()
    if change == "version":
        _norms(version=2)
        examine(run, "norms")
    elif change == "params":
        examine(run, "norms", params={"norms": {"scale": 2.0}})
    else:
        exam = Exam.of(run)
        examine(run, "norms", exam=Exam(tokens=exam.tokens[:, :4], domains=exam.domains))
    assert loads == run.checkpoints.steps


def test_at_most_two_models_are_alive_however_many_checkpoints_there_are(run_path):
    alive: list[int] = []
    models: list[weakref.ref] = []

    @probe("census", question="Who is there?", reads="pair")
    def census(subject, reference):
        for one in (subject, reference):
            if not any(ref() is one.model for ref in models):
                models.append(weakref.ref(one.model))
        gc.collect()
        alive.append(sum(ref() is not None for ref in models))
        return xr.Dataset({"here": ((), 1)})

    run = wb.open_run(run_path, "curriculum")
    for against in ("final", "previous"):
        alive.clear()
        models.clear()
        examine(run, "census", against=against, keep=False)
        assert len(alive) >= 8
        assert max(alive) <= 2


def test_one_failing_checkpoint_costs_only_itself(run_path, loads):
    broken = {"at": None}

    @probe("picky", question="Does it like the step?", reads="checkpoint")
    def picky(subject):
        if subject.step == broken["at"]:
            raise ZeroDivisionError("no such luck")
        return xr.Dataset({"step_seen": ((), subject.step)})

    _norms()
    run = wb.open_run(run_path)
    broken["at"] = run.checkpoints.steps[1]
    with pytest.raises(ProbeFailed, match=r"'picky' failed at 1 of \d+ .*step 4.*no such luck"):
        examine(run, "picky", "norms")
    loads.clear()
    assert examine(run, "norms")["norms"].sizes["checkpoint"] == len(run.checkpoints)
    assert loads == []
    partly = examine(run, "picky", skip_broken=True)["picky"]
    assert partly.sizes["checkpoint"] == len(run.checkpoints) - 1
    assert "step 4" in partly.attrs["left_out"]
    loads.clear()
    broken["at"] = None
    whole = examine(run, "picky")["picky"]
    assert loads == [4]
    assert whole["step_seen"].values.tolist() == run.checkpoints.steps


def test_a_damaged_checkpoint_is_named_and_the_others_are_kept(run_path, loads):
    _norms()
    run = wb.open_run(run_path)
    victim = run.checkpoints[2]
    (victim.path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ProbeFailed, match=rf"step {victim.step}"):
        examine(run, "norms")
    found = examine(run, "norms", skip_broken=True)["norms"]
    assert victim.step not in found.checkpoint
    assert found.sizes["checkpoint"] == len(run.checkpoints) - 1


def test_pairs_are_held_against_what_was_asked_for(run_path):
    _moved()
    arm = wb.open_run(run_path, "curriculum")
    steps = arm.checkpoints.steps
    against = {}
    for word in ("first", "final", "fork", "previous", 8):
        found = examine(arm, "moved", against=word, keep=False)["moved"]
        against[word] = found.against.values.tolist()
    assert against["first"] == [steps[0]] * len(steps)
    assert against["final"] == [steps[-1]] * len(steps)
    assert against["fork"] == [arm.fork_step] * len(steps)
    assert against["previous"] == steps[:-1]
    assert against[8] == [8] * len(steps)
    with pytest.raises(UsageError, match="'final', 'first', 'previous', 'fork' or a step"):
        examine(arm, "moved", against="later")
    with pytest.raises(UsageError, match="forked nowhere"):
        examine(wb.open_run(run_path), "moved", against="fork")


def test_a_window_has_only_its_checkpoints_and_its_steps(run_path):
    _norms()
    arm = wb.open_run(run_path, "curriculum")
    week = arm.window(last=0.2)
    found = examine(week, "norms", "load")
    assert found["norms"].checkpoint.values.tolist() == week.checkpoints.steps
    assert found["load"].step.values.tolist() == list(range(week.start + 1, week.stop + 1))
    whole = examine(arm, "load")["load"]
    assert whole.sizes["step"] == arm.last_step


def test_what_cannot_be_asked_is_refused_with_the_remedy(run_path):
    _norms()
    run = wb.open_run(run_path)
    with pytest.raises(RunNotFound, match="did you mean 'norms'"):
        examine(run, "norm")
    with pytest.raises(UsageError, match="takes scale"):
        examine(run, "norms", params={"norms": {"size": 1}})
    with pytest.raises(UsageError, match="not asked for"):
        examine(run, "norms", params={"balance": {}})
    with pytest.raises(UsageError, match="open_run"):
        examine(str(run_path), "norms")
    with pytest.raises(UsageError, match="no probe was named"):
        examine(run)


def test_a_probe_that_returns_something_else_is_told(run_path):
    @probe("wrong", question="?", reads="checkpoint")
    def wrong(subject):
        return xr.DataArray([1.0], dims="layer")

    with pytest.raises(ProbeFailed, match=r"returned a DataArray.*to_dataset"):
        examine(wb.open_run(run_path), "wrong")


def test_finish_sees_all_checkpoints_at_once(run_path):
    @probe(
        "centred", question="?", reads="checkpoint",
        finish=lambda ds: ds.assign(x=ds["x"] - ds["x"].mean("checkpoint")),
    )  # fmt: skip
    def centred(subject):
        return xr.Dataset({"x": ((), float(subject.step))})

    found = examine(wb.open_run(run_path), "centred")["centred"]
    assert float(found["x"].mean()) == pytest.approx(0, abs=1e-9)
    assert float(found["x"].std()) > 1


SCIENTISTS_PROBE = """
import os, pathlib
import xarray as xr
from probes.registry import probe

@probe("plugged", question="How large is the final norm?", reads="checkpoint")
def plugged(subject):
    size = subject.model.ln_final.weight.norm().item()
    return xr.Dataset({"size": ((), size, {"units": "1"})})

@probe("shaky", question="Does the second try succeed?", reads="checkpoint", needs=("resid_post",))
def shaky(subject, marks="", way="raise"):
    mark = pathlib.Path(marks, str(subject.step))
    if not mark.exists():
        mark.touch()
        if way == "raise":
            raise OSError("the network is down")
        if subject.step == 8:
            os._exit(1)
    return xr.Dataset({"mean": ("layer", subject["resid_post"].mean(dim=(1, 2)).double().numpy())})
"""


def _install(folder: Path, body: str) -> None:
    """A package with an entry point, as pip would leave it."""
    folder.mkdir()
    (folder / "plugged_probe.py").write_text(body)
    about = folder / "plugged_probe-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-probe\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[workbench.probes]\nplugged = plugged_probe\n")


def _cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = f"{folder}{os.pathsep}{Path(wb.__file__).parents[1]}"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "workbench.app.cli", *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=300,
    )  # fmt: skip


def test_a_package_that_is_installed_brings_its_probes_to_the_command_line(run_path, tmp_path):
    _install(tmp_path / "site", SCIENTISTS_PROBE)
    listed = _cli(tmp_path / "site", "probe", "--list")
    assert "plugged                  checkpoint  How large is the final norm?" in listed.stdout
    ran = _cli(tmp_path / "site", "probe", str(run_path), "plugged")
    assert ran.returncode == 0, ran.stderr
    assert "size" in ran.stdout
    kept = wb.open_run(run_path).results.list("plugged")
    assert kept


def test_a_package_that_cannot_be_imported_is_named_and_takes_no_other_down(tmp_path):
    _install(tmp_path / "site", "import a_module_that_is_not_there")
    listed = _cli(tmp_path / "site", "probe", "--list")
    assert listed.returncode == 0
    assert "balance" in listed.stdout
    assert "plugged: could not be imported: ModuleNotFoundError" in listed.stderr


@pytest.mark.slow
def test_workers_give_the_same_numbers_and_failures_are_tried_again(run_path, tmp_path):
    """Raised errors and a worker that dies; the client keeps what they found."""
    _install(tmp_path / "site", SCIENTISTS_PROBE)
    (tmp_path / "marks-raise").mkdir()
    (tmp_path / "marks-die").mkdir()
    script = textwrap.dedent(
        f"""
        import distributed, torch, warnings
        import workbench as wb
        from probes.examine import examine

        if __name__ == "__main__":
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            run = wb.open_run({str(run_path)!r})
            with distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None
            ) as cluster, distributed.Client(cluster) as client:
                for way in ("raise", "die"):
                    marks = {str(tmp_path)!r} + "/marks-" + way
                    params = {{"shaky": {{"marks": marks, "way": way}}}}
                    found = examine(
                        run, "shaky", "plugged", client=client,
                        params=params,
                    )
                    here = examine(
                        run, "shaky", "plugged", keep=False,
                        params=params,
                    )
                    for name in found:
                        assert found[name].drop_attrs().identical(here[name].drop_attrs()), name
            print("same", len(run.results.list("shaky")))
        """
    )
    (tmp_path / "script.py").write_text(script)
    path = f"{tmp_path / 'site'}{os.pathsep}{Path(wb.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=400,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    count = len(wb.open_run(run_path).checkpoints)
    # Each checkpoint's result and the whole, for both ways.
    assert done.stdout.strip() == f"same {2 * (count + 1)}", done.stderr[-3000:]


def test_every_probe_of_ours_can_be_called_for(tmp_path):
    for name in registry.names():
        known = find(name)
        assert known.question.endswith("?"), name
        assert known.function.__doc__, name


class Cluster:
    """A client whose tasks are done here, at once."""

    def __init__(self):
        self.sent: list[list[str]] = []

    def submit(self, function, *arguments, pure, retries, **named):
        from distributed import Future

        self.sent.append([order.probe.name for order in arguments[2]])
        future = mock.create_autospec(Future, instance=True)
        future.exception.return_value = None
        future.result.return_value = function(*arguments, **named)
        return future

    def cancel(self, futures): ...

    def run(self, function, *arguments):
        function(*arguments)


class Finished(list):
    """Futures, each done as soon as it is there."""

    def __iter__(self):
        while self:
            yield self.pop(0)

    add = list.append


def test_what_succeeded_is_not_tried_again_with_what_failed_by_chance(run_path, monkeypatch):
    import distributed

    tries = []

    @probe("shaky", question="?", reads="checkpoint")
    def shaky(subject):
        tries.append(subject.step)
        if tries.count(subject.step) < 2:
            raise OSError("the network is down")
        return xr.Dataset({"x": ((), 1.0)})

    _norms()
    monkeypatch.setattr(distributed, "as_completed", Finished)
    some, cluster = wb.open_run(run_path).checkpoints[-2:], Cluster()
    found = examine(some, "norms", "shaky", client=cluster)
    assert cluster.sent == [["norms", "shaky"]] * 2 + [["shaky"]] * 2
    here = examine(some, "norms", "shaky", keep=False)
    for name in found:
        np.testing.assert_array_equal(*(f[name].to_dataarray().values for f in (found, here)))


def test_a_task_that_ends_after_its_examination_leaves_no_model(run_path):
    run = wb.open_run(run_path)

    @probe("late", question="?", reads="checkpoint")
    def late(subject):
        one_pass.forget("over")  # the client left while this was at work
        return xr.Dataset({"x": ((), 1.0)})

    order = [one_pass.Order(find("late"), {})]
    one_pass.sit(run.checkpoints[-1], Exam.of(run), order, examination="over")
    assert not one_pass._HELD


def test_results_of_checkpoints_are_kept_as_they_come(run_path, monkeypatch):
    """An examination that is broken off leaves what it had found."""
    _norms()
    run = wb.open_run(run_path)
    sit = work.sit

    def broken_off(checkpoint, *rest, **named):
        if checkpoint.step >= 8:
            raise KeyboardInterrupt
        return sit(checkpoint, *rest, **named)

    monkeypatch.setattr(work, "sit", broken_off)
    with pytest.raises(KeyboardInterrupt):
        examine(run, "norms")
    assert len(run.results.list("norms")) == sum(step < 8 for step in run.checkpoints.steps)


def test_what_is_kept_is_given_without_loading_anything(run_path, loads):
    _norms()
    arm = wb.open_run(run_path, "curriculum")
    assert examine(arm, "norms", compute=False) == {}
    whole = examine(arm, "norms")["norms"]
    loads.clear()
    last = examine(arm.checkpoints[-1:], "norms", "capability", compute=False)
    assert loads == []
    assert last["norms"]["norm"].values.tolist() == whole["norm"].values[-1:].tolist()
    assert last["capability"].checkpoint.values.tolist() == [30]


# What an exam, a record and a model are named by


def test_chance_levels_are_part_of_the_exam(run_path):
    run = wb.open_run(run_path)
    exam = Exam.of(run)
    other = replace(exam, chance=dict.fromkeys(exam.tasks, 0.9))
    first = examine(run.checkpoints[-1:], "answers", exam=exam)["answers"]["normalized"].values
    second = examine(run.checkpoints[-1:], "answers", exam=other)["answers"]["normalized"].values
    assert not np.allclose(first, second)


def _built(factor):
    def build(checkpoint):
        model = subject.build_model(checkpoint)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        return model

    return build


def test_ways_of_building_that_have_no_name_share_nothing_that_is_kept(run_path):
    _norms()
    run = wb.open_run(run_path)
    exam = Exam.of(run)
    plain = examine(run, "norms", exam=exam)["norms"]["norm"].values
    for factor in (2.0, 3.0):
        found = examine(run, "norms", exam=replace(exam, build=_built(factor)))["norms"]
        np.testing.assert_allclose(found["norm"].values, factor * plain, rtol=1e-5)


class Builder:
    """Its method has one name, whatever it was made with."""

    def __init__(self, factor):
        self.factor = factor

    def build(self, checkpoint):
        return _built(self.factor)(checkpoint)


@functools.wraps(subject.build_model)
def _wrapped(checkpoint):
    return _built(2.0)(checkpoint)


@pytest.mark.parametrize("build", [Builder(2.0).build, _wrapped, _built(2.0)])
def test_a_way_of_building_that_shares_its_name_with_another_has_no_name(run_path, build):
    _norms()
    last = wb.open_run(run_path).checkpoints[-1:]
    exam = replace(Exam.of(last), build=build)
    assert exam.identity is None
    assert "names the exam's way" in examine(last, "norms", exam=exam)["norms"].attrs["not_kept"]
    assert not last.run.results.list()
    assert "not_kept" not in examine(last, "norms")["norms"].attrs
    assert "build_model" in str(replace(exam, build=subject.build_model).identity)


def test_a_thread_that_sat_for_another_exam_holds_no_model_of_it(run_path):
    """As a worker of Dask does, call after call."""
    _norms()
    run = wb.open_run(run_path)
    order = [one_pass.Order(find("norms"), {})]
    values = []
    for factor in (1.0, 2.0):
        exam = replace(Exam.of(run), build=_built(factor))
        found = one_pass.sit(run.checkpoints[-1], exam, order, examination=f"x{factor}")
        values.append(found["norms"]["norm"].values)
    one_pass.forget("x2.0")
    np.testing.assert_allclose(values[1], 2 * values[0], rtol=1e-5)
    assert not one_pass._HELD


def _rows(run, steps, loss):
    """Rows of the training curves, like the last ones that were recorded."""
    last = {str(n): np.repeat(v.values[-1:], len(steps)) for n, v in run.train.data_vars.items()}
    return {**last, "step": steps, "loss": np.full(len(steps), loss, "float32")}


def test_a_run_opened_earlier_keeps_nothing_under_the_name_of_a_later_record(run_path):
    early = wb.open_run(run_path)
    with early.store.writer("main") as writer:
        last = early.last_step
        writer.append("train", _rows(early, np.array([last + 1]), 1.0))
        writer.commit("one more")

    @probe("steps", question="How many?", reads="record")
    def steps(source):
        return xr.Dataset({"steps": ((), source.train.sizes["step"])})

    assert int(examine(early, "steps")["steps"]["steps"]) == last
    late = wb.open_run(run_path)
    assert int(examine(late, "steps")["steps"]["steps"]) == last + 1
    assert int(examine(early, "steps")["steps"]["steps"]) == last


def test_a_run_opened_before_a_rollback_keeps_nothing_for_what_was_recorded_after(run_path):
    @probe("losses", question="Which?", reads="record")
    def losses(source):
        return xr.Dataset({"loss": ("step", source.train["loss"].values)})

    early = wb.open_run(run_path)
    old = early.train["loss"].values
    early.store.rollback("main", 20)
    with early.store.writer("main") as writer:
        steps = np.arange(21, early.last_step + 1)
        writer.append("train", _rows(wb.open_run(run_path), steps, 9.0))
        writer.commit("again")
    window = {"start": 8, "stop": int(early.last_step)}
    np.testing.assert_array_equal(
        examine(early.window(**window), "losses")["losses"]["loss"].values, old[8:]
    )
    fresh = wb.open_run(run_path)
    assert examine(fresh.window(**window), "losses")["losses"]["loss"].values[-1] == 9.0
    assert examine(fresh, "losses")["losses"]["loss"].values[-1] == 9.0


def test_weights_that_were_written_over_are_refused(run_path):
    _norms()
    run = wb.open_run(run_path)
    here, other = run.checkpoints[1].path, run.checkpoints[2].path
    later = run.checkpoints[1].record.utc + 3600
    shutil.copy(other / "model.safetensors", here / "model.safetensors")
    os.utime(here / "model.safetensors", (later, later))
    with pytest.raises(ProbeFailed, match=r"step 4.*written over after it was recorded"):
        examine(run, "norms")


def _other_weights(run, **about):
    """A checkpoint in whose place others of the same size lie, and its record with this changed."""
    one, other = run.checkpoints[1], run.checkpoints[2]
    changed = replace(one, record=replace(one.record, utc=one.record.utc - 3600, **about))
    shutil.copy(other.path / "model.safetensors", one.path / "model.safetensors")
    os.utime(one.path / "model.safetensors", (0, 0))
    return changed


@pytest.mark.parametrize("known", ["digests", "fingerprint"])
def test_other_weights_under_an_old_time_are_refused(run_path, known):
    run = wb.open_run(run_path)
    about = {} if known == "digests" else {"digests": None}
    assert run.checkpoints[1].record.fingerprint is not None
    changed = _other_weights(run, **about)
    with pytest.raises(CheckpointIncomplete, match="written over after it was recorded"):
        changed.check_unaltered()


def test_without_digest_and_fingerprint_the_size_alone_tells(run_path):
    run = wb.open_run(run_path)
    changed = _other_weights(run, digests=None, fingerprint=None)
    changed.check_unaltered()  # of the same size: nothing could tell
    file = changed.path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(CheckpointIncomplete, match=r"bytes, expected \d+.*written over"):
        changed.check_unaltered()


def test_a_copy_of_a_run_is_believed_after_its_digests_were_read(run_path):
    _norms()
    run = wb.open_run(run_path)
    later = run.checkpoints[1].record.utc + 3600
    for file in run.checkpoints[1].path.iterdir():
        os.utime(file, (later, later))
    assert examine(run, "norms")["norms"].sizes["checkpoint"] == len(run.checkpoints)


# One probe's fault


def test_a_site_that_is_not_there_costs_only_the_probe_that_wants_it(run_path):
    _norms()

    @probe("asks", question="?", reads="checkpoint", needs=("blocks.{layer}.no_such_site",))
    def asks(subject):
        return xr.Dataset({"x": ((), subject["blocks.{layer}.no_such_site"].sum())})

    run = wb.open_run(run_path)
    with pytest.raises(ProbeFailed, match=r"'asks' failed at 7 of 7.*no site"):
        examine(run, "asks", "norms")
    assert examine(run, "norms", compute=False)


@pytest.mark.parametrize("what", ["site", "weights"])
def test_a_probe_that_writes_on_what_it_was_given_fails_alone(run_path, what):
    @probe("vandal", question="?", reads="checkpoint", needs=("resid_post",))
    def vandal(subject):
        with torch.no_grad():
            victim = subject["resid_post"] if what == "site" else subject.model.embed.weight
            victim.zero_()
        return xr.Dataset({"x": ((), 1.0)})

    @probe("mean", question="?", reads="checkpoint", needs=("resid_post",))
    def mean(subject):
        weights, stream = subject.model.embed.weight, subject["resid_post"]
        size = weights.abs().sum().item() + stream.abs().sum().item()
        return xr.Dataset({"size": ((), size)})

    run = wb.open_run(run_path)
    with pytest.raises(ProbeFailed, match=rf"'vandal' failed.*\({what}.*work on subject.copy"):
        examine(run, "vandal", "mean")
    kept = examine(run, "mean", compute=False)["mean"]["size"].values
    alone = examine(run, "mean", keep=False)["mean"]["size"].values
    np.testing.assert_array_equal(kept, alone)


def _through_numpy(subject):
    subject["resid_post"].numpy()[0, 0] = 7.0


def _through_data(subject):
    subject.model.embed.weight.data.mul_(2)


def _on_a_site_of_its_own(subject):
    subject["router_probs"].numpy()[:] = 0.5


def _by_exchange(subject):
    with torch.no_grad():
        for block in subject.model.blocks:
            for parameter in block.mlp.parameters():
                parameter.copy_(parameter.flip(0))


def _with_a_hook(subject):
    subject.model.blocks[0].register_forward_hook(lambda module, given, out: out * 0)


def _by_training(subject):
    subject.model.train()


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (_through_numpy, "site resid_post"),
        (_through_data, r"weights \S*embed"),
        (_on_a_site_of_its_own, "site router_probs"),
        (_by_exchange, "weights blocks.0.mlp"),
        (_with_a_hook, "hooks on blocks.0"),
        (_by_training, "training mode of"),
    ],
)
def test_no_door_is_left_through_which_a_probe_reaches_what_the_others_see(run_path, how, named):
    @probe("vandal", question="?", reads="pair", needs=("resid_post",))
    def vandal(subject, reference):
        how(reference)
        return xr.Dataset({"x": ((), 1.0)})

    @probe("mean", question="?", reads="pair", needs=("resid_post",))
    def mean(subject, reference):
        tokens = torch.tensor(reference.exam.tokens)
        size = reference["resid_post"].sum() + reference["router_probs"].square().sum()
        return xr.Dataset({"size": ((), (size + reference.logits(tokens).sum()).item())})

    some = wb.open_run(run_path).checkpoints[-2:]
    with pytest.raises(ProbeFailed, match=rf"'vandal' failed at 2 of 2.*\({named}"):
        examine(some, "vandal", "mean")
    kept = examine(some, "mean", compute=False)["mean"]["size"].values
    alone = examine(some, "mean", keep=False)["mean"]["size"].values
    np.testing.assert_array_equal(kept, alone)


def test_the_tokens_and_what_is_known_of_them_refuse_to_be_written_on():
    mine = np.arange(16).reshape(2, 8)
    exam = Exam(tokens=mine, domains=("a", "b"))
    mine[0, 0] = 5
    assert exam.tokens[0, 0] == 0
    for one in (exam, pickle.loads(pickle.dumps(exam))):  # as a worker has it
        for array in (one.tokens, *(column.values for column in one.labels.values())):
            with pytest.raises(ValueError, match="read-only"):
                array[:1] = array[-1:]
        one.labels["row"] = one.labels["row"] + 1
        assert one.labels["row"].values[0] == 0


def test_a_changed_model_is_let_go_of_before_it_is_loaded_anew(run_path, monkeypatch):
    models: list[weakref.ref] = []
    alive: list[int] = []
    build = subject.build_model

    def counted(checkpoint):
        models.append(weakref.ref(model := build(checkpoint)))
        gc.collect()
        alive.append(sum(ref() is not None for ref in models))
        return model

    @probe("vandal", question="?", reads="pair")
    def vandal(subject, reference):
        for one in (subject, reference):
            one.model.embed.weight.data.zero_()
        return xr.Dataset({"x": ((), 1.0)})

    monkeypatch.setattr(subject, "build_model", counted)
    with pytest.raises(ProbeFailed, match="'vandal'"):
        examine(wb.open_run(run_path).checkpoints[-3:], "vandal", keep=False)
    assert len(alive) > 4
    assert max(alive) == 2


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("blocks.0.unused", "was not called in the pass"),
        ("blocks.0.pair", "gives a dict, expected a tensor"),
        ("blocks.{layer}{other}", "no site"),
    ],
)
def test_a_site_that_gives_no_tensor_costs_only_the_probe_that_wants_it(run_path, site, says):
    class Pair(torch.nn.Module):
        def forward(self, x):
            return {"x": x}

    def build(checkpoint):
        model = subject.build_model(checkpoint)
        block = model.blocks[0]
        block.unused, block.pair = torch.nn.Linear(2, 2), Pair()
        block.register_forward_hook(lambda module, given, out: module.pair(out)["x"])
        model.mod_dict = dict(model.named_modules())
        return model

    _norms()
    _moved()

    @probe("asks", question="?", reads="checkpoint", needs=(site,))
    def asks(subject):
        return xr.Dataset({"x": ((), subject[site].sum())})

    run = wb.open_run(run_path)
    exam = replace(Exam.of(run), build=build)
    with pytest.raises(ProbeFailed, match=rf"'asks' failed at 2 of 2.*{says}") as told:
        examine(run.checkpoints[-2:], "asks", "norms", "moved", exam=exam)
    assert "'norms'" not in str(told.value)
    assert "'moved'" not in str(told.value)


def _unstorable(reads):
    @probe("odd", question="?", reads=reads)
    def odd(*given):
        return xr.Dataset({"x": ((), 1.0)}, attrs={"model": object()})


@pytest.mark.parametrize("reads", ["record", "checkpoint", "checkpoints"])
def test_a_result_that_cannot_be_stored_is_named_and_costs_no_other(run_path, reads):
    _norms()
    _unstorable(reads)
    run = wb.open_run(run_path)
    with pytest.raises(WorkbenchError, match=r"'odd'.* cannot be stored") as told:
        examine(run, "odd", "load", "norms")
    assert "'norms'" not in str(told.value)
    assert {stored.probe for stored in run.results.list()} == {"load", "norms"}
    assert list(examine(run, "norms", compute=False)) == ["norms"]
    assert (examine(run, "odd", keep=False)["odd"]["x"] == 1).all()


def test_what_is_returned_is_what_the_next_who_asks_is_given(run_path):
    _norms()

    @probe("mixed", question="?", reads="checkpoints")
    def mixed(checkpoints, exam, device):
        return xr.Dataset({"x": ("word", np.array(["a", "b"]))})

    run = wb.open_run(run_path)
    for name in ("norms", "mixed", "load"):
        first = examine(run, name)[name].load()
        again = examine(run, name)[name].load()
        assert first.identical(again), name
        assert examine(run, name, compute=False)[name].identical(again), name


def test_a_finish_that_fails_is_named_also_where_nothing_is_computed(run_path):
    fails = []

    def finish(ds):
        return ds / fails[0] if fails else ds

    @probe("centred", question="?", reads="checkpoint", finish=finish)
    def centred(subject):
        return xr.Dataset({"x": ((), 1.0)})

    run = wb.open_run(run_path)
    examine(run, "centred")
    fails.append(object())
    with pytest.raises(ProbeFailed, match=r"probe 'centred': results of 2 .*TypeError"):
        examine(run.checkpoints[-2:], "centred", compute=False)


def test_results_that_do_not_fit_together_are_told_and_cost_no_other(run_path):
    _norms()

    @probe("ragged", question="?", reads="checkpoint")
    def ragged(subject):
        return xr.Dataset({"x": ("k", np.zeros(2 + subject.step))})

    run = wb.open_run(run_path)
    with pytest.raises(ProbeFailed, match=r"'ragged': results of 7 checkpoints"):
        examine(run, "ragged", "norms")
    assert "norms" in examine(run, "norms", compute=False)


def test_coordinates_that_differ_between_checkpoints_keep_their_own_values(run_path):
    @probe("told", question="?", reads="checkpoint")
    def told(subject):
        words = ("k", [f"s{subject.step}", "b"])
        return xr.Dataset({"x": ("k", np.zeros(2))}, coords={"at": subject.step, "word": words})

    run = wb.open_run(run_path)
    found = examine(run, "told")["told"]
    assert found["at"].values.tolist() == run.checkpoints.steps
    assert found["word"].isel(k=0).values.tolist() == [f"s{s}" for s in run.checkpoints.steps]


def test_a_record_probe_that_breaks_is_told_by_name(run_path):
    run = wb.open_run(run_path)
    with pytest.raises(ProbeFailed, match="probe 'load' failed: TypeError"):
        examine(run, "load", params={"load": {"points": "abc"}})
    with pytest.raises(UsageError, match=r"distributed.Client"):
        examine(run, "load", client="tcp://nowhere")


def test_a_probe_that_mixes_checkpoints_is_given_the_exam_and_named_by_their_weights(run_path):
    run = wb.open_run(run_path)
    exam = Exam.of(run)
    short = Exam(tokens=exam.tokens[:3], domains=exam.domains[:3])
    params = {"router-transplant": {"at_most": 2, "n_boot": 20}}
    assert examine(run, "router-transplant", params=params, compute=False) == {}
    whole = examine(run, "router-transplant", params=params)["router-transplant"]
    part = examine(run, "router-transplant", params=params, exam=short)["router-transplant"]
    assert not np.allclose(whole["loss"].values, part["loss"].values)
    assert "accuracy" in whole
    assert "accuracy" not in part


def test_each_line_of_training_says_its_own_branch(run_path):
    _norms()
    trunk = {"main": None, "curriculum": None}
    steps = wb.open_run(run_path).checkpoints.steps
    for branch in trunk:
        line = wb.open_run(run_path, branch)
        part = line.checkpoints[: len(steps)]
        assert examine(part, "norms")["norms"].attrs["branch"] == branch


def test_a_result_holds_until_its_weights_record_or_probe_change(run_path):
    _norms()
    run = wb.open_run(run_path)
    examine(run, "norms", "load")
    wholes = [s for s in run.results.list() if "branch" in s.inputs]
    assert {s.probe for s in wholes if holds(run, s)} == {"norms", "load"}
    _norms(version=2)
    assert {s.probe for s in wholes if holds(run, s)} == {"load"}
    run.store.rollback("main", 20)
    assert not [s for s in wholes if holds(wb.open_run(run_path), s)]
