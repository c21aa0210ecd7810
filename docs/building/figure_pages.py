"""A page for every figure, and the gallery that shows them by question.

Needs   `questions()` of workbench/app/plots.py; docs/gallery/: pictures of the demo's run, and
        gallery.json with what each says in words. make_gallery.py makes both.
Yields  page name -> text; the gallery.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from building.measure_pages import measures
from building.prose import inline
from workbench import figures
from workbench.app.plots import questions
from workbench.app.probe_plots import DRAWERS

THEMES = {
    "run": "The run as a whole",
    "load": "Load and confidence",
    "stability": "When routing settles",
    "structure": "What experts are for",
    "representation": "What is inside",
    "weights": "What the weights did",
    "capability": "What it can do, and since when",
    "cause": "Why",
}

OF_THE_RUN = {
    "router-load": "load",
    "load-distribution": "load",
    "balance": "load",
    "saturation": "stability",
    "churn": "stability",
    "trajectory": "representation",
    "emergence": "capability",
    "lead-lag": "capability",
    "transplant": "cause",
}
"""Where figures of the whole run stand; those that are not named here open the gallery."""


def told(docs: Path) -> dict[str, dict[str, Any]]:
    """gallery.json: figure -> title, sentence, notes, code."""
    file = docs / "gallery" / "gallery.json"
    held: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["figures"]
    return held


def theme_of(name: str, docs: Path) -> str:
    """The part of the gallery where a figure stands."""
    if name not in DRAWERS:
        return OF_THE_RUN.get(name, "run")
    return str(measures(docs)[DRAWERS[name].probe]["theme"])


def pages(docs: Path) -> dict[str, str]:
    """Of every figure, what its page holds."""
    held = told(docs)
    return {name: _page(name, question, held.get(name)) for name, question in questions()}


def gallery(docs: Path) -> str:
    """The cards of all figures, by theme; those without a picture as lines."""
    held = told(docs)
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, question in questions():
        groups.setdefault(theme_of(name, docs), []).append((name, question))
    out: list[str] = []
    for theme in sorted(groups, key=list(THEMES).index):
        title = THEMES[theme]
        out += [title, "-" * len(title), "", ".. container:: gallery", ""]
        for name, question in groups[theme]:
            out += [f"    {line}".rstrip() for line in _card(name, question, held)]
    names = [name for theme in THEMES for name, _ in groups.get(theme, ())]
    out += [".. toctree::", "    :hidden:", "", *(f"    figures/{name}" for name in names)]
    return "\n".join(out) + "\n"


def _card(name: str, question: str, held: dict[str, dict[str, Any]]) -> list[str]:
    out = [".. container:: card", ""]
    if name in held:
        out += [f"    .. image:: /gallery/{name}.webp", f"        :target: figures/{name}.html"]
        out += [f"        :alt: {_alt(held[name])}", "        :loading: lazy", ""]
    words = f"    :ref:`{_in_role(question)} <figure-{name}>`"
    return [*out, words, "", f"    ``{name}``", ""]


def _alt(entry: dict[str, Any]) -> str:
    return " ".join(f"{entry['title']}. {entry['sentence']}".split())


def _in_role(text: str) -> str:
    return text.replace("\\", "\\\\").replace("`", "").replace("<", "\\<")


def _page(name: str, question: str, entry: dict[str, Any] | None) -> str:
    out = [f".. _figure-{name}:", "", name, "=" * len(name), "", f"*{inline(question)}*", ""]
    if entry:
        out += [f".. image:: /gallery/{name}.webp", f"    :alt: {_alt(entry)}"]
        out += ["", inline(entry["sentence"]), ""]
        out += [f"- {inline(note)}" for note in entry["notes"]]
        out += ["", "*The demo's run; a picture of it, where the figure itself answers the mouse.*"]
    else:
        out += ["The demo's run has nothing to draw here, so there is no picture."]
    out += ["", "Make it", "-------", "", ".. code-block:: sh", ""]
    out += [f"    workbench plot {name} runs/demo -o {name}.html", ""]
    if entry and entry["code"]:
        out += [".. code-block:: python", "", *(f"    {x}" for x in entry["code"].splitlines()), ""]
    return "\n".join([*out, *_links(name, entry), ""])


def _links(name: str, entry: dict[str, Any] | None) -> list[str]:
    out = []
    if name in DRAWERS:
        out += [f"What is drawn: :ref:`measure-{DRAWERS[name].probe}`.", ""]
    drawn = _function(entry["code"]) if entry else ""
    if drawn:
        home = figures._HOMES[drawn]
        out += [f"What it takes: :py:func:`workbench.figures.{home}.{drawn}`.", ""]
    return out


def _function(code: str) -> str:
    """The function of workbench.figures that a figure's code calls."""
    called = [name for name in figures._HOMES if f"figures.{name}(" in code]
    return called[-1] if called else ""
