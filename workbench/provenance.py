"""Where a result comes from: software, machine, moment, command.

Needs   nothing.
Yields  `provenance`, plain data for run.json and reports. The environment's variables are not
        recorded: they hold secrets.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "training-dynamics-workbench", "torch", "numpy", "zarr", "icechunk", "xarray", "safetensors",
    "tokenizers", "transformers", "transformer-lens", "scipy", "plotly",
)  # fmt: skip
"""Those whose version can change a number."""

_SECRET = re.compile(r"(?i)(^|[-_])(token|secret|password|passwd|api[-_]?key|key)$")


def provenance() -> dict[str, Any]:
    """What made what is about to be made.

    Returns:
        utc (ISO 8601), command (list of words, the value of an option such as --api-key left out),
        python, platform, packages (name: version, installed ones only), git (commit, and whether
        files differ from it; None outside a repository).

    Example:
        >>> sorted(provenance())
        ['command', 'git', 'packages', 'platform', 'python', 'utc']
    """
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _without_secrets(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "git": _git(Path.cwd()),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _without_secrets(words: list[str]) -> list[str]:
    """The command line, with "..." for the value of any option whose name says that it is a
    secret.
    """
    kept: list[str] = []
    hide = False
    for word in words:
        option, equals, _ = word.partition("=")
        if hide and not word.startswith("-"):
            word = "..."
        hide = False
        if option.startswith("-") and _SECRET.search(option):
            word, hide = (f"{option}=..." if equals else option), not equals
        kept.append(word)
    return kept


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit.strip(), "changed": bool(_ask_git(folder, "status", "--porcelain"))}


def _ask_git(folder: Path, *words: str) -> str | None:
    try:
        # Without optional locks: asking must never get in the way of the user's own git.
        done = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
