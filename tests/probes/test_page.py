"""docs/probes.md says what the registry and the measured rates say.

python tests/probes/test_page.py        writes both tables anew
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from probes.registry import find, names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "probes.md"
RATES = sorted((ROOT / "docs" / "measured").glob("rates-*.json"))


def probe_table():
    """A line a probe: its name, what it reads, its question, its parameters."""
    lines = ["| probe | reads | question | parameters |", "|---|---|---|---|"]
    for name in names():
        known = find(name)
        if not known.function.__module__.startswith("probes."):
            continue
        takes = ", ".join(p for p in known.params if p not in ("seed", "n_boot"))
        lines.append(f"| `{name}` | {known.reads} | {known.question} | {takes} |")
    return "\n".join(lines)


def rates_table():
    """The measured rates of every area."""
    parts = []
    for path in RATES:
        said = json.loads(path.read_text())
        area = path.stem.removeprefix("rates-")
        parts.append(f"**{area}** ({said['draws']} draws; {said['machine']}, {said['date']})\n")
        parts.append("| world | probe | what | found | wanted | note |\n|---|---|---|---|---|---|")
        for row in said["rows"]:
            found = "–" if row["share"] is None else f"{row['share']:.3f}"
            cells = [row["world"], row["probe"], row["what"], found, row["wanted"], row["note"]]
            parts.append("| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |")
        parts[-1] += "\n"
    return "\n".join(parts).rstrip()


def written(page):
    for mark, table in (("probes", probe_table()), ("rates", rates_table())):
        fence = f"<!-- {mark} -->"
        page = re.sub(f"{fence}.*{fence}", lambda _: f"{fence}\n{table}\n{fence}", page, flags=re.S)  # noqa: B023
    return page


def test_the_page_lists_every_probe_and_every_measured_rate():
    said = PAGE.read_text()
    assert written(said) == said, "python tests/probes/test_page.py writes the tables anew"


def within(share, wanted):
    """Whether a rate is what was wanted; None where the row states no bound."""
    bounds = [float(number) for number in re.findall(r"\d*\.?\d+", wanted)]
    if "at most" in wanted:
        return share <= bounds[0] + 1e-9
    if "at least" in wanted:
        return share >= bounds[0] - 1e-9
    return bounds[0] - 1e-9 <= share <= bounds[1] + 1e-9 if len(bounds) == 2 else None


def test_a_rate_outside_what_was_wanted_says_why():
    silent = [
        f"{path.stem}: {row['world']}, {row['probe']}: {row['what']} {row['share']}"
        for path in RATES
        for row in json.loads(path.read_text())["rows"]
        if row["share"] is not None and within(row["share"], row["wanted"]) is False
        if not row["note"].strip()
    ]
    assert not silent, "\n".join(silent)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
