"""`workbench checkpoints ...`: on a run that was really trained, and on records of what was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import workbench as wb
from checkpoints_index.formats import open_weights
from checkpoints_index.index import CheckpointIndex
from checkpoints_index.record import CheckpointRecord
from workbench.app.cli import main
from workbench.store.run_store import RunStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CATALOGUE", str(tmp_path / "mine" / "catalogue.sqlite"))


@pytest.fixture
def run(capsys):
    """Exit code, stdout and stderr of `workbench checkpoints ...`."""

    def call(*arguments):
        code = 0
        try:
            main(["checkpoints", *map(str, arguments)])
        except SystemExit as leave:
            code = leave.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def copy(tmp_path, tiny_run):
    """The tiny run, to be changed."""
    path = tmp_path / "runs" / "tiny"
    shutil.copytree(tiny_run, path)
    return path


def of_json(answer):
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)


def test_the_checkpoints_of_a_run_are_listed_and_shown(run, tiny_run, tiny_plan):
    listed = of_json(run("list", tiny_run, "--json"))
    steps = [s for s in range(31) if tiny_plan.is_checkpoint(s)]
    fork = tiny_plan.schedule.fork_step
    assert [r["step"] for r in listed if r["branch"] == "main"] == [s for s in steps if s <= fork]
    for arm in ("continue", "curriculum"):
        assert [r["step"] for r in listed if r["branch"] == arm] == [s for s in steps if s > fork]
    shown = of_json(run("show", tiny_run, "curriculum", "30"))
    assert (shown["phase"], shown["tokens_seen"]) == ("final", 30 * tiny_plan.tokens_per_step)
    assert (shown["kind"], shown["trainer"]) == ("training", "workbench")
    assert shown["digests"]["model.safetensors"].startswith("sha256:")
    _, text, _ = run("list", tiny_run, "--branch", "main", "--after", "4", "--until", "8")
    assert [line.split()[:2] for line in text.splitlines()] == [["branch", "step"], ["main", "8"]]
    # What was asked of one run needs no catalogue, and makes none.
    assert not Path(os.environ["WORKBENCH_CATALOGUE"]).exists()


def test_whole_checkpoints_are_verified_and_a_damaged_one_is_found(run, copy):
    code, out, _ = run("verify", copy)
    count = len(CheckpointIndex(copy).list())
    assert (code, out) == (0, f"{count} of {count} checkpoints are whole\n")
    weights = copy / "checkpoints" / "main" / "step-00000008" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    code, _, err = run("verify", copy)
    assert code == 1
    assert "step-00000008/model.safetensors: sha256" in err
    assert run("verify", copy, "--fast")[0] == 0
    assert run("verify", copy, "main", "4")[:2] == (0, "1 of 1 checkpoints are whole\n")
    code, out, _ = run("verify", copy, "main", "8", "--json")
    assert (code, json.loads(out)["whole"]) == (1, 0)


def test_weights_and_their_own_digests_changed_together_are_found_by_the_record(run, copy):
    here = copy / "checkpoints" / "main"
    shutil.copytree(here / "step-00000004", here / "step-00000008", dirs_exist_ok=True)
    code, _, err = run("verify", copy)
    assert code == 1
    assert "but its record says" in err


def test_many_runs_are_scanned_and_asked(run, copy, tiny_run):
    code, out, err = run("scan", copy.parent, tiny_run)
    assert (code, err) == (0, "")
    assert "2 recorded runs" in out
    assert f"catalogue: {os.environ['WORKBENCH_CATALOGUE']}" in out
    everything = of_json(run("list", "--json"))
    each = len(CheckpointIndex(copy).list())
    assert len(everything) == 2 * each
    assert len(of_json(run("list", "--run", copy, "--json"))) == each
    one = everything[-1]
    same = of_json(run("show", one["path"]))["same_weights_at"]
    assert len(same) == 1
    assert of_json(run("show", one["fingerprint"][:12]))[0]["fingerprint"] == one["fingerprint"]
    assert run("scan", "--json")[0] == 0
    assert "run " in run("list", "--limit", "1")[1]


def test_the_tree_of_a_run_is_drawn(run, copy):
    _, out, _ = run("lineage", copy)
    fork = RunStore.open(copy / "store").lineage("curriculum")[1]
    assert out.splitlines()[0].startswith("tiny/main: steps 0 to")
    assert out.splitlines()[2].startswith(f"└─ curriculum: from step {fork}")
    run("scan", copy)
    assert run("lineage")[1] == out
    plain = of_json(run("lineage", copy, "--json"))
    assert [line["branch"] for line in plain] == ["main", "continue", "curriculum"]


def places(folder):
    return {p.parent.name + "/" + p.name for p in folder.glob("checkpoints/*/*")}


def test_a_prune_is_dry_until_it_is_applied_and_keeps_what_is_needed(run, copy, tiny_plan):
    fork = tiny_plan.schedule.fork_step
    options = ("--dense-last", "1", "--elsewhere", "0")
    before = places(copy)
    code, out, _ = run("prune", copy, *options)
    assert code == 0
    assert "a dry run: nothing was touched" in out
    assert places(copy) == before
    said = of_json(run("prune", copy, *options, "--json"))
    reasons = {(k["branch"], k["step"]): k["reasons"] for k in said["keep"]}
    assert "the store's 'curriculum' forked here" in reasons["main", fork]
    assert ("curriculum", 30) in reasons
    code, out, _ = run("prune", copy, *options, "--apply")
    assert code == 0
    assert "deleted; " in out
    gone = {f"{d['branch']}/step-{d['step']:08d}" for d in said["delete"]}
    assert gone
    assert places(copy) == before - gone
    # All that was recorded of them can still be read, and the record says why they are gone.
    pruned = [r for r in CheckpointIndex(copy).list() if r.pruned]
    assert len(pruned) == len(gone)
    checkpoint = wb.open_run(copy, pruned[0].branch).checkpoints.at(pruned[0].step)
    with pytest.raises(Exception, match="pruned to make room"):
        checkpoint.load()
    code, out, _ = run("verify", copy)
    assert (code, f"{len(gone)} more are pruned" in out) == (0, True)
    assert "0 go" in run("prune", copy, *options)[1]


def test_where_the_store_goes_on_after_a_rollback_stays(run, copy):
    store = RunStore.open(copy / "store")
    steps = [s for s in store.checkpoints("curriculum") if s > store.lineage("curriculum")[1]]
    store.rollback("curriculum", to_step=steps[1])
    said = of_json(run("prune", copy, "--dense-last", "1", "--elsewhere", "0", "--json"))
    kept = {(k["branch"], k["step"]): k["reasons"] for k in said["keep"]}
    assert "the store's 'curriculum' goes on from here" in kept["curriculum", steps[1]]


def test_what_another_run_of_the_catalogue_was_made_from_stays(run, copy, tmp_path):
    (needed,) = CheckpointIndex(copy).list(branch="main", after=7, until=8)
    merged = CheckpointRecord(
        run="soup", branch="main", step=1, tokens_seen=0, utc=0.0, format="safetensors",
        uri="w", size_bytes=1, merged_from=(needed.fingerprint,),
    )  # fmt: skip
    CheckpointIndex(tmp_path / "runs" / "soup").add(merged)
    options = ("--dense-last", "1", "--elsewhere", "0", "--json")
    gone = {(d["branch"], d["step"]) for d in of_json(run("prune", copy, *options))["delete"]}
    assert ("main", 8) in gone
    run("scan", tmp_path / "runs")
    said = of_json(run("prune", copy, *options))
    assert {(d["branch"], d["step"]) for d in said["delete"]} == gone - {("main", 8)}


LAST = ("--dense-last", "1", "--elsewhere", "0")


def save(run, *steps, **more):
    """Records of a run, and weights of one value each."""
    for step in steps:
        folder = run / "checkpoints" / "main" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        save_file({"w": np.full(4, step, "float32")}, str(folder / "model.safetensors"))
        record = CheckpointRecord(
            run=run.name, branch="main", step=step, tokens_seen=step * 100, utc=1e9 + step,
            format="safetensors", uri=f"checkpoints/main/{folder.name}", size_bytes=1, **more,
        )  # fmt: skip
        CheckpointIndex(run).add(record)
    return run


def steps_there(run):
    return [int(p.name[5:]) for p in sorted((run / "checkpoints" / "main").iterdir())]


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_checkpoint_that_is_lost_is_not_kept_in_place_of_one_that_is_whole(run, tmp_path, harm):
    here = save(tmp_path / "run", 10, 20, 30, 40)
    newest = here / "checkpoints" / "main" / "step-00000040"
    if harm == "gone":
        shutil.rmtree(newest)
    else:
        os.truncate(newest / "model.safetensors", 20)
    code, out, _ = run("prune", here, *LAST, "--apply")
    assert code == 0
    assert "broken  main@40" in out
    assert [s for s in steps_there(here) if s < 40] == [10, 30]


def test_what_another_run_s_record_points_to_stays(run, tmp_path):
    one, two = save(tmp_path / "one", 10, 20, 30, 40), save(tmp_path / "two", 1)
    CheckpointIndex(two).add(CheckpointRecord(
        run="two", branch="main", step=20, tokens_seen=1, utc=0.0, format="safetensors",
        uri=str(one / "checkpoints/main/step-00000020"), size_bytes=1,
    ))  # fmt: skip
    run("scan", tmp_path)
    _, _, err = run("prune", one, *LAST, "--apply")
    assert "what other runs need is known as of" in err
    assert steps_there(one) == [10, 20, 40]


def test_a_merge_s_source_whose_fingerprint_only_a_scan_read_stays(run, tmp_path):
    one = save(tmp_path / "one", 10, 20, 30, 40)
    weights = open_weights(one / "checkpoints" / "main" / "step-00000020")
    save(tmp_path / "two", 1, merged_from=(weights.fingerprint()[:12],))
    run("scan", tmp_path, "--fingerprints")
    run("prune", one, *LAST, "--apply")
    assert steps_there(one) == [10, 20, 40]


def test_after_a_scan_that_did_not_come_to_its_end_a_prune_says_what_it_does_not_know(
    run, tmp_path
):
    one = save(tmp_path / "one", 10, 20, 30)
    place = Path(os.environ["WORKBENCH_CATALOGUE"])
    place.parent.mkdir()
    place.touch()
    code, _, err = run("prune", one, *LAST)
    assert (code, "what other runs need is not known" in err) == (0, True)


def test_pickles_of_another_trainer_are_no_failure_and_are_counted(run, tmp_path):
    folder = tmp_path / "lit" / "checkpoints"
    folder.mkdir(parents=True)
    said = {"epoch": 0, "global_step": 3, "pytorch-lightning_version": "2", "state_dict": {}}
    torch.save(said, folder / "m-step=3.ckpt")
    code, out, err = run("verify", tmp_path / "lit")
    assert (code, err) == (0, "")
    assert out.startswith("0 of 0 checkpoints are whole\n1 more could not be verified")
    assert list(of_json(run("verify", tmp_path / "lit", "--json"))["unverified"]) == [
        str(folder / "m-step=3.ckpt")
    ]


def test_all_checkpoints_of_another_trainer_s_folder_are_verified(run, tmp_path):
    folder = save(tmp_path / "out", 10, 20) / "checkpoints"
    shutil.rmtree(tmp_path / "out" / "index")
    code, out, _ = run("verify", folder)
    assert (code, out.splitlines()[0]) == (0, "2 of 2 checkpoints are whole")
    assert out.splitlines()[1].startswith("2 of them without digests")


def test_a_broken_catalogue_that_was_moved_aside_is_told_by_a_scan_of_no_folder(run):
    place = Path(os.environ["WORKBENCH_CATALOGUE"])
    place.parent.mkdir()
    place.write_bytes(b"not a database" * 400)
    code, _, err = run("scan")
    assert (code, "it was broken, and was moved to" in err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list"], 3, "no catalogue at"),
        (["lineage"], 3, "no catalogue at"),
        (["scan"], 3, "knows no folder to scan"),
        (["scan", "{tmp}/none"], 3, "no folder"),
        (["list", "{tmp}/none"], 3, "no run at"),
        (["prune", "{tmp}/none"], 3, "no run at"),
        (["prune", "{run}", "--window", "a week"], 2, "expected a number and one of"),
        (["prune", "{run}", "--window", "-1"], 2, "a share of the run lies in (0, 1]"),
        (["prune", "{run}", "--elsewhere", "-1"], 2, "not in the range"),
        (["show", "{run}", "main"], 2, "Expected RUN BRANCH STEP"),
        (["show", "{run}", "main", "5"], 3, "near it"),
        (["show", "{run}", "../main", "5"], 1, "not a branch name"),
        (["show", "abcdef12"], 3, "no checkpoint 'abcdef12'"),
        (["show", "{tmp}"], 3, "no run at"),
        (["verify", "{run}", "main", "5"], 3, "near it"),
        (["scan", "{run}", "--catalogue", "{tmp}"], 2, "is a directory"),
        (["scan", "{run}", "--catalogue", "/proc/none/c.sqlite"], 1, "cannot be written"),
        (["list", "{run}", "--tokens-after", "nan"], 2, "expected a number of tokens"),
        (["list", "{run}", "--tokens-after", "1e30"], 2, "expected a number of tokens"),
        (["list", "{run}", "--run", "\udce9"], 0, ""),
        (["show", "{run}", "main", "9" * 23], 2, "is not in the range"),
        (["show", "a" * 10000], 3, "no checkpoint 'aaa"),
        (["show", "--json", "{run}", "main", "4"], 0, ""),
    ],
)
def test_a_mistake_is_one_line_and_the_right_exit_code(
    run, tmp_path, tiny_run, arguments, code, message
):
    found, _, err = run(*(a.format(tmp=tmp_path, run=tiny_run) for a in arguments))
    assert (found, message in err) == (code, True), err
    assert "Traceback" not in err


def test_names_out_of_files_cannot_play_with_the_terminal(run, tmp_path):
    folder = tmp_path / "a\x1b[2J\u202ebc" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    broken = CheckpointIndex(tmp_path / "b").record_file("main", 1)
    broken.parent.mkdir(parents=True)
    broken.write_text('{"run": "\\u001b[31m", "branch": "\\u001b[2J"}')
    asked = [
        ("scan", tmp_path), ("list",), ("lineage",), ("verify",), ("list", tmp_path / "b"),
        ("show", folder), ("list", tmp_path / "\x1b[31mnone"), ("show", "\x1b]0;x"),
    ]  # fmt: skip
    for arguments in asked:
        _, out, err = run(*arguments)
        assert (out + err).replace("\n", "").isprintable(), arguments


def test_help_of_every_command_imports_nothing_heavy():
    probe = (
        "import sys; from workbench.app.cli import main\n"
        "for name in ('scan', 'list', 'show', 'lineage', 'verify', 'prune'):\n"
        "    try: main(['checkpoints', name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'xarray', 'numpy', 'sqlite3', 'icechunk'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True)
