"""What the index holds of checkpoints that are saved twice, or over one another."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_index.audit import Verdict, audit, digests_of, judge
from checkpoints_index.entry import Entry
from checkpoints_index.errors import RecordError
from checkpoints_index.formats import open_weights
from checkpoints_index.index import CheckpointIndex
from model.config import MoEConfig
from model.lm import MoELM
from workbench.capture.checkpoint_entry import enter_checkpoint
from workbench.capture.recorder import Recorder


@pytest.fixture
def enter(tmp_path):
    """Saves weights of one value at a path and enters them."""

    def save_and_enter(step, name, value, branch="main"):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        save_file({"w": torch.full((2, 2), float(value))}, str(path / "model.safetensors"))
        enter_checkpoint(
            tmp_path, path, branch=branch, step=step, tokens_seen=step * 10, parent=None, about={}
        )

    return save_and_enter


def entries(tmp_path):
    return {r.step: (r.uri, r.complete) for r in CheckpointIndex(tmp_path).list()}


def test_a_checkpoint_saved_over_that_of_another_step_marks_it_with_a_warning(tmp_path, enter):
    enter(1, "last", 1)
    with pytest.warns(RuntimeWarning, match="step 1 .* overwritten by that of step 2"):
        enter(2, "last", 2)
    assert entries(tmp_path) == {1: ("last", False), 2: ("last", True)}


def test_the_same_weights_saved_twice_stay_where_they_were_entered_first(tmp_path, enter):
    enter(1, "step-1", 1)
    enter(1, "last", 1)
    enter(2, "last", 2)
    assert entries(tmp_path) == {1: ("step-1", True), 2: ("last", True)}


def test_other_weights_of_the_same_step_made_again_after_a_resume_take_its_place(tmp_path, enter):
    enter(1, "before", 1)
    enter(1, "after", 2)
    assert entries(tmp_path) == {1: ("after", True)}


def test_the_second_path_is_entered_where_the_first_holds_the_weights_no_longer(tmp_path, enter):
    enter(1, "first", 1)
    (tmp_path / "first" / "model.safetensors").unlink()
    enter(1, "second", 1)
    assert entries(tmp_path) == {1: ("second", True)}


def enter_at(tmp_path, path, **about):
    return enter_checkpoint(
        tmp_path, path, branch="main", step=7, tokens_seen=70, parent=None, about=about
    )


def test_a_distributed_checkpoint_is_entered_with_the_fingerprint_of_its_weights(tmp_path):
    import torch.distributed.checkpoint as dcp

    weights = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}
    plain, parts = tmp_path / "plain.safetensors", tmp_path / "step-7"
    save_file(weights, str(plain))
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(weights, checkpoint_id=str(parts), no_dist=True)
    one = enter_at(tmp_path, parts)
    assert (one.format, one.uri, one.dtype) == ("dcp", "step-7", "F32")
    assert (one.trainer, one.kind) == ("torchtitan", "weights")
    assert one.fingerprint == enter_at(tmp_path, plain).fingerprint
    assert one.size_bytes > 36


def test_a_folder_of_transformers_tells_architecture_tokenizer_rate_and_kind(tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    save_file({"w": torch.ones(2, 2)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text('{"model_type": "olmoe"}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    state = {"global_step": 7, "log_history": [{"learning_rate": 0.5}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    torch.save({}, folder / "optimizer.pt")
    one = enter_at(tmp_path, folder)
    assert one.architecture_hash is not None
    assert one.tokenizer_hash is not None
    assert (one.lr, one.kind, one.format) == (0.5, "training", "huggingface")
    assert one.trainer == "transformers"
    # The caller knows better.
    assert enter_at(tmp_path, folder, lr=0.25).lr == 0.25


def test_what_the_caller_says_is_entered_and_what_no_record_holds_is_refused(tmp_path):
    (tmp_path / "one").mkdir()
    save_file({"w": torch.ones(2, 2)}, str(tmp_path / "one" / "model.safetensors"))
    one = enter_at(
        tmp_path, tmp_path / "one", phase="final", mixture={"code": 1}, merged_from=(("main", 1),)
    )
    assert (one.phase, one.merged_from) == ("final", (("main", 1),))
    assert (
        one.mixture_hash == enter_at(tmp_path, tmp_path / "one", mixture={"code": 1}).mixture_hash
    )
    with pytest.raises(RecordError, match="has no colour; it takes mixture"):
        enter_at(tmp_path, tmp_path / "one", colour="red")


def test_what_a_checkpoint_says_of_itself_and_cannot_be_is_left_out_with_a_warning(tmp_path):
    folder = tmp_path / "step-7"
    folder.mkdir()
    save_file({"w": torch.ones(2, 2)}, str(folder / "model.safetensors"))
    state = {"model_config": {}, "extra": {"lr": "fast", "phase": "final"}}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.warns(RuntimeWarning, match="left out of the record: .*lr='fast'"):
        one = enter_at(tmp_path, folder)
    assert (one.lr, one.phase) == (None, "final")


def test_a_checkpoint_at_a_url_is_entered_as_such(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(2, 2)}, str(file))
    with fsspec.open("memory://bucket/step-7/model.safetensors", "wb") as out:
        out.write(file.read_bytes())
    one = enter_at(tmp_path, "memory://bucket/step-7")
    assert (one.uri, one.is_remote) == ("memory://bucket/step-7", True)
    assert one.fingerprint == enter_at(tmp_path, file).fingerprint


def test_weights_too_large_to_be_read_while_a_training_waits_are_entered_without_a_fingerprint(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("workbench.capture.checkpoint_entry.FINGERPRINT_AT_MOST", 10)
    for name in ("a", "b"):
        save_file({"w": torch.ones(2, 2)}, str(tmp_path / f"{name}.safetensors"))
        one = enter_at(tmp_path, tmp_path / f"{name}.safetensors")
        # Without one, nobody can say that two are the same: the later one counts.
        assert (one.uri, one.fingerprint) == (f"{name}.safetensors", None)


def test_a_checkpoint_that_a_rollback_took_off_the_branch_is_no_parent(tmp_path, enter):
    enter(4, "step-4", 4)
    enter(8, "step-8", 8)
    save_file({"w": torch.full((2, 2), 9.0)}, str(tmp_path / "w.safetensors"))
    said = {"branch": "main", "step": 10, "tokens_seen": 100, "parent": None, "about": {}}
    path = tmp_path / "w.safetensors"
    assert enter_checkpoint(tmp_path, path, **said, history={4: "", 10: ""}).parent == ("main", 4)
    assert enter_checkpoint(tmp_path, path, **said).parent == ("main", 8)


def test_a_bit_that_no_fingerprint_sees_is_found_by_the_digest(tmp_path):
    folder = tmp_path / "step-7"
    folder.mkdir()
    save_file({"w": torch.linspace(1, 2, 100)}, str(folder / "model.safetensors"))
    (folder / "trainer_state.json").write_text("{}")
    one = enter_at(tmp_path, folder)
    assert list(one.digests) == ["model.safetensors"]
    entry = Entry.of_record(one, tmp_path)
    assert judge(entry) == Verdict("whole", by_digest=True)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert open_weights(folder).fingerprint() == one.fingerprint
    assert "its record says sha256" in judge(entry).why


def test_digests_of_other_files_do_not_vouch_for_the_weights(tmp_path):
    folder = tmp_path / "step-7"
    folder.mkdir()
    save_file({"w": torch.ones(50)}, str(folder / "model.safetensors"))
    (folder / "note.json").write_text("{}")
    one = enter_at(tmp_path, folder, digests={"note.json": f"sha256:{sha256(b'{}').hexdigest()}"})
    assert not judge(Entry.of_record(one, tmp_path)).by_digest
    save_file({"w": torch.zeros(50)}, str(folder / "model.safetensors"))
    assert "weights with fingerprint" in audit(Entry.of_record(one, tmp_path))


def test_digests_leave_out_the_checkpoints_beside_a_finished_model(tmp_path):
    for name in ("", "checkpoint-500"):
        (tmp_path / name).mkdir(exist_ok=True)
        save_file({"w": torch.ones(2)}, str(tmp_path / name / "model.safetensors"))
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "checkpoint-500" / "trainer_state.json").write_text('{"global_step": 500}')
    assert list(digests_of(tmp_path)) == ["model.safetensors"]


def test_a_recorder_that_went_back_enters_parents_of_its_own_line(tmp_path):
    config = MoEConfig(
        d_vocab=32, d_model=16, n_layers=1, n_heads=2, n_key_value_heads=1, d_mlp=8,
        num_experts=4, experts_per_token=2, n_ctx=16,
    )  # fmt: skip
    model = MoELM(config)

    def train(saves, **where):
        with Recorder(model, tmp_path / "run", **where) as recorder:
            for step in range(recorder.last_step + 1, saves[-1] + 1):
                with recorder.step(step, tokens=16):
                    model(torch.arange(16).reshape(2, 8))
                if step in saves:
                    path = tmp_path / f"step-{step}.safetensors"
                    save_file({"w": torch.full((2, 2), float(step))}, str(path))
                    recorder.checkpoint(path)

    train((4, 8, 12))
    train((10, 14), resume_at=4)
    parents = {r.step: r.parent for r in CheckpointIndex(tmp_path / "run").list()}
    assert (parents[10], parents[14]) == (("main", 4), ("main", 10))
