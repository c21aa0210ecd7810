"""Names and numbers as they stand in a figure: names disarmed, numbers short and with their unit.

Needs   names of runs, arms, tasks and domains, which anybody may have written; numbers.
Yields  text that plotly shows as it is.

Plotly reads a part of HTML in every text it draws (`<b>`, `<a href>`, entities) and fills in
`%{...}`. A name is therefore hostile until `label` has disarmed it. Text for a web page is escaped
there, by its template, not here.
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np

LONGEST = 48
"""Characters of a name that a figure shows; the rest becomes an ellipsis."""


def plain(name: object, longest: int = LONGEST) -> str:
    """A name on one line: control and direction characters dropped, cut to `longest`.

    Example:
        >>> plain("a\\n  b\\u202ec")
        'a bc'
        >>> plain("x" * 60, longest=5)
        'xxxx…'
    """
    # Cut first, so that a name of megabytes costs nothing.
    text = " ".join(str(name)[: 4 * longest + 64].split())
    text = "".join(c for c in text if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})
    return text if len(text) <= longest else text[: longest - 1] + "…"


def label(name: object, longest: int = LONGEST) -> str:
    """A name that plotly shows letter by letter, whatever it holds.

    Example:
        >>> label("<b>%{x}</b> & co")
        '&lt;b&gt;&#37;{x}&lt;/b&gt; &amp; co'
    """
    text = plain(name, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Plotly fills in %{...} before it reads entities, so the entity arrives as a bare percent sign.
    return text.replace("%{", "&#37;{")


def wrapped(sentence: str, width: int = 118) -> str:
    """A sentence broken over lines for plotly, which breaks none itself. Disarms what it is given.

    Example:
        >>> wrapped("one two three", width=8)
        'one two<br>three'
    """
    lines = textwrap.wrap(" ".join(sentence.split()), width, break_long_words=True)
    return "<br>".join(label(line, longest=width) for line in lines)


def number(value: float, digits: int = 2) -> str:
    """`value` with that many significant digits, thousands grouped; "–" where there is none.

    Example:
        >>> number(0.12345), number(1234.5), number(float("nan")), number(1.0), number(-0.5)
        ('0.12', '1,234', '–', '1', '−0.5')
    """
    value = float(value)
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10**digits:
        text = f"{size:,.0f}"
    else:
        text = np.format_float_positional(size, precision=digits, fractional=False, trim="-")
    return "−" + text if value < 0 else text


def signed(value: float, places: int = 2) -> str:
    """A difference with its sign always written.

    Example:
        >>> signed(0.5), signed(-0.123), signed(0.001)
        ('+0.50', '−0.12', '0.00')
    """
    if not math.isfinite(value):
        return "–"
    rounded = f"{abs(value):.{places}f}"
    if float(rounded) == 0:
        return rounded
    return ("+" if value > 0 else "−") + rounded


def count(value: float) -> str:
    """A large count with its SI letter: three digits are enough to read.

    Example:
        >>> count(950), count(4_096_000), count(12e12)
        ('950', '4.1M', '12T')
    """
    if not math.isfinite(value):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if letter == "k" else size)
            return (
                f"{scaled:.0f}{letter}"
                if abs(scaled) >= 10
                else f"{scaled:.1f}{letter}".replace(".0", "")
            )
    return f"{value:,.0f}"


def listed(names: Iterable[str], most: int = 4, longest: int = LONGEST) -> str:
    """Names as a phrase; beyond `most` the rest is counted.

    Example:
        >>> listed(["a", "b", "c"]), listed("abcdef", most=2), listed([])
        ('a, b and c', 'a, b and 4 more', 'none')
    """
    names = [plain(n, longest) for n in names]
    if not names:
        return "none"
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def per_arm(told: Mapping[str, str]) -> str:
    """What holds for every arm, as a phrase; arms are named only where they differ.

    Example:
        >>> per_arm({"continue": "1.5", "code": "2"}), per_arm({"continue": "0", "code": "0"})
        ('1.5 under continue and 2 under code', '0')
    """
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return listed([f"{said} under {plain(arm)}" for arm, said in told.items()], longest=200)


def many(n: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun in the right number.

    Example:
        >>> many(1, "task"), many(0, "task"), many(2, "family", "families")
        ('1 task', 'no task', '2 families')
    """
    if n == 0:
        return f"no {noun}"
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"
