"""How a recorder's branch is opened: a run begun, or gone on with.

Needs   the run's folder, what will be recorded.
Yields  `open_branch`: the store, the branch's writer, the tokens seen so far, what was set aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workbench.capture.adapters.router_site import RouterSite
from workbench.capture.probe_set import ProbeSet
from workbench.capture.rows import SeenTokens
from workbench.capture.run_folder import RunFolder
from workbench.capture.writer import BackgroundWriter
from workbench.errors import RunExists, UsageError
from workbench.store.layout import Layout, ProbeTokens, Task
from workbench.store.run_store import RunStore, SetAside


class Opened(NamedTuple):
    """A branch that is ready to be written."""

    store: RunStore
    writer: BackgroundWriter
    seen: SeenTokens
    set_aside: SetAside | None
    """What the branch held after the step that it is resumed at."""


def open_branch(
    folder: RunFolder,
    branch: str,
    sites: Sequence[RouterSite],
    domains: Sequence[str],
    tasks: Sequence[Task],
    probe: ProbeSet | None,
    *,
    resume_at: int | None,
    ranks: int,
    about: Mapping[str, Any] | None,
) -> Opened:
    """Opens a branch for its one writer; begins run and store where there are none.

    Args:
        resume_at: go on from the checkpoint of this step; None: the branch must be new.
        ranks: how many count together.
        about: further entries of run.json, where the run is begun here.

    Raises:
        RunExists: the branch has steps and `resume_at` is None.
        UsageError: the store was made for another model or other domains.
        StoreBusy: another process writes to this branch.
    """
    layout = Layout(
        layers=tuple(range(len(sites))),
        experts=sites[0].num_experts,
        k=sites[0].experts_per_token,
        domains=tuple(domains),
    )
    if not folder.exists:
        folder.create(**dict(about or {}))
    store = _open_store(folder, branch, layout, sites)
    set_aside = None if resume_at is None else store.rollback(branch, resume_at)
    writer = BackgroundWriter(store, branch, _rest_of_layout(tasks, probe))
    last = writer.last("train")
    if resume_at is None and last is not None:
        writer.close()
        raise RunExists(
            f"{folder.path} has steps up to {last} on branch {branch!r}: give "
            f"resume_at=<step of a checkpoint> to go on, another branch, or another folder."
        )
    if probe is not None:
        # The record holds its tokens end to end; a row is one text.
        rows, positions = probe.tokens.shape
        folder.update(probe_set={"rows": rows, "positions": positions})
    start = _last_tokens_seen(store, branch) if resume_at else 0
    return Opened(store, writer, SeenTokens(start, ranks), set_aside)


def _open_store(
    folder: RunFolder, branch: str, layout: Layout, sites: Sequence[RouterSite]
) -> RunStore:
    if not folder.store.exists():
        about = {
            "run": folder.path.name,
            "scores": sites[0].scores.name.lower(),
            # `layer` counts routers: a model's dense layers have none.
            "routers": [site.name for site in sites],
            # Whether fewer than k experts a token are no fault.
            "drops": any(site.drops for site in sites),
        }
        return RunStore.create(folder.store, layout, about)
    store = RunStore.open(folder.store)
    there = store.read(branch).layout
    asked, held = ((x.layers, x.experts, x.k, x.domains) for x in (layout, there))
    if asked != held:
        raise UsageError(
            f"the store of {folder.path} was made for (layers, experts, k, domains) = {held}; this "
            f"model and these domains are {asked}: record into another folder."
        )
    return store


def _last_tokens_seen(store: RunStore, branch: str) -> int:
    train = store.read(branch).dataset("train")
    return int(train["tokens_seen"][-1]) if train.sizes.get("step") else 0


def _rest_of_layout(tasks: Sequence[Task], probe: ProbeSet | None) -> dict[str, Any]:
    """What the store's layout may leave empty until it is known."""
    rest: dict[str, Any] = {}
    if tasks:
        rest["tasks"] = tuple(tasks)
    if probe is not None:
        per_row = probe.tokens.shape[1]
        rest["tokens"] = ProbeTokens(
            tuple(int(t) for t in probe.tokens.flatten()),
            tuple(d for d in probe.domains for _ in range(per_row)),
        )
    return rest
