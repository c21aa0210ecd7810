"""The docs' table of what capture costs on a GPU, from the JSON files of gpu_capture.py.

Needs   a folder of such files; it may be empty, or not be there.
Yields  Markdown on standard output: one row a contender and file, or "Not run yet.".

    python tests/benchmarks/gpu_table.py docs/measured
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NOT_YET = "Not run yet: no machine with a GPU has run `make gpu-check`."


def table(folder: Path) -> str:
    """Markdown of all the folder's files, the latest first; rehearsals on a CPU are left out."""
    files = [json.loads(p.read_text()) for p in sorted(folder.glob("gpu-capture-*.json"))]
    files = [said for said in files if said["device"] == "cuda"]
    if not files:
        return NOT_YET
    return "\n\n".join(_of_one(said) for said in sorted(files, key=lambda s: s["date"])[::-1])


def _of_one(said: dict[str, Any]) -> str:
    lines = [
        f"{said['machine']}, {said['date']}: {said['parameters'] / 1e6:.0f} million parameters, "
        f"{said['tokens_a_step']} tokens a step, torch {said['torch']}, triton {said['triton']}; "
        f"median of {said['rounds']} rounds (quartiles).",
        "",
        "| step | GPU ms | beside bare | wall ms | beside bare | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in said["contenders"].items():
        lines.append(
            f"| {name} | {of['gpu_ms']['median']:.3f} | {_percent(of['gpu_ratio'])} "
            f"| {of['wall_ms']['median']:.3f} | {_percent(of['wall_ratio'])} "
            f"| {of['peak_memory_mib']} |"
        )
    lines += ["", "| training thread in capture, a step | median us | p99 us |", "|---|---|---|"]
    lines += [
        f"| {name} | {of['median_us']} | {of['p99_us']} |" for name, of in said["host"].items()
    ]
    lines += ["", "| op alone: tokens, experts, k | GPU us | launch us | GPU us, slow step |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {of['tokens']}, {of['experts']}, {of['k']} | {of['every step, GPU us']} "
        f"| {of['every step, host us']} | {of['slow step, GPU us']} |"
        for of in said["op"]
    ]
    return "\n".join(lines)


def _percent(ratio: dict[str, float]) -> str:
    low, middle, high = ((ratio[k] - 1) * 100 for k in ("q1", "median", "q3"))
    return f"{middle:+.2f} % ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/measured")))
