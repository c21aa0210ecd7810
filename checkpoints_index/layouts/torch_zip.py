"""What a file of torch.save tells without being unpickled: whether it is whole, and some numbers.

Needs   a file that torch.save wrote as a zip (torch 1.6 and later).
Yields  TorchZip: `mentions` of a text, `number` that stands beside a key.

Its pickle is searched as bytes: nothing in it is run, and no object made of it.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

PICKLE_AT_MOST = 1 << 28
"""Bytes of the pickle that are searched; tensors lie outside it."""

# A key, its place in the memo (BINPUT, LONG_BINPUT or MEMOIZE), and a whole number of 1, 2 or 4
# bytes, or of as many as the byte before it says.
_NUMBER = rb"(?:q.|r.{4}|\x94)?(?:K(.)|M(..)|J(.{4})|\x8a[\x01-\x08](.{1,8}))"


class TorchZip:
    """The outside of a file of torch.save.

    Raises:
        ValueError: not a whole zip with a pickle in it; its text says what is wrong.
    """

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
                if not names or names[0].file_size > PICKLE_AT_MOST:
                    raise ValueError("no pickle of torch.save in it")
                if names[0].compress_type != zipfile.ZIP_STORED:
                    raise ValueError("compressed, which torch.save does not do")
                self._pickle = archive.read(names[0])
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"not a whole file of torch.save ({type(error).__name__})") from None

    def mentions(self, text: str) -> bool:
        """Whether the pickle holds this text."""
        return text.encode() in self._pickle

    def number(self, key: str) -> int | None:
        """The whole number that follows the first mention of `key`; None where none does."""
        match = re.search(re.escape(key.encode()) + _NUMBER, self._pickle, re.DOTALL)
        if match is None:
            return None
        raw = next(group for group in match.groups() if group is not None)
        if match[4] is not None:
            raw = raw[: self._pickle[match.start(4) - 1]]
        number = int.from_bytes(raw, "little", signed=match[3] is not None or match[4] is not None)
        return number if 0 <= number < 2**63 else None
