"""Probes beside what people do without them: linear probes, the routing set, memory, one pass.

Needs   a finished run (`make demo`); the whole of it takes about half an hour on one core.
Yields  JSON of medians and spreads on stdout, or in a folder.

    python tests/benchmarks/probing.py --run runs/demo --rounds 5 --into docs/measured

Linear probes are held against a scikit-learn loop that does the same cross-validated fits, the
routing set against a script that goes token by token; both are asserted to give the same numbers.
One pass for many probes is held against a pass for each. Peak memory is that of a fresh process
that examines 5, 10 or 20 checkpoints. (The file is not called probes.py: a script's folder comes
first on the path, and it would hide the package.)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

SET = ("participation", "logit-lens", "confidence-fixed", "coactivation-fixed", "vocabulary")
"""Probes of one pass."""

MEMORY = """
import resource, sys
import workbench as wb
from probes.examine import examine
run = wb.open_run(sys.argv[1], sys.argv[3])
examine(run.checkpoints[-int(sys.argv[2]):], *sys.argv[4:], keep=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def beside(name: str) -> Any:
    """A benchmark that lies beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def memory(run: Path, branch: str) -> dict[str, float]:
    """Peak resident MiB of a process that examines so many checkpoints."""
    found = {}
    for count in (5, 10, 20):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(run), str(count), branch, *SET],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[f"{count} checkpoints"] = round(float(done.stdout), 1)
    return found


def one_pass(run: Path, branch: str, rounds: int) -> dict[str, Any]:
    """Seconds of a set of probes over 10 checkpoints: together, and one after another."""
    import workbench as wb
    from probes.examine import examine

    checkpoints = wb.open_run(run, branch).checkpoints[-10:]
    seconds: dict[str, list[float]] = {"together": [], "one by one": []}
    for turn in range(rounds):
        ways = ["together", "one by one"]
        for way in ways if turn % 2 else ways[::-1]:
            began = time.process_time()
            if way == "together":
                examine(checkpoints, *SET, keep=False)
            else:
                for name in SET:
                    examine(checkpoints, name, keep=False)
            seconds[way].append(time.process_time() - began)
    return {way: spread(values) for way, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--branch", default="curriculum")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--only", choices=["linear", "routing", "memory", "pass"])
    asked = parser.parse_args()
    parts = {
        "memory": lambda: memory(asked.run, asked.branch),
        "pass": lambda: one_pass(asked.run, asked.branch, asked.rounds),
        "linear": lambda: beside("probes_linear").rounds(asked.rounds, run=asked.run),
        "routing": lambda: {
            "16 experts, top-4": beside("probes_routing").rounds(asked.rounds),
            "64 experts, top-8": beside("probes_routing").rounds(
                asked.rounds, checkpoints=20, experts=64, k=8
            ),
        },
    }
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": platform.processor()}
    found: dict[str, Any] = {"about": about | {"rounds": asked.rounds}}
    for name, part in parts.items():
        if asked.only in (None, name):
            found[name] = part()
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    if asked.into is not None:
        asked.into.mkdir(parents=True, exist_ok=True)
        (asked.into / "probes.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
