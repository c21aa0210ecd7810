"""Results of probes, kept beside what they were computed from: computed once, and again when an
input changes.

Needs   a store; a probe's name, version, parameters and inputs; a function that computes.
Yields  Results: `fetch` what is there or compute it, `get`, `list`, `drop`.

On disk   Icechunk branch `_results` of the run's repository, group probes/<probe>/<key>. Branches
          whose name begins with "_" are no arms. The key is a digest of probe, version, parameters
          and inputs, written as JSON; an input is named by what changes when it does, such as
          `store.identity(branch, step)` for a stretch of the record, a fingerprint for weights.
Once      Computing takes no lock. Storing takes the store's commit lock for as long as one commit
          lasts; who comes second with the same key finds the first one's result and keeps that. An
          interrupted computation leaves nothing, an interrupted commit nothing that can be seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import icechunk as ic
import xarray as xr
import zarr

from workbench.errors import RunNotFound, SchemaError
from workbench.provenance import provenance
from workbench.store.damage import READING
from workbench.store.result_form import ASIDE as PUT_ASIDE
from workbench.store.result_form import encoding, from_form, to_form
from workbench.store.result_key import HOME, NAMED, Asked, check_name, digest
from workbench.store.run_store import RunStore

BRANCH = "_results"
ASIDE = "_results-new"
"""Where what stays is written while something is dropped."""
Taken = TypeVar("Taken")
Paths = list[str]
Kept = list[xr.Dataset | None]
"""Named, because `Results.list` hides the built-in inside the class."""


@dataclass(frozen=True)
class Stored:
    """One result that is kept."""

    probe: str
    version: str
    key: str
    params: dict[str, Any]
    inputs: dict[str, Any]
    utc: str
    """When it was computed, ISO 8601."""
    nbytes: int
    """Of its variables, decoded."""

    @property
    def path(self) -> str:
        """Its group in the branch `_results`."""
        return f"{HOME}/{self.probe}/{self.key}"


class Results:
    """The results kept in a store.

    Example:
        >>> import tempfile
        >>> from workbench.store.layout import Layout
        >>> store = RunStore.create(
        ...     tempfile.mkdtemp() + "/store", Layout(layers=(0,), experts=4, k=2)
        ... )
        >>> results = Results(store)
        >>> def count():
        ...     print("computing")
        ...     return xr.Dataset({"n": ("expert", [1, 2, 3, 4])})
        >>> inputs = {"router": store.identity("main", 0)}
        >>> results.fetch("count", 1, inputs, count).n.sum().item()
        computing
        10
        >>> results.fetch("count", 1, inputs, count).n.sum().item()
        10
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store

    def fetch(
        self,
        probe: str,
        version: int | str,
        inputs: Mapping[str, Any],
        compute: Callable[[], xr.Dataset],
        *,
        params: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """The result for these inputs: what is kept, or else what `compute` returns, kept from now
        on.

        Args:
            probe: name of what is computed: 1 to 64 of a-z, 0-9, '_' and '-'.
            version: of the probe's code; raise it when the numbers change.
            inputs: what it is computed from, by name: plain data (JSON) that changes when they do.
            compute: called without arguments where nothing is kept.
            params: what else decides the numbers: plain data.

        Returns:
            Lazy, with attributes probe, version, params, inputs (JSON text) and provenance.

        Raises:
            UsageError: the name, inputs or params cannot be a key.
            SchemaError: what `compute` returned cannot be stored.
        """
        asked = Asked(probe, version, inputs, params or {})
        found = self._open(asked.path)
        if found is not None:
            return found
        noted = _noted(asked.named(), compute())
        self._keep({asked.path: noted})
        # Another process may have dropped it again: what was computed is true all the same.
        kept = self._open(asked.path)
        return kept if kept is not None else from_form(noted)

    def keep(self, computed: Iterable[tuple[Asked, xr.Dataset]]) -> None:
        """Keep many results in one commit; those that are kept already stay as they are.

        Raises:
            UsageError, SchemaError: as `fetch`; then none of them is kept.
        """
        self._keep({a.path: _noted(a.named(), ds) for a, ds in computed})

    def kept(self, asked: Iterable[Asked], *, load: bool = False) -> Kept:
        """The result of each, lazy; None where there is none. Looks the branch up once.

        Args:
            load: read them whole: what another process drops meanwhile is then None too, where a
                lazy one fails later, when it is read and its space was freed.
        """
        paths = [a.path for a in asked]
        return self._read(lambda root: [_opened(path, root, load) for path in paths])

    def get(
        self,
        probe: str,
        version: int | str,
        inputs: Mapping[str, Any],
        *,
        params: Mapping[str, Any] | None = None,
    ) -> xr.Dataset | None:
        """The result that is kept for these inputs, lazy; None where there is none."""
        return self._open(Asked(probe, version, inputs, params or {}).path)

    def open(self, stored: Stored) -> xr.Dataset:
        """One that `list` named, lazy; RunNotFound where it was dropped since."""
        found = self._open(stored.path)
        if found is None:
            raise RunNotFound(f"the result {stored.path} is no longer kept.")
        return found

    @property
    def state(self) -> str | None:
        """A word that changes when a result is kept or dropped; None where none was ever kept."""
        return self._tip()

    def list(self, probe: str | None = None) -> list[Stored]:
        """Every result that is kept, or those of one probe, by name and time."""
        found = self._read(lambda root: _listed(probe, root))
        return sorted(found, key=lambda s: (s.probe, s.utc, s.key))

    def drop(self, probe: str | None = None) -> int:
        """Forget all results, or those of one probe; returns how many. `gc` then frees the space.

        The branch is written anew without them: results have no history that anybody goes back to.
        """
        if probe is not None:
            check_name(probe)
        with self.store.commit_lock() as turn:
            turn.acquire(wait=True)
            before = self.list()
            stay = [s for s in before if probe not in (None, s.probe)]
            if len(stay) == len(before):
                return 0
            if stay:
                self._write_anew([s.path for s in stay])
            else:
                self.store.repository.delete_branch(BRANCH)
            self.store.location.sync()
        return len(before) - len(stay)

    # The branch

    def _tip(self) -> str | None:
        """The branch's last snapshot; None where there is no branch."""
        repository = self.store.repository
        while BRANCH in repository.list_branches():
            # Dropped between the two looks: then it is not in the next list.
            with suppress(ic.IcechunkError):
                return repository.lookup_branch(BRANCH)
        return None

    def _root(self, tip: str | None) -> zarr.Group | None:
        if tip is None:
            return None
        session = self.store.repository.readonly_session(snapshot_id=tip)
        try:
            return zarr.open_group(session.store, mode="r", zarr_format=3)
        except FileNotFoundError:
            return None

    def _read(self, take: Callable[[zarr.Group | None], Taken]) -> Taken:
        """What `take` reads in the branch; in the branch as it is now where another process wrote
        it anew meanwhile and freed the space of what was read.
        """
        tip = self._tip()
        while True:
            try:
                return take(self._root(tip))
            except READING:
                before, tip = tip, self._tip()
                if tip == before:
                    raise

    def _open(self, path: str) -> xr.Dataset | None:
        return self._read(lambda root: _opened(path, root))

    def _keep(self, computed: Mapping[str, xr.Dataset]) -> None:
        """Commits what is not there yet, by path."""
        repository = self.store.repository
        with self.store.commit_lock() as turn:
            turn.acquire(wait=True)
            root = self._root(self._tip())
            new = {path: ds for path, ds in computed.items() if root is None or path not in root}
            if not new:
                return
            if BRANCH not in repository.list_branches():
                repository.create_branch(BRANCH, _beginning(repository))
            session = repository.writable_session(BRANCH)
            zarr.open_group(session.store, mode="a", zarr_format=3)
            for path, ds in new.items():
                try:
                    ds.to_zarr(
                        session.store, group=path, mode="w-", zarr_format=3, consolidated=False,
                        encoding={name: encoding(v) for name, v in ds.variables.items()},
                    )  # fmt: skip
                except (TypeError, ValueError, NotImplementedError) as error:
                    raise SchemaError(
                        f"the result of {ds.attrs['probe']!r} cannot be stored: {error}. Return "
                        f"plain numbers and text, and attributes of plain data."
                    ) from error
            self._commit(session, next(iter(new)) if len(new) == 1 else f"{len(new)} results")

    def _write_anew(self, paths: Paths) -> None:
        """Let the branch hold these results and no history. Cut short, it holds what it held."""
        repository = self.store.repository
        tip = repository.lookup_branch(BRANCH)
        old = zarr.open_group(
            repository.readonly_session(snapshot_id=tip).store, mode="r", zarr_format=3
        )
        if ASIDE in repository.list_branches():
            repository.delete_branch(ASIDE)
        repository.create_branch(ASIDE, _beginning(repository))
        session = repository.writable_session(ASIDE)
        zarr.open_group(session.store, mode="a", zarr_format=3)
        for path in paths:
            ds = xr.open_dataset(
                old.store, engine="zarr", group=path, consolidated=False, decode_cf=False  # type: ignore[arg-type]
            ).load()  # fmt: skip
            ds.to_zarr(
                session.store, group=path, mode="w-", zarr_format=3, consolidated=False,
                encoding={name: encoding(v) for name, v in ds.variables.items()},
            )  # fmt: skip
        new = session.flush("without what was dropped")
        self.store.location.sync()
        self.store.move(BRANCH, new, since=tip)
        self.store.location.sync()
        repository.delete_branch(ASIDE)

    def _commit(self, session: ic.Session, message: str) -> None:
        """As durable as a commit of the writer: flushed, synced, shown, synced."""
        base = session.snapshot_id
        new = session.flush(message)
        self.store.location.sync()
        self.store.move(BRANCH, new, since=base)
        self.store.location.sync()


def result_faults(root: zarr.Group) -> list[tuple[str, str, str]]:
    """Results whose attributes do not give the key that they lie under: path, found, expected."""
    home = root.get(HOME)
    faults = []
    for name, below in home.groups() if isinstance(home, zarr.Group) else ():
        for key, group in below.groups():
            said = {n: group.attrs.get(n) for n in NAMED}
            if said["probe"] != name or digest(said) != key:
                found = f"attributes with the key {digest(said)}"
                faults.append((f"{HOME}/{name}/{key}", found, f"{key}, under which it lies"))
    return faults


def _opened(path: str, root: zarr.Group | None, load: bool = False) -> xr.Dataset | None:
    if root is None or path not in root:
        return None
    ds = xr.open_dataset(
        root.store, engine="zarr", group=path, consolidated=False, zarr_format=3  # type: ignore[arg-type]
    )  # fmt: skip
    found = from_form(ds)
    return found.load() if load else found


def _listed(probe: str | None, root: zarr.Group | None) -> list[Stored]:
    home = root.get(HOME) if root is not None else None
    if not isinstance(home, zarr.Group):
        return []
    return [
        _stored(name, key, group)
        for name, below in home.groups()
        if probe in (None, name)
        for key, group in below.groups()
    ]


def _noted(named: Mapping[str, Any], computed: object) -> xr.Dataset:
    """What was computed, read whole and with what it is filed under, ready to be written."""
    if not isinstance(computed, xr.Dataset):
        raise SchemaError(
            f"probe {named['probe']!r} computed a {type(computed).__name__}, expected an "
            f"xr.Dataset; name the array: array.to_dataset(name=...)."
        )
    # Whatever is lazy is read here, where nobody waits for the lock.
    whole = _storable(computed.load(), named["probe"])
    # Its size is noted: to list hundreds of results is to read a note each, and no array.
    note = {**provenance(), "nbytes": sum(v.nbytes for v in whole.variables.values())}
    return whole.assign_attrs({**named, "provenance": json.dumps(note, sort_keys=True)})


def _stored(probe: str, key: str, group: zarr.Group) -> Stored:
    note = dict(group.attrs)
    origin = _read_json(note.get("provenance"))
    nbytes = origin.get("nbytes")
    if type(nbytes) is not int:  # written before sizes were noted
        nbytes = sum(array.nbytes for _, array in group.arrays())
    return Stored(
        probe=probe,
        version=str(note.get("version", "")),
        key=key,
        params=_read_json(note.get("params")),
        inputs=_read_json(note.get("inputs")),
        utc=str(origin.get("utc", "")),
        nbytes=nbytes,
    )


def _read_json(text: object) -> dict[str, Any]:
    try:
        plain = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        plain = {}
    return plain if isinstance(plain, dict) else {}


def _storable(ds: xr.Dataset, probe: str) -> xr.Dataset:
    """As it is written; SchemaError where it has an attribute of ours."""
    clash = [name for name in (*NAMED, "provenance", PUT_ASIDE) if name in ds.attrs]
    if clash:
        raise SchemaError(
            f"the result of {probe!r} has an attribute {clash[0]!r}, a name that is written beside "
            f"it; call it otherwise."
        )
    return to_form(ds, probe)


def _beginning(repository: ic.Repository) -> str:
    """The empty snapshot with which the repository began."""
    return [info.id for info in repository.ancestry(branch="main")][-1]
