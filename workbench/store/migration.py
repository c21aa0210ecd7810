"""From an older version of the schema to the one in force, a step of the chain at a time.

Needs   the writable root group of a store that an older version of the workbench wrote.
Yields  `migrate`: the root as this version would have written it, and a sentence a step.

When     Only writers migrate, in the session of their first commit: old rows, what the chain adds
         and the new rows become visible in that one commit, or none of them does. A step that
         fails leaves the store as it was, and readable: readers know every version from 1.
Branches A branch is migrated when it is written; its sisters, and the checkpoints before it, stay
         as they were. A fork of an old checkpoint is migrated by its own first commit.
Adding   Raise schema.VERSION, write a step, enter it in MIGRATIONS under the version that it
         starts from. Steps add; what they would have to rewrite stays readable under its old name,
         because snapshots cannot be changed. A step may run twice on parts that a fork shares: it
         must find there what it has done, and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import zarr

from workbench.errors import SchemaError
from workbench.store import schema
from workbench.store.snapshot import ROOT

Migration = Callable[[zarr.Group], str]
"""Changes a root group from one version to the next, and says in a sentence what it did."""


def from_1_to_2(root: zarr.Group) -> str:
    """Version 2 keeps overviews beside the rows of every step; those of old rows are made here."""
    from workbench.store.overviews import extend_overviews

    blocks = sum(
        extend_overviews(root, group)
        for group in ("router", "train")
        if isinstance(root.get(group), zarr.Group)
    )
    return f"1 to 2: {blocks} blocks of overviews made from the rows that were there"


MIGRATIONS: Mapping[int, Migration] = {1: from_1_to_2}
"""The chain: the version that a step starts from, and the step."""


def version_of(root: zarr.Group) -> int:
    """The schema version that the root group says it was written with; 0 where it says none."""
    note = root.attrs.get(ROOT)
    found = note.get("schema") if isinstance(note, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def migrate(root: zarr.Group) -> list[str]:
    """Bring `root` to the schema version in force; with nothing to do, nothing is touched.

    Call it before anything else is written in the session, and commit the session with it: an error
    must end the session, so that no half of a migration is ever seen.

    Args:
        root: root group of a writable session.

    Returns:
        What was done, a sentence for every version left behind; empty where it is up to date.

    Raises:
        SchemaError: the store says no version, or one that no chain leads from (a newer workbench
            wrote it).

    Example:
        >>> root = zarr.create_group({}, zarr_format=3)
        >>> root.attrs["workbench"] = {"schema": schema.VERSION}
        >>> migrate(root)
        []
    """
    found = version_of(root)
    if not 1 <= found <= schema.VERSION:
        raise SchemaError(
            f"the store was written with schema version {found}, this installation writes "
            f"{schema.VERSION}; install the version of the workbench that wrote it, or a newer one."
        )
    done = []
    for version in range(found, schema.VERSION):
        if version not in MIGRATIONS:
            raise SchemaError(
                f"no migration leads from schema version {version} to {version + 1}; this is a "
                f"fault of the workbench: open the store with the version that wrote it."
            )
        done.append(MIGRATIONS[version](root))
        note: dict[str, Any] = dict(root.attrs[ROOT])  # type: ignore[arg-type]
        root.attrs[ROOT] = note | {"schema": version + 1}
    return done
