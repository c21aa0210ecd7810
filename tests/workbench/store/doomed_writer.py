"""A process that writes into a store until it is killed, and says all along what it does.

Needs   on stdin one life a line, JSON: {"kind": "direct" or "recorder", "path", "life", ...}.
Yields  on stdout, a line each: `at <phase>` as it enters one, `<deed> <step>` when something up to
        a step was acknowledged, `recorded <step> <monotonic seconds>` when a step was handed over,
        and `ended <status>` after each life.

    python doomed_writer.py [recorder]

A life is a fork of this process, which has imported everything and used nothing: to start and
import anew takes a second, of which a hundred lives have no use.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ledger

import workbench.store.writer as writing
from workbench.errors import RunNotFound
from workbench.store.run_store import RunStore
from workbench.store.writer import StoreWriter


def say(*words: object) -> None:
    """One write, so that a kill leaves whole lines."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def announced(owner: Any, name: str, deed: Callable[..., str] | None = None) -> None:
    """Lets `owner.name` say when it begins and, by `deed`, what it has done."""
    real = getattr(owner, name)

    def told(*args: Any, **named: Any) -> Any:
        say("at", name)
        result = real(*args, **named)
        if deed is not None:
            say(deed(*args))
        return result

    setattr(owner, name, told)


def announce() -> None:
    """Every phase of writing says its name."""

    def last(verb: str) -> Callable[..., str]:
        return lambda writer, *_: f"{verb} {writer.last('train') or 0}"

    announced(StoreWriter, "append")
    announced(StoreWriter, "seal", last("sealed"))
    announced(StoreWriter, "sync", last("synced"))
    announced(StoreWriter, "commit", last("committed"))
    announced(StoreWriter, "tag_checkpoint", lambda _, step: f"tagged {step}")
    announced(RunStore, "writer")
    announced(RunStore, "rollback")
    announced(writing.Journal, "begin")
    for name, module in list(sys.modules.items()):
        if name.startswith("workbench.store") and name != "workbench.store.durable":
            for part in ("sync_tree", "extend_overviews"):
                if hasattr(module, part):
                    announced(module, part)


def without_syncs() -> None:
    """As if the disk were never waited for: the control of the power cuts."""
    os.fsync = lambda fd: None
    for name, module in list(sys.modules.items()):
        if name.startswith("workbench.store") and hasattr(module, "sync_tree"):
            module.sync_tree = lambda folder: None


def write_directly(life: dict[str, Any]) -> None:
    """StoreWriter by hand: every step sealed, synced now and then, committed every so many."""
    number, every, tag_every = life["life"], life["commit_every"], life["tag_every"]
    with RunStore.open(life["path"]).writer("main") as writer:
        step = writer.last("train") or 0
        say("opened", step, writer.recovered)
        synced = time.monotonic()
        while True:
            step += 1
            router, train = ledger.rows_of(step, step, number)
            writer.append("router", router)
            writer.append("train", train)
            say("recorded", step, time.monotonic())
            writer.seal()
            if time.monotonic() - synced > life["sync_seconds"]:
                writer.sync()
                synced = time.monotonic()
            if step % every == 0 or step % tag_every == 0:
                writer.commit(f"step {step}")
            if step % tag_every == 0:
                writer.tag_checkpoint(step)
            time.sleep(life["step_seconds"])


def train(life: dict[str, Any]) -> None:
    """A training with a recorder: a router whose choices are known, a checkpoint now and then."""
    import torch
    from torch import nn

    from workbench.capture.adapters.generic import Generic
    from workbench.capture.recorder import Recorder

    class Router(nn.Linear):
        def forward(self, logits_TE: torch.Tensor) -> tuple[torch.Tensor, ...]:
            top = logits_TE.softmax(-1).topk(ledger.K)
            return logits_TE, top.indices, top.values

    model = nn.ModuleList(Router(ledger.EXPERTS, ledger.EXPERTS) for _ in range(ledger.LAYERS))
    routers = Generic(
        modules=Router, read=lambda output: output,
        num_experts=ledger.EXPERTS, experts_per_token=ledger.K,
    )  # fmt: skip
    path = Path(life["path"])
    step: int | None = None
    try:
        store = RunStore.open(path / "store")
        step = next(reversed(store.checkpoints("main")), 0)
    except RunNotFound:
        pass
    recorder = Recorder(model, path, routers=routers, resume_at=step)
    step = step or 0
    say("opened", step, 0)
    while True:
        step += 1
        with recorder.step(step, tokens=int(ledger.tokens_of(step))):
            for router in model:
                router(_logits(step))
            recorder.log(loss=float(ledger.loss_of(step)), lr=float(life["life"]))
        say("recorded", step, time.monotonic())
        if step % life["tag_every"] == 0:
            recorder.checkpoint(path / "nowhere", whole=False)
        time.sleep(life["step_seconds"])


def _logits(step: int) -> Any:
    import torch

    token = torch.arange(int(ledger.tokens_of(step)))
    logits_TE = torch.zeros(len(token), ledger.EXPERTS)
    for place in range(ledger.K):
        logits_TE[token, (step + token + place) % ledger.EXPERTS] = 4.0 - place
    return logits_TE


def live(life: dict[str, Any]) -> None:
    """The child: never returns."""
    try:
        if life.get("unsynced"):
            without_syncs()
        announce()
        (train if life["kind"] == "recorder" else write_directly)(life)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    if "recorder" in sys.argv:
        import torch

        import workbench.capture.recorder  # noqa: F401

        torch.set_num_threads(1)
    say("ready")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            live(json.loads(line))
        say("born", pid)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
