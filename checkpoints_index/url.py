"""What a URL is, and how one may be printed.

Needs   a text.
Yields  `URL`: what a URL begins with; `without_password`.
"""

from __future__ import annotations

import re

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:::[^/]*)?://")
"""A scheme of two letters or more (one is a drive), or a chain of them: simplecache::s3://."""

_PASSWORD = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")


def without_password(text: str) -> str:
    """A text whose URLs show no password.

    Example:
        >>> without_password("sftp://me:secret@host/run")
        'sftp://me:***@host/run'
    """
    return _PASSWORD.sub(r"\1:***@", text)
