"""Token text: the pieces of text behind token ids, made visible.

Needs   token ids; where known, what each stands for.
Yields  TokenText, the ways in which that can be given; `token_names`, one short text an id.

A token is mostly not a word: it begins with a space, is a line break or half a letter. What cannot
be seen is drawn as a sign, and two ids that look alike are told apart by their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from workbench.errors import UsageError
from workbench.figures.wording import plain

TokenText: TypeAlias = "Mapping[int, str] | Sequence[str] | Callable[[int], str] | Any | None"
"""Id -> text: a mapping, a list by id, a function, or a tokenizer with `decode([id])`."""

_SIGNS = {" ": "␣", "\n": "↵", "\r": "⏎", "\t": "⇥", "\u00a0": "⍽", "\u3000": "␣"}
_LONGEST = 18


def token_names(ids: Iterable[int], tokens: TokenText = None, longest: int = _LONGEST) -> list[str]:
    """A text for each id, unescaped, each different; without `tokens` the ids themselves.

    Raises:
        UsageError: `tokens` is none of the ways in which text can be given.

    Example:
        >>> token_names([5, 9, 12], {5: " the", 9: "\\n", 12: " the"})
        ['␣the #5', '↵', '␣the #12']
        >>> token_names([5, 9])
        ['id 5', 'id 9']
    """
    ids = [int(i) for i in ids]
    if tokens is None:
        return [f"id {i}" for i in ids]
    read = _reader(tokens)
    shown = [visible(text, longest) if (text := read(i)) is not None else f"id {i}" for i in ids]
    often = Counter(shown)
    return [
        f"{s} #{i}" if often[s] > 1 or "\ufffd" in s else s for s, i in zip(shown, ids, strict=True)
    ]


def _reader(tokens: Any) -> Callable[[int], str | None]:
    if isinstance(tokens, Mapping):
        return tokens.get
    if hasattr(tokens, "decode") and not isinstance(tokens, (str, bytes)):
        return lambda i: _decoded(tokens, i)
    if callable(tokens):
        return tokens
    if isinstance(tokens, Sequence) and not isinstance(tokens, (str, bytes)):
        return lambda i: str(tokens[i]) if 0 <= i < len(tokens) else None
    raise UsageError(
        f"tokens is {type(tokens).__name__}; expected id -> text as a mapping, a list by id, a "
        "function, or a tokenizer with decode([id])."
    )


def _decoded(tokenizer: Any, i: int) -> str:
    """What a tokenizer makes of one id; of one that it leaves out of texts, the id's own name."""
    text = str(tokenizer.decode([i]))
    for name in ("id_to_token", "convert_ids_to_tokens"):
        if not text and hasattr(tokenizer, name):
            text = str(getattr(tokenizer, name)(i) or "")
    return text


def visible(text: str, longest: int = _LONGEST) -> str:
    """A token's text on one line with its white space as signs, unescaped.

    Example:
        >>> visible(" the"), visible("\\n\\n"), visible(""), visible("\\x00")
        ('␣the', '↵↵', '(empty)', '(U+0000)')
    """
    text = str(text)[: 8 * longest]
    shown = plain("".join(_SIGNS.get(c, c) for c in text), longest)
    if shown:
        return shown
    # Nothing but signs that no font draws: their numbers.
    return f"({' '.join(f'U+{ord(c):04X}' for c in text[:2])})" if text else "(empty)"
