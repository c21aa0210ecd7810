"""Verification: reads all that a store holds and says what is wrong with it, and where.

Needs   a store. It may be written meanwhile: what is looked at is the state of each branch when its
        turn comes.
Yields  `verify_store`: a Report of Faults. Nothing is changed.

Read once   What a fork shares with a branch that was read already is not read again: chunks wholly
            below the last common commit are the very same files. Chunks that were filled further
            since (at most one a variable) are read in both.
Looked at   branches and their history; tags; every chunk against its checksum (chunk_reader.py);
            descriptions against schema and layout (structure.py); the numbers against each other
            (rules.py); overviews against rows; the journals. What rollbacks set aside as well.
Deep        Shares nothing, reads the last chunks as each checkpoint's tag holds them too, and every
            overview instead of a sample of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zarr

from workbench.errors import UsageError
from workbench.store.damage import in_a_line, panics_as_errors
from workbench.store.names import AsideTag, CheckpointTag, read_tag
from workbench.store.run_store import RunStore
from workbench.store.snapshot import Snapshot
from workbench.store.verification.chunk_reader import ChunkReader
from workbench.store.verification.fault import FROM_A_COPY, Fault, Report
from workbench.store.verification.row_check import RowCheck, first_row, grows
from workbench.store.verification.structure import all_arrays, structure_faults

Progress = Callable[[str], None]


@dataclass
class State:
    """A state of the store that is to be read."""

    name: str
    """The branch, or the tag."""
    id: str
    history: list[str]
    """Ids of its snapshots, the newest first."""
    shared: str | None = None
    """The last snapshot that it has in common with a state that was read."""


def verify_store(
    store: RunStore, *, branch: str | None = None, deep: bool = False,
    progress: Progress | None = None,
) -> Report:  # fmt: skip
    """What is wrong with a store; an empty list of faults where nothing is.

    Args:
        branch: only this one; the whole store otherwise.
        deep: see the head of this file.
        progress: told, in a line, what is being looked at.

    Raises:
        RunNotFound: no such branch.

    Example:
        >>> import tempfile
        >>> from workbench.store.layout import Layout
        >>> store = RunStore.create(
        ...     tempfile.mkdtemp() + "/store", Layout(layers=(0,), experts=4, k=2)
        ... )
        >>> verify_store(store).sound
        True
    """
    return _Verification(store, deep, progress or (lambda _: None)).run(branch)


class _Verification:
    def __init__(self, store: RunStore, deep: bool, progress: Progress) -> None:
        self.store = store
        # Opened anew: what this process read before is not what lies on the disk now.
        self.repository = store.location.open()
        self.deep = deep
        self.progress = progress
        self.report = Report()
        self.read: list[State] = []

    @property
    def folder(self) -> Path | None:
        try:
            return self.store.location.folder
        except UsageError:
            return None

    def run(self, branch: str | None) -> Report:
        if branch is not None:
            self.store.tip(branch)
        tags = self._tags(branch)
        branches = [branch] if branch is not None else sorted(self.repository.list_branches())
        # Main first: the others are forks of it, so more is shared.
        for name in sorted(branches, key=lambda n: n != "main"):
            state = self._state(name)
            if state is not None:
                self.report.count("branches")
                self._verify(state)
        for name, id in tags:
            state = self._state(name, id)
            if state is not None:
                self._verify(state)
        self._lost_references(branch)
        self._journals(branch)
        return self.report

    # What there is

    def _state(self, name: str, tagged: str | None = None) -> State | None:
        try:
            with panics_as_errors():
                id = tagged or self.repository.lookup_branch(name)
                history = [info.id for info in self.repository.ancestry(snapshot_id=id)]
        except Exception as error:
            self._unreadable("branch", name, error)
            return None
        state = State(name, id, history)
        if not self.deep:
            at = {id: place for place, id in enumerate(history)}
            common = [at[i] for known in self.read for i in known.history if i in at]
            state.shared = history[min(common)] if common else None
        elif tagged:
            state.shared = id
        return state

    def _tags(self, branch: str | None) -> list[tuple[str, str]]:
        """Looks at every tag; those whose state is to be read, and its snapshot."""
        wanted = []
        for name in sorted(self.repository.list_tags()):
            tag = read_tag(name)
            if tag is None or (branch is not None and tag.branch != branch):
                continue
            self.report.count("tags")
            try:
                with panics_as_errors():
                    id = self.repository.lookup_tag(name)
                    Snapshot(self.repository, id)
            except Exception as error:
                self._unreadable("tag", name, error)
                continue
            if id != tag.snapshot:
                found = f"snapshot {id}"
                self._tell("tag", name, found=found, expected=f"{tag.snapshot}, as its name says")
            elif isinstance(tag, AsideTag) or (self.deep and isinstance(tag, CheckpointTag)):
                wanted.append((name, id))
        return wanted

    def _lost_references(self, branch: str | None) -> None:
        """Branches and tags whose file is there and that Icechunk does not list: one that is empty
        looks to it like one that was deleted.
        """
        folder = self.folder
        if folder is None:
            return
        listed = {f"branch.{name}" for name in self.repository.list_branches()}
        listed |= {f"tag.{name}" for name in self.repository.list_tags()}
        for ref in sorted((folder / "refs").iterdir()):
            kind, _, name = ref.name.partition(".")
            tag = read_tag(name)
            of = name if kind == "branch" or tag is None else tag.branch
            if ref.name in listed or branch not in (None, of) or not (ref / "ref.json").exists():
                continue
            if not (ref / "ref.json.deleted").exists():
                found = f"a file refs/{ref.name}/ref.json that says nothing"
                self._tell(kind, name, found, "the snapshot that it stands for")

    def _unreadable(self, kind: str, name: str, error: Exception) -> None:
        self._tell(kind, name, found=in_a_line(error), expected="a state that opens")

    def _tell(self, kind: str, name: str, found: str, expected: str) -> None:
        fault = Fault(kind=kind, branch=name, found=found, expected=expected, remedy=FROM_A_COPY)
        self.report.add([fault])

    # One state

    def _verify(self, state: State) -> None:
        """Reads one state. Damage in Icechunk's own files can come up wherever they are asked."""
        self.progress(f"{state.name}")
        try:
            with panics_as_errors():
                self._verify_whole(state)
        except Exception as error:
            self._unreadable("branch", state.name, error)

    def _verify_whole(self, state: State) -> None:
        snapshot = None
        if state.name.startswith("_"):
            session = self.repository.readonly_session(snapshot_id=state.id)
            root = zarr.open_group(session.store, mode="r", zarr_format=3)
        else:
            snapshot = Snapshot(self.repository, state.id)
            root = snapshot.root
        arrays = all_arrays(root)
        reader = ChunkReader(self.report, state.name, self.folder)
        since = self._lengths(state.shared)
        if snapshot is not None:
            # The first holds the layout alone; the one after the repository's own.
            first, before = (self._earlier(state, place) for place in (-2, 1))
            found = list(
                structure_faults(self.repository, snapshot, state.name, arrays, first, before)
            )
            self.report.add(found)
            departed = {f"{f.group}/{f.variable}" for f in found if f.kind == "schema"}
            RowCheck(reader, snapshot, arrays, since, departed).verify()
        else:
            self._results(state.name, root)
        self.report.count("arrays", len(arrays))
        for path, array in arrays.items():
            start = first_row(array, since.get(path, 0))
            reader.count(array, start)
            if snapshot is None or not grows(path, array):
                for _ in reader.scan(array, start):
                    pass
        if snapshot is not None:
            from workbench.store.verification.overview_check import overview_faults

            since_rows = 0 if self.deep else since.get("router/step", 0)
            self.report.add(overview_faults(reader, arrays, state.name, since_rows, deep=self.deep))
        self.read.append(state)

    def _results(self, name: str, root: zarr.Group) -> None:
        from workbench.store.results import result_faults

        for path, found, expected in result_faults(root):
            fault = Fault(
                kind="result", branch=name, group=path, found=found, expected=expected,
                remedy="drop the results of that probe; they are computed again",
            )  # fmt: skip
            self.report.add([fault])

    def _earlier(self, state: State, place: int) -> Snapshot | None:
        """A state of its history; None where it cannot be read."""
        try:
            with panics_as_errors():
                return Snapshot(self.repository, state.history[place])
        except Exception:
            return None

    def _lengths(self, shared: str | None) -> dict[str, int]:
        """Rows of every array in the snapshot that is shared with what was read."""
        if shared is None:
            return {}
        try:
            with panics_as_errors():
                session = self.repository.readonly_session(snapshot_id=shared)
                root = zarr.open_group(session.store, mode="r", zarr_format=3)
                return {path: a.shape[0] for path, a in all_arrays(root).items() if a.ndim}
        except Exception:
            return {}

    def _journals(self, branch: str | None) -> None:
        from workbench.store.journal import is_cut_short, read_journal

        folder = self.store.location.journal_folder
        for file in sorted(folder.glob("*.log")) if folder.is_dir() else ():
            name = file.name.split(".")[0]
            if branch not in (None, name):
                continue
            try:
                found = read_journal(file)
            except FileNotFoundError:
                continue  # committed meanwhile
            except Exception as error:
                self._tell("journal", name, in_a_line(error), "whole frames")
                continue
            self.report.count("journals")
            self.report.count("journal rows", len(found.entries))
            where = None
            if found.lost:
                where = f"{found.lost} bytes between whole frames that are none"
            elif found.rest and not is_cut_short(found.rest):
                where = f"{len(found.rest)} bytes at its end that are no whole frame"
            if where:
                fault = Fault(
                    kind="journal", branch=name, files=(f"journal/{file.name}",), found=where,
                    expected="frames to its end, or one that a kill cut short",
                    remedy="the rows of whole frames are read, those of others are lost: go on "
                    "from the last checkpoint if they matter",
                )  # fmt: skip
                self.report.add([fault])
