"""What the command line prints, safe for a terminal.

Needs   text that may hold names out of files that anybody wrote.
Yields  `plain`, `echo`: control characters are written out, so that no name can move the cursor,
        colour the screen or hide a line.
"""

from __future__ import annotations

import re

import click

# Line feed and tab are ours. Beside the controls: what turns the direction of writing around.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: object) -> str:
    """`text` with its control characters written out; line feeds and tabs stay.

    Example:
        >>> plain("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return _CONTROLS.sub(lambda c: c[0].encode("unicode_escape").decode(), str(text))


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints `text`, made plain.

    Args:
        err: to stderr.
        nl: with a line feed at its end.
    """
    click.echo(plain(text), err=err, nl=nl)
