"""A card: what an object is, as a small piece of HTML for a notebook.

Needs   words that anybody may have written.
Yields  `card` with its `rows`, `table` and `section`; `safe`, text that HTML shows as it is.

Colours are those of the page that it stands in, light or dark; there is no script. Where a viewer
takes the style away (a notebook that is not trusted) the text still reads in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from workbench.figures.wording import LONGEST, plain

_STYLE = """
.wb-card{max-width:62em;margin:.4em 0;padding:.5em .8em;border:1px solid rgba(128,128,128,.45);
border-radius:4px;font-size:13px;line-height:1.45;color:inherit}
.wb-card>header{padding-bottom:.35em;margin-bottom:.35em;
border-bottom:1px solid rgba(128,128,128,.45)}
.wb-card .wb-soft{opacity:.75}
.wb-card dl.wb-rows{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1.2em;margin:.2em 0}
.wb-card dl.wb-rows dt{margin:0;padding:0;font-weight:normal;opacity:.75;float:none;width:auto}
.wb-card dl.wb-rows dd{margin:0;padding:0;overflow-wrap:anywhere}
.wb-card details{margin:.15em 0}
.wb-card summary{cursor:pointer;overflow-wrap:anywhere}
.wb-card .wb-wide{overflow-x:auto}
.wb-card table.wb-table{border-collapse:collapse;margin:.2em 0 .5em 1.1em;font-size:12px;
table-layout:auto}
.wb-card table.wb-table tr:nth-child(n){background:none}
.wb-card table.wb-table tr th,.wb-card table.wb-table tr td{text-align:left;vertical-align:top;
padding:.1em 1.2em .1em 0;border:0;max-width:34em;white-space:normal;overflow-wrap:break-word}
.wb-card table.wb-table tr th{font-weight:normal;opacity:.75}
.wb-card table.wb-table tr .wb-count{text-align:right;white-space:nowrap}
.wb-card svg.wb-picture{display:block;max-width:100%;height:auto;margin:.3em 0}
""".replace("\n", "")


def safe(words: object, longest: int = LONGEST) -> str:
    """Words on one line, cut to `longest`, that HTML shows letter by letter.

    Example:
        >>> safe("<b>me & you</b>")
        '&lt;b&gt;me &amp; you&lt;/b&gt;'
    """
    return escape(plain(words, longest), quote=True)


def card(title: str, note: str, *parts: str) -> str:
    """One object.

    Args:
        title: HTML, what it is and its name.
        note: HTML, the rest of the first line; "" for none.
        parts: HTML below it.

    Example:
        >>> card("<b>Run</b>", "here", rows({"steps": "1 to 9"})).count("<dt>")
        1
    """
    soft = f' <span class="wb-soft">{note}</span>' if note else ""
    return (
        f'<div class="wb-card"><style>{_STYLE}</style><header>{title}{soft}</header>'
        f"{''.join(parts)}</div>"
    )


def rows(named: Mapping[str, str]) -> str:
    """Name and value, a line each; names without a value are left out.

    Args:
        named: our own name -> HTML.
    """
    lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in named.items() if value)
    return f'<dl class="wb-rows">{lines}</dl>' if lines else ""


def table(heads: Sequence[str], lines: Iterable[Sequence[str]], counts: Sequence[str] = ()) -> str:
    """A table.

    Args:
        heads: our own names of the columns.
        lines: HTML, a cell a column.
        counts: the columns that hold numbers, set flush right.

    Example:
        >>> table(["step"], [["1"]], counts=["step"]).count("wb-count")
        2
    """
    style = [' class="wb-count"' if head in counts else "" for head in heads]
    top = "".join(f'<th scope="col"{s}>{h}</th>' for h, s in zip(heads, style, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{s}>{c}</td>" for c, s in zip(line, style, strict=True)) + "</tr>"
        for line in lines
    )
    return (
        f'<div class="wb-wide"><table class="wb-table"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def section(head: str, inside: str) -> str:
    """What is opened by a click.

    Args:
        head: HTML of its one line.
        inside: HTML.
    """
    return f"<details><summary>{head}</summary>{inside}</details>"
