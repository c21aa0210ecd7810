"""A working copy of the notebooks: yours to run and to edit, and never overwritten.

Needs   a folder; the notebooks that came with the package or lie in the clone.
Yields  `make_copies`: what was done with each; `shipped`, where the originals are.

A notebook that was only run is still the original: what counts is the text of its cells. Which
text was copied is written down beside them, so that a newer version can take the place of what
nobody edited.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import workbench
from workbench.errors import UsageError

FIRST = "01_first_look.ipynb"
COPIED = ".workbench-notebooks.json"
"""Of every notebook the digest of the text that was copied."""

Done = Literal["copied", "there", "updated", "kept", "moved"]


@dataclass(frozen=True)
class Copy:
    """What became of one notebook."""

    name: str
    done: Done
    """copied; there already; updated, because nobody had edited it; kept, because somebody had;
    moved, the edited one to `aside`."""
    aside: str = ""

    def __str__(self) -> str:
        return {
            "copied": f"{self.name}: copied",
            "there": f"{self.name}: there already",
            "updated": f"{self.name}: a newer version, in place of one that was not edited",
            "kept": f"{self.name}: edited, and kept; --fresh sets it aside and copies this "
            f"version's",
            "moved": f"{self.name}: copied anew; the edited one is now {self.aside}",
        }[self.done]


def shipped() -> Path:
    """The folder of the originals: inside the installed package, or beside it in a clone.

    Raises:
        UsageError: neither is there.
    """
    package = Path(workbench.__file__).resolve().parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if (folder / FIRST).is_file():
            return folder
    raise UsageError(
        f"no notebooks beside {package}: install training-dynamics-workbench again, or work in a "
        f"clone."
    )


def make_copies(into: Path, *, fresh: bool = False, source: Path | None = None) -> list[Copy]:
    """Copies every notebook that is not there yet.

    Args:
        into: folder, made where it is missing. The folder of the originals itself is left alone.
        fresh: set edited notebooks aside under another name and copy this version's.
        source: folder of the originals; None for `shipped()`.

    Returns:
        What was done with each, by name.

    Raises:
        UsageError: `into` is a file, or cannot be written.
    """
    source = source or shipped()
    try:
        into.mkdir(parents=True, exist_ok=True)
        if into.resolve() == source.resolve():
            return [Copy(original.name, "there") for original in sorted(source.glob("*.ipynb"))]
        known = _read_copied(into / COPIED)
        done = [
            _copy(original, into / original.name, known, fresh)
            for original in sorted(source.glob("*.ipynb"))
        ]
        (into / COPIED).write_text(json.dumps(known, indent=1), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"notebooks into {into}: {error.strerror or error}; name a folder that can be written: "
            f"workbench lab FOLDER."
        ) from None
    return done


def _copy(original: Path, mine: Path, known: dict[str, str], fresh: bool) -> Copy:
    name, new = original.name, digest(original)
    if mine.is_dir():
        raise UsageError(f"{mine} is a folder, expected a notebook or nothing; move it away.")
    if not mine.exists():
        done = Copy(name, "copied")
    elif (old := digest(mine)) == new:
        known[name] = new
        return Copy(name, "there")
    elif old == known.get(name):
        done = Copy(name, "updated")
    elif not fresh:
        return Copy(name, "kept")
    else:
        aside = _free(mine)
        mine.rename(aside)
        done = Copy(name, "moved", aside.name)
    shutil.copyfile(original, mine)
    known[name] = new
    return done


def digest(notebook: Path) -> str:
    """Digest of the text of a notebook's cells, whatever they showed when they ran; of its bytes
    where it is no notebook.
    """
    raw = notebook.read_bytes()
    try:
        cells: Any = json.loads(raw)["cells"]
        said = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        raw = json.dumps(said).encode()
    except (ValueError, KeyError, TypeError):
        pass
    return hashlib.sha256(raw).hexdigest()


def _free(mine: Path) -> Path:
    """A name beside `mine` that nothing has."""
    number = 1
    while (aside := mine.with_name(f"{mine.stem}.yours-{number}{mine.suffix}")).exists():
        number += 1
    return aside


def _read_copied(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in known.items()} if isinstance(known, dict) else {}
