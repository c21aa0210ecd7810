"""How far a pickle numbers what it remembers, told without running it.

Needs   the bytes of a pickle.
Yields  `check_memo`: MemoTooLarge for a number that no pickle of that size has a use for.

A pickle keeps objects under numbers of its own choice, and Python's unpickler makes a table twice
as long as the largest: ten bytes can ask for 64 GB. A writer numbers from 0, so that no number
reaches the pickle's size. The operations are walked by one regular expression: a loop over them
takes longer than unpickling does.

Source: the opcodes of the standard library's pickletools.
"""

from __future__ import annotations

import pickletools
import re
from functools import cache


class MemoTooLarge(ValueError):
    """A pickle that asks for more memory than its size accounts for."""


_SLACK = 1 << 16
"""Numbers that cost next to nothing, whatever the pickle's size."""

_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_COUNTED = {
    op.code.encode("latin-1"): _LENGTH_BYTES[op.arg.n]
    for op in pickletools.opcodes
    if op.arg and op.arg.n in _LENGTH_BYTES
}
"""Operations whose data follow their length, and the bytes of the length."""


def check_memo(raw: bytes) -> None:
    """Nothing happens where every number is below the size of the pickle, or small.

    Example:
        >>> import pickle
        >>> check_memo(pickle.dumps({"a": [1, 2]}))
    """
    plain = _plain(max(len(raw), _SLACK) >> 16)
    at, size = 0, len(raw)
    while at < size:
        found = plain.match(raw, at)
        at = found.end() if found else at
        code = raw[at : at + 1]
        if code in _COUNTED:
            begin = at + 1 + _COUNTED[code]
            at = begin + int.from_bytes(raw[at + 1 : begin], "little")
        elif code in (b"p", b"r"):
            end = at + 5 if code == b"r" else raw.find(b"\n", at) + 1 or size
            text = raw[at + 1 : end]
            number = int.from_bytes(text, "little") if code == b"r" else _decimal(text)
            if number >= max(size, _SLACK):
                raise MemoTooLarge(f"a pickle of {size} bytes that numbers an object {number}")
            at = end
        else:
            # The end; or what no unpickler goes beyond.
            return


def _decimal(text: bytes) -> int:
    """The number in a line; one too long to be read is as large as it looks."""
    digits = text.strip().lstrip(b"0") or b"0"
    return int(digits) if len(digits) < 20 and digits.isdigit() else 10**20


@cache
def _plain(high: int) -> re.Pattern[bytes]:
    """Any run of operations that ask for no large number; `high`: the size in units of 65,536."""
    fixed: dict[int, bytes] = {}
    lines: dict[int, bytes] = {}
    for op in pickletools.opcodes:
        code = op.code.encode("latin-1")
        length = op.arg.n if op.arg else 0
        if op.name in ("STOP", "PUT", "LONG_BINPUT"):
            continue
        if length >= 0:
            fixed[length] = fixed.get(length, b"") + re.escape(code)
        elif length == pickletools.UP_TO_NEWLINE:
            number = 2 if op.name in ("GLOBAL", "INST") else 1
            lines[number] = lines.get(number, b"") + re.escape(code)
    texts = b"|".join(rb"\x%02x.{%d}" % (n, n) for n in range(256))
    long_texts = b"|".join(rb"\x%02x\0\0\0.{%d}" % (n, n) for n in range(256))
    ways = [b"[%s].{%d}" % (codes, n) for n, codes in sorted(fixed.items())]
    ways += [rb"\x8c(?:%s)" % texts, rb"X(?:%s)" % long_texts]
    ways += [rb"r..[\x00-\x%02x]\x00" % (min(high, 256) - 1)]
    ways += [rb"[%s](?:[^\n]*\n){%d}" % (codes, n) for n, codes in sorted(lines.items())]
    return re.compile(b"(?:%s)*+" % b"|".join(ways), re.DOTALL)
