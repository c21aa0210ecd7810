"""Backend: `xr.open_dataset(path, engine="workbench")` and `xr.open_datatree`.

Needs   a run's folder or its store, on this machine or at an s3:// URL; which state of it to show.
Yields  WorkbenchBackend, which xarray finds by its entry point; lazy datasets whose chunks are the
        stored ones.

A branch is shown as it is now, to its last step, rows that wait for their commit included; a tag, a
checkpoint or a snapshot never changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import icechunk as ic
import xarray as xr
from xarray.backends import BackendEntrypoint

from workbench.errors import RunNotFound, UsageError
from workbench.store.lazy_group import open_group
from workbench.store.location import Location
from workbench.store.names import MAIN
from workbench.store.run_store import RunStore
from workbench.store.snapshot import Snapshot

STORE = "store"
"""Name of the store inside a run's folder."""

DECODERS = frozenset({
    "mask_and_scale", "decode_times", "decode_timedelta", "use_cftime", "concat_characters",
    "decode_coords",
})  # fmt: skip
"""What xarray can ask an engine to decode, or to leave: nothing here is stored in such a way."""


def find_store(
    where: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> RunStore:
    """The store at `where`, which is itself a store or the folder of a run.

    Raises:
        RunNotFound: neither is there.
    """
    text = os.fspath(where)
    places = [text, f"{text.rstrip('/')}/{STORE}", *_named_by_run(text)]
    remote = any("://" in place for place in places)
    for place in places:
        local = remote and "://" not in place
        location = Location.of(place, None if local else storage_options)
        if location.exists():
            return RunStore.open(location)
    raise RunNotFound(
        f"no store at {Location.of(text, storage_options)} and none in it; give the folder of a "
        f"run that was recorded, or its folder 'store'."
    )


def _named_by_run(folder: str) -> list[str]:
    """Where the run.json of a run's folder says that its record is."""
    if "://" in folder:
        return []
    from workbench.capture.run_folder import RunFolder

    run = RunFolder(folder)
    named = run.read().get("store") if run.exists else None
    return [named] if isinstance(named, str) else []


def find_snapshot(
    store: RunStore,
    *,
    branch: str | None = None,
    tag: str | None = None,
    snapshot: str | None = None,
    checkpoint: int | None = None,
    tail: bool = True,
) -> Snapshot:
    """One state of a store.

    Args:
        branch: the arm; None: "main". Shown as it is now, unless one of the following is given.
        tag: full name of a tag.
        snapshot: id of a snapshot.
        checkpoint: step of a checkpoint on the branch: the state when it was saved.
        tail: with the rows that wait for the branch's next commit.

    Raises:
        RunNotFound: no such branch, tag, snapshot or checkpoint; those near by are named.
        UsageError: more than one state was asked for.
    """
    asked = {"tag": tag, "snapshot": snapshot, "checkpoint": checkpoint}
    named = [name for name, value in asked.items() if value is not None]
    if len(named) > 1 or (branch is not None and named and named != ["checkpoint"]):
        raise UsageError(
            f"{' and '.join(['branch'] * (branch is not None) + named)} were given; a state is "
            f"named by a tag, by a snapshot, or by a branch and, if need be, a checkpoint of it."
        )
    if tag is not None:
        known = sorted(store.repository.list_tags())
        if tag not in known:
            raise RunNotFound(f"no tag {_among(tag, known)} in {store.location}.")
        return store.read_tag(tag)
    if snapshot is not None:
        return Snapshot(store.repository, _snapshot(store, snapshot))
    if checkpoint is not None:
        saved = store.checkpoints(branch or MAIN)
        if checkpoint not in saved:
            near = sorted(sorted(saved, key=lambda step: abs(step - checkpoint))[:5])
            raise RunNotFound(
                f"no checkpoint at step {checkpoint} on branch {branch or MAIN!r} of "
                f"{store.location}; {f'near it: {near}' if near else 'it has none'}."
            )
        return Snapshot(store.repository, saved[checkpoint])
    if tail:
        return store.read(branch or MAIN)
    return Snapshot(store.repository, store.tip(branch or MAIN))


def _snapshot(store: RunStore, id: str) -> str:
    try:
        return store.repository.lookup_snapshot(id).id
    except (ic.IcechunkError, ValueError):
        raise RunNotFound(
            f"no snapshot {ascii(id)[:80]} in {store.location}; an id has 20 letters and digits; "
            f"{store.tip(MAIN)} is the tip of {MAIN!r}."
        ) from None


def _among(asked: str, known: list[str]) -> str:
    """`asked`, quoted, and what is like it."""
    near = get_close_matches(str(asked)[:80], known, n=3, cutoff=0.5) or known[-3:]
    hint = f"near it: {', '.join(near)}" if near else "there are none"
    return f"{ascii(asked)[:80]} ({hint})"


class WorkbenchBackend(BackendEntrypoint):
    """Runs of the workbench in xarray.

    Example:
        xr.open_dataset("runs/demo", engine="workbench", group="train", chunks={})
    """

    description = "Runs that the training dynamics workbench recorded"
    supports_groups = True
    open_dataset_parameters = (
        "filename_or_obj", "drop_variables", "group", "branch", "tag", "snapshot", "checkpoint",
        "tail", "storage_options",
    )  # fmt: skip

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = "router",
        branch: str | None = None,
        tag: str | None = None,
        snapshot: str | None = None,
        checkpoint: int | None = None,
        tail: bool = True,
        storage_options: Mapping[str, Any] | None = None,
        **decoders: Any,
    ) -> xr.Dataset:
        """One group of a run, lazily; see `find_snapshot` for the state that is shown.

        Its attributes say the branch, tag or checkpoint that was asked for, the snapshot and k.

        Args:
            group: its name or its path ("/train"); "/" has attributes only.
            decoders: xarray's own, such as decode_times; there is nothing to decode.

        Raises:
            UsageError: an argument that neither this engine nor xarray has.
        """
        _check_decoders(decoders)
        store = find_store(filename_or_obj, storage_options)
        state: dict[str, Any] = {
            "branch": branch,
            "tag": tag,
            "snapshot": snapshot,
            "checkpoint": checkpoint,
        }
        found = find_snapshot(store, **state, tail=tail)
        name = str(group or "router").strip("/")
        ds = open_group(found, name, _dropped(drop_variables)) if name else xr.Dataset()
        return ds.assign_attrs(_noted(found, state))

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        tag: str | None = None,
        snapshot: str | None = None,
        checkpoint: int | None = None,
        tail: bool = True,
        storage_options: Mapping[str, Any] | None = None,
        **decoders: Any,
    ) -> dict[str, xr.Dataset]:
        """Every group that holds rows, all of one state, by its path; the root has attributes
        only.
        """
        _check_decoders(decoders)
        store = find_store(filename_or_obj, storage_options)
        state: dict[str, Any] = {
            "branch": branch,
            "tag": tag,
            "snapshot": snapshot,
            "checkpoint": checkpoint,
        }
        found = find_snapshot(store, **state, tail=tail)
        noted = _noted(found, state)
        groups = {
            f"/{name}": open_group(found, name, _dropped(drop_variables)).assign_attrs(noted)
            for name in found.groups
        }
        return {"/": xr.Dataset(attrs=noted), **groups}

    def open_datatree(  # type: ignore[override]
        self, filename_or_obj: str | os.PathLike[str], **asked: Any
    ) -> xr.DataTree:
        """As `open_groups_as_dict`, as one tree."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **asked))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a folder on this machine with a store in it, or a store."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        try:
            folder = Path(filename_or_obj)
            return any(
                (part / "refs" / "branch.main").is_dir() for part in (folder, folder / STORE)
            )
        except (OSError, ValueError):
            return False


def _check_decoders(asked: Mapping[str, Any]) -> None:
    for name in asked:
        if name not in DECODERS:
            known = [n for n in WorkbenchBackend.open_dataset_parameters[1:] if n != name]
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}."
            raise UsageError(f"the engine 'workbench' has no argument {ascii(name)[:80]}{hint}")


def _dropped(names: str | Iterable[str] | None) -> frozenset[str]:
    return frozenset((names,) if isinstance(names, str) else names or ())


def _noted(found: Snapshot, state: Mapping[str, Any]) -> dict[str, Any]:
    """Which state it is, for the dataset's attributes: plain values that any format can hold."""
    asked = {name: value for name, value in state.items() if value is not None}
    by_id = "tag" in asked or "snapshot" in asked
    branch = {} if by_id else {"branch": MAIN}
    return {**branch, **asked, "snapshot": found.id, "k": found.layout.k}
