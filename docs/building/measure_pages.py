"""A page for every registered probe, and a table of them for every theme.

Needs   the registry, the heads of the probes' files, docs/measures.toml, docs/measured.
Yields  page name -> text; themes -> table.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import probes
from building.headers import Header, header_of
from building.prose import inline, set_text
from building.tables import markdown_table, rst_table
from probes.registry import Probe, find

ALIASES = {
    "onset": "emergence",
    "verdict": "emergence",
    "age-of-acquisition": "emergence",
    "change-point": "emergence",
}
"""What the tables of error rates call parts of a probe."""
READS = {
    "record": "the record: a run or a window of it",
    "checkpoint": "checkpoints, one at a time",
    "pair": "checkpoints, each beside a reference (`--against`)",
    "checkpoints": "all checkpoints at once",
}


def ours() -> list[str]:
    """Names of the probes of this package; those that other packages add have pages of theirs."""
    return [name for name in probes.names() if find(name).module.startswith("probes.")]


def measures(docs: Path) -> dict[str, dict[str, Any]]:
    """docs/measures.toml: probe -> theme, formula, where, range, chance, also."""
    return tomllib.loads((docs / "measures.toml").read_text(encoding="utf-8"))


def pages(docs: Path) -> dict[str, str]:
    """Of every probe, what its page holds."""
    told, rates = measures(docs), _rates(docs)
    return {name: _page(find(name), told[name], rates.get(name, [])) for name in ours()}


def tables(docs: Path) -> dict[str, str]:
    """Of every theme, its probes and what they ask, as a table in Markdown."""
    told = measures(docs)
    themes: dict[str, list[list[str]]] = {}
    for name in told:
        row = [f"[{name}](generated/measures/{name}.rst)", find(name).question, told[name]["range"]]
        themes.setdefault(told[name]["theme"], []).append(row)
    return {
        theme: markdown_table(["measure", "question", "range"], rows) + _toctree(told, theme)
        for theme, rows in themes.items()
    }


def _toctree(told: dict[str, dict[str, Any]], theme: str) -> str:
    names = [name for name, entry in told.items() if entry["theme"] == theme]
    pages = "\n".join(f"generated/measures/{name}" for name in names)
    return f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def _page(probe: Probe, told: dict[str, Any], rates: list[dict[str, Any]]) -> str:
    header = header_of(probe.module)
    out = [f".. _measure-{probe.name}:", "", probe.name, "=" * len(probe.name), ""]
    out += [f"*{inline(probe.question)}*", "", *_formula(told), *_facts(probe, told, header)]
    out += ["When it misleads", "-" * 16, "", *set_text(header.misleads)]
    out += ["How it is asked", "-" * 15, "", *_asking(probe)]
    out += ["What it means, and of what its interval speaks", "-" * 46, "", *set_text(header.rest)]
    for module in told.get("also", ()):
        more = header_of(module)
        title = more.title.partition(":")[0]
        out += [title, "^" * len(title), "", *set_text(more.title)]
        out += [line for part in (more.rest, more.misleads) for line in set_text(part)]
        out += set_text(_capital(more.sources))
    if rates:
        out += ["How often it is right", "-" * 21, "", *_rate_table(rates)]
    out += ["Source", "-" * 6, "", *set_text(_capital(source_of(header, told)))]
    return "\n".join(out) + "\n"


def source_of(header: Header, told: dict[str, Any]) -> str:
    """Whose idea it is: as the head says, or measures.toml where the head does not."""
    return header.sources or str(told.get("source", ""))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _formula(told: dict[str, Any]) -> list[str]:
    out = []
    for line in told["formula"]:
        out += [".. math::", "", f"    {line}", ""]
    return [*out, inline(told["where"]), ""]


def _facts(probe: Probe, told: dict[str, Any], header: Header) -> list[str]:
    facts = {
        "Range": told["range"],
        "Chance": told["chance"],
        "Reads": READS[probe.reads],
        "Needs": header.needs,
        "Yields": header.yields,
    }
    said = [f":{name}: {inline(fact)}" for name, fact in facts.items() if fact]
    return [".. rst-class:: facts", "", *said, ""]


def _asking(probe: Probe) -> list[str]:
    name, against = probe.name, " --against fork" if probe.reads == "pair" else ""
    out = [".. code-block:: sh", "", f"    workbench probe runs/demo {name}{against}"]
    out += ["", ".. code-block:: python", "", "    import probes", "    import workbench as wb", ""]
    out += ['    run = wb.open_run("runs/demo")']
    more = ', against="fork"' if probe.reads == "pair" else ""
    out += [f'    found = probes.examine(run, "{name}"{more})["{name}"]', ""]
    if probe.params:
        told = ", ".join(f"``{param}``" for param in probe.params)
        out += [f"Parameters: {told}.", ""]
    links = ", ".join(f":py:func:`{full}`" for full in _functions(probe))
    return [*out, *([f"Its functions, with all they take and give: {links}.", ""] if links else [])]


def _functions(probe: Probe) -> list[str]:
    """The public functions of its file that `import probes` offers."""
    home = probe.module.removeprefix("probes.")
    there = [name for name, file in probes._FILES.items() if file == home]
    module = importlib.import_module(probe.module)
    return [
        f"probes.{home}.{name}" for name in there if inspect.isfunction(getattr(module, name, None))
    ]


def _rates(docs: Path) -> dict[str, list[dict[str, Any]]]:
    """Error rates on planted truths, by the probe that they are about."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((docs / "measured").glob("rates-*.json")):
        held = json.loads(file.read_text(encoding="utf-8"))
        for row in held["rows"]:
            stem = re.split(r"[,:(]", row["probe"])[0].strip().replace(" ", "-")
            about = {"draws": held["draws"], "date": held["date"], "machine": held["machine"]}
            found.setdefault(ALIASES.get(stem, stem), []).append({**about, **row})
    return found


def _rate_table(rates: list[dict[str, Any]]) -> list[str]:
    first = rates[0]
    told = (
        f"Planted worlds whose answer is known, {first['draws']} draws of each where nothing else "
        f"is said ({first['machine']}, {first['date']})."
    )
    rows = [
        [row["world"], f"{row['probe']}: {row['what']}", f"{row['share']:.3f}", row["wanted"],
         row["note"]]
        for row in rates
    ]  # fmt: skip
    return [inline(told), "", *rst_table(["world", "what", "found", "wanted", "note"], rows), ""]
