"""Docstrings as they are written in this house, set as reStructuredText.

Needs   plain text: paragraphs, aligned lists of terms, indented formulas, `code`, doctests.
Yields  the same in reStructuredText, nothing of it read as markup by accident.
"""

from __future__ import annotations

import re

SECTIONS = re.compile(
    r"^(Args|Arguments|Returns|Yields|Raises|Example|Examples|Attributes|Note|Notes):$"
)
_TERM = re.compile(r"^(\S(?:.{0,40}?\S)?)\s{2,}(\S.*)$")
_CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.S)
_ARXIV = re.compile(r"arXiv:?\s?(\d{4}\.\d{4,5})")


def inline(text: str) -> str:
    """One paragraph's text: `code` as code, arXiv numbers as links, all else as itself."""
    parts = _CODE.split(text)
    return "".join(_code(part) if i % 2 else _words(part) for i, part in enumerate(parts))


def _code(part: str) -> str:
    inner = part.strip("`")
    return f"\\ ``{inner}``\\ " if inner.strip() == inner else _words(part)


def _words(part: str) -> str:
    escaped = re.sub(r"([\\*|])", r"\\\1", part)
    escaped = re.sub(r"_(?=\W|$)", r"\\_", escaped)
    escaped = escaped.replace("`", r"\`")
    return _ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", escaped)


def paragraphs(text: str) -> list[list[str]]:
    """The text's paragraphs, each as lines without trailing blanks."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


def set_text(text: str) -> list[str]:
    """Plain text as lines of reStructuredText."""
    out: list[str] = []
    blocks = paragraphs(text)
    base = min((_indent(line) for lines in blocks for line in lines), default=0)
    for lines in blocks:
        out += [*_paragraph([line[base:] for line in lines]), ""]
    return out


def _paragraph(lines: list[str]) -> list[str]:
    if lines[0].lstrip().startswith(">>>"):
        return lines
    inner = min(_indent(line) for line in lines)
    if inner and not _is_list([line[inner:] for line in lines]):
        return _literal([line[inner:] for line in lines])  # a formula that stands by itself
    lines = [line[inner:] for line in lines]
    out: list[str] = []
    for kind, group in _groups(lines):
        if out:
            out.append("")
        if kind == "terms":
            out += _terms(group)
        elif kind == "inner":
            terms = _TERM.match(group[0].strip())
            inner = [line[_indent(group[0]) :] for line in group]
            out += _terms(inner) if terms and _is_list(inner) else _literal(group)
        elif all(re.match(r"[-*] ", line) or line.startswith("  ") for line in group):
            out += [f"- {inline(line[2:])}" if line[0] in "-*" else line for line in group]
        else:
            out += _safe_starts(inline("\n".join(group)).split("\n"))
    return out


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _groups(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Runs of lines that belong together: prose, a list of terms, or an indented block."""
    groups: list[tuple[str, list[str]]] = []
    for line in lines:
        last = groups[-1][0] if groups else ""
        if _indent(line):
            kind = "terms" if last == "terms" else "inner"
        else:
            kind = "terms" if _TERM.match(line) else "prose"
        if kind == last:
            groups[-1][1].append(line)
        else:
            groups.append((kind, [line]))
    return groups


def _is_list(lines: list[str]) -> bool:
    return all(_indent(line) or _TERM.match(line) for line in lines)


def _terms(lines: list[str]) -> list[str]:
    """Lines "term   what it is" with indented continuations, as a definition list."""
    items: list[tuple[str, list[str]]] = []
    for line in lines:
        found = None if _indent(line) else _TERM.match(line)
        if found:
            items.append((found[1], [found[2]]))
        elif items:
            items[-1][1].append(line.strip())
    out = []
    for term, words in items:
        out += [_safe_starts([inline(term)])[0], f"    {inline(' '.join(words))}"]
    return out


def _literal(lines: list[str]) -> list[str]:
    return [".. code-block:: text", "", *(f"    {line}" for line in lines)]


def _safe_starts(lines: list[str]) -> list[str]:
    """No line that would begin a list, a comment or a field by accident."""
    return [re.sub(r"^(\d+\.|[-+•>:=.]|\(\w\))(?=\s|\.)", r"\\\1", line) for line in lines]


def set_docstring(lines: list[str]) -> list[str]:
    """A docstring with Google sections: text above them set as prose, and within them every line
    kept where it stands, so that napoleon finds its names.
    """
    start = next((i for i, line in enumerate(lines) if SECTIONS.match(line)), len(lines))
    out = set_text("\n".join(lines[:start]))
    in_doctest = False
    for line in lines[start:]:
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        out.append(line if in_doctest or SECTIONS.match(line) else inline(line))
    return out
