"""The recorder: exact, silent, and never in training's way."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from model.config import NANO
from model.lm import MoELM
from model.training.checkpoint import checkpoint_path
from model.training.loop import Training
from model.training.optim import make_optimizer
from workbench.capture.probe_set import ProbeSet
from workbench.capture.recorder import Recorder
from workbench.errors import CaptureError, RunExists, StoreBusy, UsageError

TINY_MODEL = replace(
    NANO, d_model=32, n_layers=2, n_heads=4, n_key_value_heads=2, d_mlp=16, num_experts=8,
    experts_per_token=2, n_ctx=32,
)  # fmt: skip
ROWS, LENGTH = 4, 16
ROOT = Path(__file__).parents[3]
TOKENS = ROWS * LENGTH


def batches(number, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, TINY_MODEL.d_vocab, (ROWS, LENGTH + 1), generator=g) for _ in range(number)
    ]


def update(lm, optimizer, *micro):
    total = 0.0
    for tokens in micro:
        losses = lm(tokens[:, :-1], tokens[:, 1:], return_type="losses")
        (losses.total / len(micro)).backward()
        total += losses.next_token.item()
    optimizer.step()
    optimizer.zero_grad()
    return total


def trained(path, steps=5, micro=1, record=True):
    """Losses and final weights of a few steps, recorded or not."""
    lm = MoELM(TINY_MODEL, seed=0)
    optimizer = make_optimizer(lm, lr=1e-2, weight_decay=0.1)
    recorder = Recorder(lm, path) if record else None
    losses = []
    for step in range(1, steps + 1):
        data = batches(micro, seed=step)
        if recorder is None:
            losses.append(update(lm, optimizer, *data))
        else:
            with recorder.step(step, tokens=micro * TOKENS):
                losses.append(update(lm, optimizer, *data))
    if recorder is not None:
        recorder.close()
    return losses, lm


def test_the_loss_is_bit_identical_with_and_without_capture(tmp_path):
    with_capture, a = trained(tmp_path / "run")
    without, b = trained(tmp_path, record=False)
    assert with_capture == without
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("micro", [1, 4])
def test_assignments_are_tokens_times_k_in_every_layer_and_step(tmp_path, micro):
    trained(tmp_path / "run", micro=micro)
    router = wb.open_run(tmp_path / "run").router
    per_layer = router.assignments.sum("expert")
    assert (per_layer == micro * TOKENS * TINY_MODEL.experts_per_token).all()
    assert (router.tokens == micro * TOKENS).all()
    np.testing.assert_allclose(router.gate_mass.sum("expert"), micro * TOKENS, rtol=1e-5)
    np.testing.assert_allclose(router.prob_mass.sum("expert"), micro * TOKENS, rtol=1e-5)


def test_the_record_says_what_the_model_does(tmp_path):
    """Counts of one step against the routing that TransformerLens' cache shows."""
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    _, cache = lm.run_with_cache(tokens[:, :-1])
    with Recorder(lm, tmp_path / "run") as recorder, recorder.step(1, tokens=TOKENS):
        lm(tokens[:, :-1])
    router = wb.open_run(tmp_path / "run").router
    for layer in range(TINY_MODEL.n_layers):
        ids = cache[f"blocks.{layer}.mlp.router.hook_expert_indices"]
        expected = torch.bincount(ids.flatten(), minlength=TINY_MODEL.num_experts)
        assert router.assignments.sel(step=1, layer=layer).values.tolist() == expected.tolist()


