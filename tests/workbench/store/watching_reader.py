"""A reader that stays open while writers live and die, looking all the time.

Needs   the path of a store, which may not be there yet.
Yields  when its stdin ends, one line of JSON: how often it looked, what it saw go wrong, and every
        time that a branch showed less than before.

    python watching_reader.py STORE
"""

from __future__ import annotations

import json
import select
import sys
import time
import traceback

import ledger
import numpy as np

from workbench.errors import RunNotFound
from workbench.store.run_store import RunStore

LOOK_EVERY = 0.03
WHOLE_EVERY = 25
"""Looks between two that compare every row, and the snapshot that was kept from early on."""


def main() -> None:
    seen = {"looks": 0, "rows": 0, "faults": [], "shrunk": []}
    store = kept = None
    before = np.empty(0)
    while not select.select([sys.stdin], [], [], LOOK_EVERY)[0]:
        try:
            store = store or RunStore.open(sys.argv[1])
        except RunNotFound:
            continue
        try:
            whole = seen["looks"] % WHOLE_EVERY == 0
            snapshot = store.read("main")
            lives = ledger.shown(snapshot, whole=whole)
            if len(lives) < len(before):
                seen["shrunk"].append([time.monotonic(), len(before), len(lives)])
            if kept is None and len(lives) > 60:
                kept = snapshot, lives
            elif kept and whole:
                assert np.array_equal(ledger.shown(kept[0]), kept[1]), "a kept snapshot changed"
            before = lives
            seen["looks"] += 1
            seen["rows"] = max(seen["rows"], len(lives))
        except BaseException:
            seen["faults"].append(traceback.format_exc())
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
