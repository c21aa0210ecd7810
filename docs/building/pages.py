"""Writes what is generated into docs/generated, before Sphinx reads its sources.

Needs   the installed packages, and notebooks/ beside docs/.
Yields  generated/{measures,figures,commands,reference,tutorials}/, and tables that pages include.

A file is touched only where its text changed, so that a second build is quick; what no longer
belongs is deleted.
"""

from __future__ import annotations

import json
from pathlib import Path

from building import (
    command_pages,
    figure_pages,
    measure_pages,
    overhead_page,
    reference_pages,
)


def write_all(docs: Path) -> None:
    """All generated pages."""
    wanted = {
        **_under("measures", measure_pages.pages(docs), "rst"),
        **_under("figures", figure_pages.pages(docs), "rst"),
        **_under("commands", command_pages.pages(), "rst"),
        **_under("reference", reference_pages.pages(docs), "rst"),
        **_under("tables", _tables(docs), "md"),
        "reference/record.rst": reference_pages.record_page(),
        "gallery.rst": _titled("Gallery", figure_pages.gallery(docs)),
        **tutorials(docs),
    }
    home = docs / "generated"
    for name, text in wanted.items():
        _write(home / name, text)
    for file in home.rglob("*"):
        if file.is_file() and str(file.relative_to(home)) not in wanted:
            file.unlink()


def tutorials(docs: Path) -> dict[str, str]:
    """The notebooks as they are committed, without outputs: they are run by the tests."""
    found = {}
    for file in sorted((docs.parent / "notebooks").glob("*.ipynb")):
        book = json.loads(file.read_text(encoding="utf-8"))
        found[f"tutorials/{file.name}"] = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    return found


def _tables(docs: Path) -> dict[str, str]:
    parts = reference_pages.files(docs)
    toctrees = {f"files-{part}": _toctree(modules) for part, modules in parts.items()}
    return {
        **{f"measures-{theme}": text for theme, text in measure_pages.tables(docs).items()},
        **{f"names-{package}": text for package, text in reference_pages.tables().items()},
        **{f"overhead-{part}": text for part, text in overhead_page.tables(docs).items()},
        **toctrees,
        "commands": command_pages.table(),
    }


def _toctree(modules: list[str]) -> str:
    names = "\n".join(f"../generated/reference/{module}" for module in modules)
    return f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"


def _titled(title: str, text: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n{text}"


def _under(folder: str, pages: dict[str, str], suffix: str) -> dict[str, str]:
    return {f"{folder}/{name}.{suffix}": text for name, text in pages.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
