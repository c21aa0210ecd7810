"""The reference: a page for every public file, from its docstrings, and one for the record.

Needs   docs/reference_files.toml: which files are public, in which part; the schema of the record.
Yields  page name -> text; tables of the names that a package offers.
"""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from types import ModuleType

import probes
import workbench
from building.prose import set_text
from building.tables import markdown_table, rst_table
from workbench import figures
from workbench.store import schema


def files(docs: Path) -> dict[str, list[str]]:
    """Part of the reference -> modules, in order."""
    told = tomllib.loads((docs / "reference_files.toml").read_text(encoding="utf-8"))
    parts = {part: list(modules) for part, modules in told["files"].items()}
    parts["probes"] = [f"probes.{file}" for file in dict.fromkeys(probes._FILES.values())]
    parts["figures"] = [f"workbench.figures.{f}" for f in dict.fromkeys(figures._HOMES.values())]
    return parts


def pages(docs: Path) -> dict[str, str]:
    """Of every public file, what its page holds."""
    return {module: _page(module) for part in files(docs).values() for module in part}


def _page(module: str) -> str:
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", "    :members:"]
    return "\n".join([*lines, "    :member-order: bysource", ""])


def tables() -> dict[str, str]:
    """What `import workbench`, `workbench.figures` and `probes` offer, as tables in Markdown."""
    return {
        "workbench": _names(workbench, workbench._HOMES, "wb"),
        "figures": _names(figures, {n: f"workbench.figures.{f}" for n, f in figures._HOMES.items()},
                          "wb.figures"),
        "probes": _names(probes, {n: f"probes.{f}" for n, f in probes._FILES.items()}, "probes"),
    }  # fmt: skip


def _names(package: ModuleType, homes: dict[str, str], shown: str) -> str:
    rows = []
    for name, home in homes.items():
        value = getattr(package, name)
        if isinstance(value, ModuleType):
            page = (
                "../generated/gallery.rst"
                if name == "figures"
                else f"../generated/reference/{home}.rst"
            )
            link = f"[`{shown}.{name}`]({page})"
        else:
            role = "class" if isinstance(value, type) else "func"
            link = f"{{py:{role}}}`{shown}.{name} <{home}.{value.__name__}>`"
        told = (value.__doc__ or "").strip().split("\n\n")[0]
        rows.append([link, " ".join(told.split()).replace("<", "&lt;")])
    return markdown_table(["name", "what it is"], rows)


def record_page() -> str:
    """Every variable of the record, with its dims, dtype, unit and meaning."""
    out = [".. _record:", "", "The record, variable by variable", "=" * 32, ""]
    module = importlib.import_module("workbench.store.schema")
    out += set_text("\n\n".join((module.__doc__ or "").split("\n\n")[2:]))
    for group, variables in schema.SCHEMA.items():
        out += [group, "-" * len(group), ""]
        rows = [
            [f"`{name}`", ", ".join(v.dims), v.dtype, v.units, v.meaning]
            for name, v in variables.items()
        ]
        out += rst_table(["variable", "dims", "dtype", "unit", "meaning"], rows)
    return "\n".join(out)