def test_forwards_outside_a_step_do_not_leak_in(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    with Recorder(lm, tmp_path / "run") as recorder:
        for step in (1, 2):
            lm(tokens[:, :-1])
            with recorder.step(step, tokens=TOKENS):
                lm(tokens[:, :-1])
            lm.eval()(tokens[:2, :-1])
            lm.train()
    router = wb.open_run(tmp_path / "run").router
    assert (router.assignments.sum("expert") == TOKENS * TINY_MODEL.experts_per_token).all()


def test_evaluation_in_mid_step_does_not_leak_in(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    with Recorder(lm, tmp_path / "run") as recorder, recorder.step(1, tokens=TOKENS):
        lm.eval()(tokens[:, :-1])
        lm.train()(tokens[:, :-1])
        with recorder.paused():
            lm(tokens[:, :-1])
    router = wb.open_run(tmp_path / "run").router
    assert (router.assignments.sum("expert") == TOKENS * TINY_MODEL.experts_per_token).all()


def test_a_model_left_in_evaluation_mode_is_told(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    recorder = Recorder(lm, tmp_path / "run")
    with recorder.step(1, tokens=TOKENS):
        lm(tokens[:, :-1])
    with recorder.step(2, tokens=TOKENS):
        lm.eval()(tokens[:, :-1])
    with pytest.warns(RuntimeWarning, match=r"step 2: router blocks\.0.*counted 0.*model\.train"):
        recorder.close()
    other = Recorder(lm, tmp_path / "other")
    other.begin(1)
    lm(tokens[:, :-1])
    with pytest.raises(CaptureError, match=r"in evaluation mode.*model\.train"):
        other.end()
    other.close()


def test_tokens_need_not_be_said(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    with Recorder(lm, tmp_path / "run") as recorder:
        for step in (1, 2):
            recorder.begin(step)
            for tokens in batches(step):
                lm(tokens[:, :-1])
            recorder.end()
    run = wb.open_run(tmp_path / "run")
    assert run.router.tokens.values.tolist() == [TOKENS, 2 * TOKENS]
    assert run.train.tokens_seen.values.tolist() == [TOKENS, 3 * TOKENS]


def test_micro_batches_have_labels_of_their_own(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    with Recorder(lm, tmp_path / "run", domains=("a", "b")) as recorder:
        recorder.begin(1)
        for domain, tokens in enumerate(batches(2)):
            recorder.labels(domains=torch.full((ROWS,), domain))
            lm(tokens[:, :-1])
        recorder.end()
    counts = wb.open_run(tmp_path / "run").router.domain_assignments.sum("expert")
    assert (counts == TOKENS * TINY_MODEL.experts_per_token).all()


def test_a_step_that_fails_leaves_no_sample(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    with Recorder(lm, tmp_path / "run") as recorder:
        with recorder.step(1, tokens=TOKENS):
            lm(tokens[:, :-1])
        failing = recorder.step(2, tokens=TOKENS)
        failing.__enter__()
        lm(tokens[:, :-1])
        assert not failing.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        with recorder.step(2, tokens=TOKENS):
            lm(tokens[:, :-1])
    router = wb.open_run(tmp_path / "run").router
    assert router.step.values.tolist() == [1, 2]
    assert (router.assignments.sum("expert") == TOKENS * TINY_MODEL.experts_per_token).all()


def test_a_wrong_number_of_tokens_is_refused_in_the_first_step(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    recorder = Recorder(lm, tmp_path / "run")
    step = recorder.step(1, tokens=TOKENS - 1)
    step.__enter__()
    lm(tokens[:, :-1])
    with pytest.raises(CaptureError, match=r"blocks\.0\.mlp\.router.*counted 128.*expected"):
        step.__exit__(None, None, None)
    recorder.close()


def test_domains_and_padding_are_told_apart(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    keep = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    keep[:, -4:] = False
    with (
        Recorder(lm, tmp_path / "run", domains=("a", "b")) as recorder,
        recorder.step(1, tokens=int(keep.sum()), domains=torch.tensor([0, 1, 1, 1]), keep=keep),
    ):
        lm(tokens[:, :-1])
    counts = wb.open_run(tmp_path / "run").router.domain_assignments.sel(step=1)
    k = TINY_MODEL.experts_per_token
    assert (counts.sum("expert").sel(domain="a") == 12 * k).all()
    assert (counts.sum("expert").sel(domain="b") == 36 * k).all()


def test_a_model_without_routers_is_refused_and_nothing_is_made(tmp_path):
    with pytest.raises(CaptureError, match="found no router in Linear"):
        Recorder(nn.Linear(2, 2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_traces_without_an_embedding_are_refused_and_nothing_is_made_or_left(tmp_path):
    block = MoELM(TINY_MODEL).blocks[0]
    with pytest.raises(CaptureError, match="embedding"):
        Recorder(block, tmp_path / "run", traces=1e-3)
    assert not (tmp_path / "run").exists()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_a_run_that_exists_is_not_written_over(tmp_path):
    trained(tmp_path / "run", steps=3)
    with pytest.raises(RunExists, match="has steps up to 3 on branch 'main'"):
        Recorder(MoELM(TINY_MODEL), tmp_path / "run")
    assert wb.open_run(tmp_path / "run").router.sizes["step"] == 3


def test_a_second_recorder_on_the_branch_is_refused(tmp_path):
    with Recorder(MoELM(TINY_MODEL), tmp_path / "run"), pytest.raises(StoreBusy):
        Recorder(MoELM(TINY_MODEL), tmp_path / "run")


@pytest.mark.parametrize(("step", "message"), [(0, "count from 1"), (1, "steps must grow")])
def test_steps_must_grow(tmp_path, step, message):
    lm = MoELM(TINY_MODEL)
    with Recorder(lm, tmp_path / "run") as recorder:
        with recorder.step(1, tokens=TOKENS):
            lm(batches(1)[0][:, :-1])
        with pytest.raises(UsageError, match=message), recorder.step(step, tokens=TOKENS):
            pass


def failing_commit(recorder, monkeypatch, times=None):
    """The store's commit fails as on a full disk; for so many times, or for ever."""
    real, left = recorder._writer._writer.commit, [times]

    def commit(message):
        if left[0] is None or left[0] > 0:
            left[0] = None if left[0] is None else left[0] - 1
            raise OSError(28, "No space left on device")
        return real(message)

    monkeypatch.setattr(recorder._writer._writer, "commit", commit)


def take_steps(recorder, lm, steps):
    (tokens,) = batches(1)
    for step in steps:
        with recorder.step(step, tokens=TOKENS):
            lm(tokens[:, :-1])


def flushed_steps(recorder, lm, steps):
    for step in steps:
        take_steps(recorder, lm, [step])
        recorder._writer.flush()


def test_training_goes_on_when_the_disk_fails_and_says_so(tmp_path, monkeypatch):
    lm = MoELM(TINY_MODEL)
    recorder = Recorder(lm, tmp_path / "run")
    failing_commit(recorder, monkeypatch)
    with pytest.warns(RuntimeWarning, match="capture cannot write.*No space.*training goes on"):
        flushed_steps(recorder, lm, range(1, 4))
    with pytest.warns(RuntimeWarning, match="capture dropped 3 samples.*No space"):
        recorder.close()
    assert wb.open_run(tmp_path / "run").attrs["capture"]["main"]["dropped"] == 3


def test_a_disk_that_fails_for_a_while_loses_nothing(tmp_path, monkeypatch):
    lm = MoELM(TINY_MODEL)
    recorder = Recorder(lm, tmp_path / "run")
    failing_commit(recorder, monkeypatch, times=2)
    with pytest.warns(RuntimeWarning, match="capture cannot write"):
        flushed_steps(recorder, lm, range(1, 5))
    assert recorder.dropped == 0
    recorder.close()
    assert wb.open_run(tmp_path / "run").router.step.values.tolist() == [1, 2, 3, 4]


def test_a_disk_too_full_for_the_last_word_does_not_end_the_training(tmp_path, monkeypatch):
    lm = MoELM(TINY_MODEL)
    recorder = Recorder(lm, tmp_path / "run")
    failing_commit(recorder, monkeypatch)
    monkeypatch.setattr(recorder.folder, "update", lambda **_: (_ for _ in ()).throw(OSError(28)))
    take_steps(recorder, lm, [1])
    with pytest.warns(RuntimeWarning) as told:
        recorder.close()
    assert any("run.json does not say" in str(w.message) for w in told)


def test_what_cannot_be_written_is_left_out_and_the_rest_goes_on(tmp_path):
    lm = MoELM(TINY_MODEL)
    recorder = Recorder(lm, tmp_path / "run", tasks=[wb.Task("logic/chain", 0.5, 4)])
    take_steps(recorder, lm, [1])
    recorder.evaluations(1, np.zeros((3, 9), np.int8), np.zeros((3, 9), np.float32))
    with pytest.warns(RuntimeWarning, match="(?s)capture left something out.*correct"):
        flushed_steps(recorder, lm, [2])
    recorder.close()
    assert wb.open_run(tmp_path / "run").router.step.values.tolist() == [1, 2]


def test_a_second_checkpoint_of_one_step_ends_nothing(tmp_path, tiny_plan):
    lm = MoELM(TINY_MODEL, seed=0)
    training = Training(tiny_plan, tmp_path / "weights", device="cpu")
    training.model = lm
    path = training.save()
    probe = ProbeSet(batches(1, seed=9)[0][:, :-1].numpy(), ("a", "a", "b", "b"))
    with Recorder(lm, tmp_path / "run", probe=probe) as recorder:
        take_steps(recorder, lm, [1])
        recorder.checkpoint(path, step=1)
        recorder.checkpoint(path, step=1)
        take_steps(recorder, lm, [2])
    run = wb.open_run(tmp_path / "run")
    assert run.router.step.values.tolist() == [1, 2]
    assert run.activations.sizes["checkpoint"] == 1


def test_steps_that_skip_the_round_numbers_are_committed_too(tmp_path):
    lm = MoELM(TINY_MODEL)
    recorder = Recorder(lm, tmp_path / "run")
    take_steps(recorder, lm, range(1, 120, 2))
    recorder._writer.flush()
    messages = [s.message for s in recorder.store.repository.ancestry(branch="main")]
    recorder.close()
    assert {"step 51", "step 101"} <= set(messages)


def test_a_copy_of_the_model_is_not_counted(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    with Recorder(lm, tmp_path / "run") as recorder:
        average = copy.deepcopy(lm)
        with recorder.step(1):
            lm(tokens[:, :-1])
            average.eval()(tokens[:, :-1])
            average.train()(tokens[:, :-1])
    assert wb.open_run(tmp_path / "run").router.tokens.values.tolist() == [TOKENS]


# torch.compile itself makes the object that it says should not be made.
@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["copy first", "model first"])
def test_a_compiled_copy_neither_counts_nor_stops_the_model_from_counting(tmp_path, order):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    torch.compiler.reset()
    with Recorder(lm, tmp_path / "run") as recorder:
        models = [copy.deepcopy(lm), lm]
        compiled = [torch.compile(m, backend="eager", fullgraph=True) for m in models]
        for step in (1, 2):
            with recorder.step(step):
                for which in order:
                    compiled[which](tokens[:, :-1])
    torch.compiler.reset()
    assert wb.open_run(tmp_path / "run").router.tokens.values.tolist() == [TOKENS, TOKENS]


def test_traces_that_saw_no_token_are_told(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    lm.embed.eval()
    recorder = Recorder(lm, tmp_path / "run", traces=1.0)
    with recorder.step(1):
        lm(batches(1)[0][:, :-1])
    with pytest.warns(RuntimeWarning, match="no token ids passed the embedding"):
        recorder.close()


def test_pauses_within_pauses_stay_pauses(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    with Recorder(lm, tmp_path / "run") as recorder, recorder.step(1, tokens=TOKENS):
        lm(tokens[:, :-1])
        with recorder.paused():
            with recorder.paused():
                lm(tokens[:, :-1])
            lm(tokens[:, :-1])
    assert wb.open_run(tmp_path / "run").router.tokens.values.tolist() == [TOKENS]


def test_an_end_that_is_interrupted_does_not_leak_into_the_next_step(tmp_path, monkeypatch):
    lm = MoELM(TINY_MODEL, seed=0)
    with Recorder(lm, tmp_path / "run") as recorder:
        take_steps(recorder, lm, [1])
        push = recorder._tap.ring.push
        monkeypatch.setattr(recorder._tap.ring, "push", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take_steps(recorder, lm, [2])
        monkeypatch.setattr(recorder._tap.ring, "push", push)
        take_steps(recorder, lm, [2])
    assert wb.open_run(tmp_path / "run").router.tokens.values.tolist() == [TOKENS, TOKENS]


@pytest.mark.parametrize("what", ["abandon", "close"])
def test_a_step_that_is_given_up_inside_its_block_leaves_no_sample(tmp_path, what):
    lm = MoELM(TINY_MODEL, seed=0)
    recorder = Recorder(lm, tmp_path / "run")
    take_steps(recorder, lm, [1])
    with recorder.step(2, tokens=TOKENS):
        lm(batches(1)[0][:, :-1])
        getattr(recorder, what)()
    recorder.close()
    assert wb.open_run(tmp_path / "run").router.step.values.tolist() == [1]


@pytest.mark.parametrize(
    "labels",
    [
        {"domains": torch.zeros(ROWS * 2, LENGTH, dtype=torch.int64)},
        {"domains": torch.zeros(3, dtype=torch.int64)},
        {"domains": torch.zeros(TOKENS * 2, dtype=torch.int64)},
        {"keep": torch.ones(ROWS, LENGTH - 1, dtype=torch.bool)},
        {"keep": torch.ones(ROWS * LENGTH + 1, dtype=torch.bool)},
    ],
    ids=["rows", "not a divisor", "twice as many", "short rows", "one more"],
)
def test_labels_that_do_not_fit_never_stop_a_training_nor_enter_the_record(tmp_path, labels):
    lm = MoELM(TINY_MODEL, seed=0)
    (tokens,) = batches(1)
    recorder = Recorder(lm, tmp_path / "run", domains=("a", "b"))
    with pytest.raises(CaptureError, match=r"step 1: .* for a forward of 64 tokens"):
        run_labelled(recorder, lm, 1, tokens, labels)
    take_steps(recorder, lm, [1])
    run_labelled(recorder, lm, 2, tokens, labels)
    with pytest.warns(RuntimeWarning, match=r"step 2 was not recorded: .* of shape"):
        take_steps(recorder, lm, [3])
    recorder.close()
    run = wb.open_run(tmp_path / "run")
    assert run.router.step.values.tolist() == [1, 3]
    assert run.train.step.values.tolist() == [1, 2, 3]


def run_labelled(recorder, lm, step, tokens, labels):
    with recorder.step(step):
        recorder.labels(**labels)
        lm(tokens[:, :-1])


def test_a_mask_longer_than_the_tokens_is_cut_and_one_that_cannot_fit_is_told(tmp_path):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = MoELM(TINY_MODEL, seed=0)

        def forward(self, input_ids, attention_mask=None):
            return self.lm(input_ids)

    model, (tokens,) = Masked(), batches(1)
    mask = torch.ones(ROWS, LENGTH + 6, dtype=torch.int64)
    mask[:, -2:] = 0
    recorder = Recorder(model, tmp_path / "run")
    with recorder.step(1):
        model(tokens[:, :-1], attention_mask=mask)
    with recorder.step(2):
        model(tokens[:, :-1], attention_mask=mask[:, :5])
    with pytest.warns(RuntimeWarning, match=r"step 2: attention_mask of shape .4, 5. for a"):
        recorder.begin(3)
    model(tokens[:, :-1], attention_mask=torch.full((ROWS, LENGTH), -1e9))
    recorder.end()
    recorder.close()
    router = wb.open_run(tmp_path / "run").router
    assert router.tokens.values.tolist() == [TOKENS - 2 * ROWS, TOKENS, TOKENS]


def test_the_mask_is_seen_inside_a_module_that_calls_the_model_by_another_way(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = MoELM(TINY_MODEL, seed=0)

        def forward(self, input_ids, attention_mask=None):
            return self.lm(input_ids)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, **batch):
            return self.model(**batch)

    wrapper, (tokens,) = Wrapper(), batches(1)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[:, 9:] = 0
    with Recorder(wrapper, tmp_path / "run") as recorder, recorder.step(1, tokens=9 * ROWS):
        wrapper.training_step(input_ids=tokens[:, :-1], attention_mask=mask)
    assert wb.open_run(tmp_path / "run").router.tokens.values.tolist() == [9 * ROWS]


def test_a_model_that_was_moved_or_is_not_there_yet_is_refused(tmp_path):
    with pytest.raises(UsageError, match="meta device: make the recorder after"):
        Recorder(MoELM(TINY_MODEL).to("meta"), tmp_path / "a")
    lm = MoELM(TINY_MODEL)
    with Recorder(lm, tmp_path / "b") as recorder:
        lm.to("meta")
        with pytest.raises(UsageError, match="on meta and was on cpu"):
            recorder.begin(1)


def test_numbers_between_steps_are_refused_and_not_lost(tmp_path):
    with (
        Recorder(MoELM(TINY_MODEL), tmp_path / "run") as recorder,
        pytest.raises(UsageError, match="log is called between steps"),
    ):
        recorder.log(loss=1.0)


def test_the_record_names_its_routers(tmp_path):
    Recorder(MoELM(TINY_MODEL), tmp_path / "run").close()
    names = wb.open_run(tmp_path / "run").store.read("main").attrs["routers"]
    assert list(names) == ["blocks.0.mlp.router", "blocks.1.mlp.router"]


END = """
import os, signal, sys, time, torch
from dataclasses import replace
from model.config import NANO
from model.lm import MoELM
from workbench.capture.recorder import Recorder
lm = MoELM(replace(NANO, n_layers=1, d_model=32, n_heads=4, n_key_value_heads=2, d_mlp=16))
recorder = Recorder(lm, sys.argv[1])
for step in range(1, 61):
    with recorder.step(step, tokens=8):
        lm(torch.zeros(1, 8, dtype=torch.long))
if sys.argv[2] == "raise":
    raise SystemError("the training died")
if sys.argv[2] == "interrupt":
    with recorder.step(61, tokens=8):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
"""


@pytest.mark.parametrize("end", ["forget", "raise", "interrupt"])
def test_a_program_that_ends_without_closing_loses_nothing(tmp_path, end):
    subprocess.run([sys.executable, "-c", END, str(tmp_path / "run"), end], cwd=ROOT, check=False)
    assert wb.open_run(tmp_path / "run").router.sizes["step"] == 60


def test_a_forgotten_recorder_frees_the_branch(tmp_path):
    lm = MoELM(TINY_MODEL)
    recorder = Recorder(lm, tmp_path / "run")
    with recorder.step(1, tokens=TOKENS):
        lm(batches(1)[0][:, :-1])
    del recorder
    gc.collect()
    Recorder(lm, tmp_path / "run", resume_at=0).close()
    assert not any(m._forward_hooks for m in lm.modules())


def test_labels_that_cannot_be_are_refused_before_the_forward(tmp_path):
    with Recorder(MoELM(TINY_MODEL), tmp_path / "a", domains=("x", "y")) as recorder:
        step = recorder.step(1, tokens=TOKENS, domains=torch.tensor([0, 2, 1, 1]))
        with pytest.raises(UsageError, match="domains from 0 to 2, expected 0 to 1"):
            step.__enter__()
    with Recorder(MoELM(TINY_MODEL), tmp_path / "b") as recorder:
        step = recorder.step(1, tokens=TOKENS, domains=torch.tensor([0, 0, 0, 0]))
        with pytest.raises(UsageError, match="this recorder has none"):
            step.__enter__()


def test_a_closed_recorder_leaves_the_model_as_it_was(tmp_path):
    lm = MoELM(TINY_MODEL)
    Recorder(lm, tmp_path / "run").close()
    assert not any(m._forward_hooks for m in lm.modules())
    assert set(lm.state_dict()) == set(MoELM(TINY_MODEL).state_dict())


def test_the_probe_set_shows_how_each_checkpoint_routes_it(tmp_path, tiny_plan):
    lm = MoELM(TINY_MODEL, seed=0)
    probe = ProbeSet(batches(1, seed=9)[0][:, :-1].numpy(), ("a", "a", "b", "b"))
    training = Training(tiny_plan, tmp_path / "weights", device="cpu")
    training.model = lm
    path = training.save()
    with Recorder(lm, tmp_path / "run", probe=probe) as recorder:
        recorder.checkpoint(path, step=0)
    run = wb.open_run(tmp_path / "run")
    shown = run.activations.isel(checkpoint=0)
    _, cache = lm.eval().run_with_cache(torch.from_numpy(probe.tokens))
    for layer in range(TINY_MODEL.n_layers):
        probs = cache[f"blocks.{layer}.mlp.router.hook_probs"].flatten(0, 1)
        ids = cache[f"blocks.{layer}.mlp.router.hook_expert_indices"].flatten(0, 1)
        np.testing.assert_allclose(shown.router_probs.sel(layer=layer), probs, atol=1e-6)
        assert (shown.expert_ids.sel(layer=layer).values == ids.numpy()).all()
    assert run.checkpoints[0].record.uri == str(checkpoint_path(tmp_path / "weights", 0))


@pytest.mark.parametrize("kind", ["nothing", "pickle", "text"])
def test_a_checkpoint_that_cannot_be_indexed_is_told_and_training_goes_on(tmp_path, kind):
    lm = MoELM(TINY_MODEL)
    path = tmp_path / {"nothing": "gone", "pickle": "last.pt", "text": "notes.txt"}[kind]
    if kind == "pickle":
        torch.save(lm.state_dict(), path)
    elif kind == "text":
        path.write_text("no weights")
    with Recorder(lm, tmp_path / "run") as recorder:
        for step in (1, 2):
            with recorder.step(step, tokens=TOKENS):
                lm(batches(1)[0][:, :-1])
            if step == 1:
                with pytest.warns(RuntimeWarning, match="step 1 is not in the index"):
                    recorder.checkpoint(path)
    run = wb.open_run(tmp_path / "run")
    assert run.router.sizes["step"] == 2
    assert list(run.store.checkpoints("main")) == [1]
    assert len(run.checkpoints) == 0


def test_unknown_values_are_not_logged(tmp_path):
    recorder = Recorder(MoELM(TINY_MODEL), tmp_path / "run")
    with recorder, pytest.raises(UsageError, match="loss, lr, grad_norm"):
        recorder.log(accuracy=1.0)


def test_every_tier_goes_into_one_record(tmp_path, tiny_plan):
    """Traces, a site and experts' insides beside the counts; each against a hook of its own."""
    lm = MoELM(TINY_MODEL, seed=0)
    training = Training(tiny_plan, tmp_path / "weights", device="cpu")
    training.model = lm
    probe = ProbeSet(batches(1, seed=9)[0][:, :-1].numpy(), ("a", "a", "b", "b"))
    site = "blocks.1.hook_resid_post"
    with Recorder(
        lm, tmp_path / "run", probe=probe, sites=[site], interiors=[0], traces=1.0
    ) as recorder:
        (tokens,) = batches(1)
        with recorder.step(1, tokens=TOKENS):
            lm(tokens[:, :-1])
        recorder.checkpoint(training.save(), step=1)
    run = wb.open_run(tmp_path / "run")
    assert run.traces.sizes["trace"] == TOKENS
    assert run.traces.token.values.tolist() == tokens[:, :-1].flatten().tolist()
    counted = np.bincount(run.traces.expert_ids.sel(layer=0).values.ravel(), minlength=8)
    assert counted.tolist() == run.router.assignments.sel(step=1, layer=0).values.tolist()
    seen = []
    handle = lm.get_submodule(site).register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    lm.eval()(torch.from_numpy(probe.tokens))
    handle.remove()
    recorded = run.activations[site].sel(checkpoint=1).values
    np.testing.assert_array_equal(recorded, seen[0].flatten(0, 1).numpy())
    assert int(run.activations.tokens_seen[0]) == TOKENS
    rows = sum(run.interior(layer=0, expert=e, checkpoint=1).sizes["row"] for e in range(8))
    assert rows == TOKENS * TINY_MODEL.experts_per_token


def test_traces_that_find_no_room_are_told(tmp_path):
    lm = MoELM(TINY_MODEL, seed=0)
    recorder = Recorder(lm, tmp_path / "run", traces=wb.Traces(share=1.0, tokens_per_step=8))
    with recorder.step(1, tokens=TOKENS):
        lm(batches(1)[0][:, :-1])
    with pytest.warns(RuntimeWarning, match=r"56 tokens.*found no room.*tokens_per_step"):
        recorder.close()


def test_a_site_without_a_probe_set_is_refused(tmp_path):
    with pytest.raises(UsageError, match="give probe= as well"):
        Recorder(MoELM(TINY_MODEL), tmp_path / "run", sites=["blocks.0"])
