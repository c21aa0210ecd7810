"""Damages one file of a store at a time, reads and verifies it, and says what came of it.

    python fuzzed_reader.py STORE SEED CASES [PARTS]

A process of its own: what damaged bytes do to native code must not end the tests. STORE is damaged
and mended in place. Prints a JSON line a case.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
from pathlib import Path

import numpy as np

from workbench.store.run_store import RunStore
from workbench.store.verification import verify_store
from workbench.store.verification.structure import all_arrays

PARTS = ("chunks", "manifests", "manifests", "snapshots", "snapshots", "refs", "transactions",
         "journal", "config.yaml")  # fmt: skip
HARMS = ("flip", "flip", "flip", "cut", "empty", "noise")


def everything(path):
    """All that the store shows, as plain data that can be compared."""
    store = RunStore.open(path)
    seen = {}
    for branch in store.branches:
        snapshot = store.read(branch)
        seen[branch, "note"] = json.dumps(snapshot.note, sort_keys=True)
        tail = snapshot.tail
        seen[branch, "tail"] = str({g: {d: sorted(v) for d, v in r.items()} for g, r in
                                    tail.items()})  # fmt: skip
        for name, array in all_arrays(snapshot.root).items():
            seen[branch, name] = (np.asarray(array[...]).tolist(), dict(array.attrs))
    return repr(sorted(seen.items()))


def age(file):
    return file.stat().st_mtime_ns, file.name


def harmed(held, harm, chance):
    if harm == "empty":
        return b""
    if harm == "cut":
        return held[: chance.randrange(len(held))]
    if harm == "noise":
        return chance.randbytes(len(held))
    at = chance.randrange(len(held) * 8)
    flipped = bytearray(held)
    flipped[at // 8] ^= 1 << at % 8
    return bytes(flipped)


def departure(whole, seen):
    """What the first difference looks like."""
    at = next((i for i, (a, b) in enumerate(zip(whole, seen, strict=False)) if a != b), -1)
    return f"{whole[at - 40 : at + 40]!r} became {seen[at - 40 : at + 40]!r}"


def attempt(what, *arguments):
    try:
        return what(*arguments), ""
    except BaseException as error:
        # Icechunk's panics are no Exceptions.
        if isinstance(error, KeyboardInterrupt):
            raise
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def main():
    faulthandler.enable()
    path, seed, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    parts = sys.argv[4].split(",") if len(sys.argv) > 4 else PARTS
    chance = random.Random(seed)
    whole = everything(path)
    # By age: Icechunk's names are drawn afresh for every store.
    files = {}
    for part in parts:
        there = [path / part, *(path / part).rglob("*")]
        files[part] = sorted((p for p in there if p.is_file()), key=age)
    for _ in range(cases):
        part = chance.choice([p for p in parts if files[p]])
        file, harm = chance.choice(files[part]), chance.choice(HARMS)
        held = file.read_bytes()
        if not held:
            continue
        file.write_bytes(harmed(held, harm, chance))
        seen, error = attempt(everything, path)
        report, refusal = attempt(lambda: verify_store(RunStore.open(path)))
        file.write_bytes(held)
        line = {
            "file": str(file.relative_to(path)), "harm": harm,
            "read": error or ("same" if seen == whole else "different"),
            "where": "" if error or seen == whole else departure(whole, seen),
            "faults": [refusal] if report is None else [str(f) for f in report.faults],
        }  # fmt: skip
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
