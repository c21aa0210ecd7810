"""The one writer of a branch: rows in, durable commits out.

Needs   a store, a branch nobody else writes.
Yields  StoreWriter: `append`, `seal` and `sync`, `commit`, `tag_checkpoint`.

Promise  What `commit` or `sync` has acknowledged survives a kill of the process and a power cut,
         what `seal` has, a kill. A reader sees all of a commit or of a frame of the journal, or
         none of it.
Order    lock of the repository, chunks, flush (a snapshot that no branch shows yet), sync, branch
         moved to it, sync, lock freed.
Locks    A branch has one writer, for as long as it lives (a second is refused). Writers of other
         branches take turns commit by commit on the repository's lock: arms may train at the same
         time. Nothing is half written outside that lock, so whoever cleans up takes it too.
Threads  One thread at a time; it need not be the one that made the writer. Do not fork a process
         that has used Icechunk and use it in the child: it hangs there. Spawn instead (DataLoader
         workers that leave the store alone are safe).
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from workbench.errors import SchemaError, StoreBusy, UsageError
from workbench.store import event_loop
from workbench.store.journal import Journal
from workbench.store.labels import write_labels
from workbench.store.location import LocalFolder
from workbench.store.migration import migrate, version_of
from workbench.store.names import CheckpointTag
from workbench.store.overviews import BLOCK, extend_overviews
from workbench.store.pooling import LEVELS
from workbench.store.ragged import faults_of_offsets
from workbench.store.schema import CLOCKS, GROWING, SCHEMA, VERSION, Variable
from workbench.store.snapshot import Snapshot
from workbench.store.strand import Strand

if TYPE_CHECKING:
    from workbench.store.run_store import RunStore

OVERVIEW_ROWS = BLOCK * LEVELS[0]
"""Rows that make a whole block of the finest overview."""


async def _write_all(root: zarr.Group, strands: list[Strand], sizes: dict[str, int]) -> None:
    await asyncio.gather(*(strand.write(root, sizes) for strand in strands))


class StoreWriter:
    """Appends rows to one branch. Made by `RunStore.writer`; use it as a context.

    Leaving the context normally commits what waits; leaving it by an exception drops what waits,
    because groups that belong together may have been appended only in part.

    Raises:
        StoreBusy: another process writes to this branch.
    """

    def __init__(self, store: RunStore, branch: str) -> None:
        self.branch = branch
        self._store = store
        self._lock = store.branch_lock(branch)
        self._lock.acquire()
        try:
            self._turn = store.commit_lock()
            self.snapshot_id = store.tip(branch)
            snapshot = Snapshot(store.repository, self.snapshot_id)
            self.layout = snapshot.layout
            self._attrs = snapshot.attrs
            self._relabel = False
            self._offer: str | None = None
            self._offered_layout = self.layout
            self._version = version_of(snapshot.root)
            self._owes_sync = False
            self._marked = store.history.last_mark(self.snapshot_id)
            self._strands = {
                (group, dim): Strand(group, dim, self._stored(snapshot, group))
                for group, dims in GROWING.items()
                for dim in dims
            }
            self._journal = Journal(store.location.journal_folder, branch, self.snapshot_id)
            self.recovered = self._recover()
            """Steps that a writer before this one had in its journal and not committed; they wait
            for the next commit."""
        except BaseException:
            self._lock.close()
            raise

    @staticmethod
    def _stored(snapshot: Snapshot, group: str) -> zarr.Group | None:
        stored = snapshot.root.get(group)
        return stored if isinstance(stored, zarr.Group) else None

    def _recover(self) -> int:
        """Takes in again what the last writer left in its journal."""
        try:
            for group, rows in self._journal.entries():
                self._take(group, rows, {})
            # On object storage other machines may have rolled the branch back, which files here
            # do not know.
            if isinstance(self._store.location, LocalFolder):
                for group, rows in self._journal.older_entries():
                    self._take(group, self._beyond(group, rows), {})
        except SchemaError as error:
            kept = self._journal.refuse()
            warnings.warn(
                f"{kept} holds rows that do not fit branch {self.branch!r} and were left out "
                f"({error}).",
                RuntimeWarning,
                stacklevel=4,
            )
        if not self.waiting:
            self._journal.retire()
        return self._strands["train", "step"].waiting

    def _beyond(self, group: str, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of one entry that the branch does not hold."""
        parts, _ = self._divide(group, rows)
        late = [self._strands[group, dim].beyond(part) for dim, part in parts.items()]
        return {name: values for part in late for name, values in part.items()}

    def last(self, group: str, dim: str | None = None) -> int | None:
        """Step of the last row of `group`, waiting rows included; None where it has none.

        Example: `writer.last("router")` after a resume is the last recorded step.
        """
        return self._strands[group, dim or GROWING[group][0]].last

    @property
    def waiting(self) -> int:
        """Rows appended and not yet committed, over all groups."""
        return sum(strand.waiting for strand in self._strands.values())

    def waiting_in(self, group: str) -> int:
        """Rows of one group, along its first growing dim, that are not yet committed."""
        return self._strands[group, GROWING[group][0]].waiting

    def fill_layout(self, **more: Any) -> None:
        """State what the layout left empty: tasks=, tokens= or domains=. Stored with the next
        commit.
        """
        filled = self.layout.filled(**more)
        self._relabel = self._relabel or filled != self.layout
        self.layout = filled

    def append(
        self,
        group: str,
        rows: Mapping[str, np.ndarray],
        declared: Mapping[str, Variable] | None = None,
    ) -> None:
        """Add rows at the end of `group`; they are durable after the next `commit`.

        Args:
            group: "router", "train", "evaluations", "activations", "traces" or "interiors".
            rows: variables by name, each with the growing dim first, and that dim's labels under
                its name ("step" for router, train and traces, "checkpoint" for the others; in
                router also "sample" with "coactivation"). Dtypes as in the schema. What the first
                append had every later one has. The offsets of interiors count from the first row
                of this append; the writer adds the rows before it.
            declared: what the schema cannot know: sites (their dims begin with checkpoint, token),
                and from which dtype a variable was widened.

        Raises:
            SchemaError: anything departs from the schema, the layout or the order; nothing is taken
                in then.
        """
        self._check_open()
        if group not in SCHEMA:
            raise SchemaError(f"no group {group!r}; the groups are {', '.join(SCHEMA)}.")
        self._take(group, rows, declared or {})
        self._journal.add(group, rows)

    def _take(
        self, group: str, rows: Mapping[str, np.ndarray], declared: Mapping[str, Variable]
    ) -> None:
        faults = self._declare(group, declared)
        parts, more = self._divide(group, rows)
        faults += more
        for dim, part in parts.items():
            faults += self._strands[group, dim].check(part, self.layout.sizes)
        if not faults and group == "interiors":
            faults += self._place_offsets(parts)
        if faults:
            raise SchemaError(f"{group} departs from the schema:\n  " + "\n  ".join(faults))
        for dim, part in parts.items():
            self._strands[group, dim].check_order(part, self.branch)
        for dim, part in parts.items():
            self._strands[group, dim].push(part)

    def _declare(self, group: str, declared: Mapping[str, Variable]) -> list[str]:
        faults = []
        for name, variable in declared.items():
            strand = self._strands.get((group, variable.dims[0]))
            if strand is None or name in self.layout.sizes:
                faults.append(f"{name}: {group!r} takes no variable {variable.dims} of that name")
            else:
                faults += strand.declare({name: variable})
        return faults

    def _place_offsets(self, parts: dict[str, dict[str, np.ndarray]]) -> list[str]:
        """Lets the offsets of interiors count from the first row of the branch."""
        if set(parts) != {"checkpoint", "row"} or "offsets" not in parts["checkpoint"]:
            return ["offsets and the rows that they divide are appended together"]
        rows = self._strands["interiors", "row"]
        offsets = parts["checkpoint"]["offsets"]
        faults = faults_of_offsets(offsets, len(next(iter(parts["row"].values()))))
        parts["checkpoint"]["offsets"] = offsets + rows.count + rows.waiting
        return faults

    def _divide(
        self, group: str, rows: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
        """`rows` by the dim along which they grow, and the faults that show already here."""
        homes = {n: dim for dim in GROWING[group] for n in self._strands[group, dim].known}
        parts: dict[str, dict[str, np.ndarray]] = {}
        faults = []
        for name, values in rows.items():
            if name not in homes:
                faults.append(
                    f"{name}: not a variable of {group!r}; it knows {', '.join(sorted(homes))}"
                )
                continue
            dims = self._strands[group, homes[name]].known[name].dims
            unset = [d for d in dims[1:] if self.layout.sizes.get(d) == 0]
            if unset:
                faults.append(f"{name}: the layout does not state {unset[0]!r}; use fill_layout")
                continue
            parts.setdefault(homes[name], {})[name] = np.asarray(values)
        for dim in list(parts):
            label = CLOCKS[dim]
            if label and label not in parts[dim]:
                faults.append(f"{label}: missing; {', '.join(parts[dim])} need their labels")
                del parts[dim]
            elif scalars := [n for n, v in parts[dim].items() if not v.ndim or
                             (n == label and v.ndim != 1)]:  # fmt: skip
                faults.append(f"{scalars[0]}: {parts[dim][scalars[0]].ndim} dims, expected "
                              f"{1 if scalars[0] == label else 'rows'}")  # fmt: skip
                del parts[dim]
        return parts, faults

    def seal(self) -> None:
        """Put what was appended step by step into the journal: a kill of this process does not lose
        it any more, and readers see it. Costs a write; `sync` costs a wait for the disk.

        Raises:
            StoreBusy: the lock of the branch was lost meanwhile.
        """
        self._check_open()
        self._lock.check()
        if self._relabel and self.waiting:
            # Rows under labels that no commit holds could not be taken in again.
            self.commit("labels")
        self._journal.seal()

    def sync(self) -> None:
        """Seal, and wait until the disk has it: a power cut does not lose it any more.

        Example: call it once a second between commits, as the recorder does.
        """
        self.seal()
        self._journal.sync()

    def commit(self, message: str) -> str:
        """Make everything appended durable and visible, all at once; returns the snapshot's id.

        With nothing waiting no commit is made. After an error (a full disk) nothing is lost: what
        was not committed still waits. Make room and commit again.
        """
        self._check_open()
        self._find_offer()
        grown = [strand for strand in self._strands.values() if strand.waiting]
        if not grown and not self._relabel:
            self._pay_sync()
            return self.snapshot_id
        repository = self._store.repository
        with self._turn as turn:
            turn.acquire(wait=True)
            self._lock.check()
            session = repository.writable_session(self.branch)
            if session.snapshot_id != self.snapshot_id:
                raise StoreBusy(
                    f"branch {self.branch!r} was moved to {session.snapshot_id} from outside while "
                    f"this writer held it at {self.snapshot_id}; open a new writer and go on there."
                )
            root = zarr.open_group(session.store, mode="r+", zarr_format=3)
            self._write(root, grown)
            note = {"branch": self.branch, "after": self._marked, **self._ends()}
            new = session.flush(message, metadata=note)
            self._store.location.sync()
            self._journal.offer()
            self._offer, self._offered_layout = new, self.layout
            self._store.move(self.branch, new, since=self.snapshot_id)
            self._accept()
            self._pay_sync()
        return self.snapshot_id

    def _write(self, root: zarr.Group, grown: list[Strand]) -> None:
        """Everything that waits, and what is kept along with it."""
        if self._version < VERSION:
            migrate(root)
        if self._relabel:
            write_labels(root, self.layout, self._attrs)
        event_loop.run(_write_all(root, grown, self.layout.sizes))
        for group in ("router", "train"):
            strand = self._strands[group, "step"]
            if strand.count // OVERVIEW_ROWS < (strand.count + strand.waiting) // OVERVIEW_ROWS:
                extend_overviews(root, group)

    def _accept(self) -> None:
        """The branch stands at what was offered: its rows wait no more."""
        assert self._offer is not None
        for strand in self._strands.values():
            strand.settle()
        self._relabel = self.layout != self._offered_layout
        self._version = VERSION
        self._journal.begin(self._offer)
        self.snapshot_id, self._offer = self._offer, None
        self._owes_sync = True

    def _find_offer(self) -> None:
        """Whether a commit that seemed to fail has moved the branch all the same: its answer was
        lost on the network, or Ctrl-C came in between.
        """
        if self._offer is None:
            return
        if self._store.repository.lookup_branch(self.branch) == self._offer:
            self._accept()
        self._offer = None

    def _pay_sync(self) -> None:
        """Sync if the last commit's own sync failed or has not happened yet."""
        if self._owes_sync:
            self._store.location.sync()
            self._owes_sync = False
        self._journal.retire()

    def _ends(self) -> dict[str, int]:
        """Last label of every group, for whoever lists the history without reading arrays."""
        ends = {group: self.last(group) for group in GROWING}
        return {group: last for group, last in ends.items() if last is not None}

    def tag_checkpoint(self, step: int) -> str:
        """Mark the last commit as the state at the checkpoint of `step`: forks and rollbacks go to
        such marks.

        Commit first, with everything up to `step` and nothing after it. Tagging the same step again
        after another commit (an evaluation that came late) moves the mark there.

        Returns:
            The tag's name.

        Raises:
            UsageError: rows wait for a commit, or the branch holds rows after `step`.
        """
        self._check_open()
        if self.waiting:
            raise UsageError(
                f"checkpoint {step} cannot be tagged while {self.waiting} rows wait; commit first."
            )
        late = {g: end for g, end in self._ends().items() if end > step}
        if late:
            group, end = next(iter(late.items()))
            raise UsageError(
                f"checkpoint {step} cannot be tagged: branch {self.branch!r} already holds {group} "
                f"up to step {end}. Tag a checkpoint before recording the next step."
            )
        self._marked = self.snapshot_id
        tag = str(CheckpointTag(self.branch, step, self.snapshot_id))
        if tag not in self._store.repository.list_tags():
            self._store.repository.create_tag(tag, self.snapshot_id)
            self._store.location.sync()
        return tag

    def _check_open(self) -> None:
        if not self._lock.held:
            raise UsageError("this writer is closed; open another with store.writer(branch).")

    def close(self) -> None:
        """Free the branch for another writer. What waits is dropped, unless it was sealed: that the
        next writer finds in the journal.
        """
        self._journal.close()
        self._lock.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._lock.held:
                self.commit("last rows")
        finally:
            self.close()
