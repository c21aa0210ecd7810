"""A figure as a file, whole or not at all: .html, .png, .svg, .json or .csv.

Needs   a path; a figure of this package.
Yields  `save`; FigureFile, which refuses a place before the figure is drawn.

    .html  one self-contained page (page.py)
    .png   a picture, two pixels for each of the figure's (image.py)
    .svg   the same as lines and text
    .json  the plotly figure, its caption in layout.meta; plotly.io.read_json reads it
    .csv   the caption's table, units in the header
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import plotly.graph_objects as go

from workbench.errors import UsageError
from workbench.figures.caption import caption_of
from workbench.figures.image import to_image
from workbench.figures.page import to_html
from workbench.figures.wording import plain


def _csv(fig: go.Figure) -> bytes:
    table = caption_of(fig).table
    if not table.columns:
        raise UsageError("this figure has no table; .json holds all its numbers.")
    return table.to_csv().encode("utf-8")


FORMS: dict[str, Callable[[go.Figure], bytes]] = {
    ".html": lambda fig: to_html(fig).encode("utf-8"),
    ".png": lambda fig: to_image(fig, "png"),
    ".svg": lambda fig: to_image(fig, "svg"),
    ".json": lambda fig: str(fig.to_json()).encode("utf-8"),
    ".csv": _csv,
}
"""What each suffix holds."""


class FigureFile:
    """A file for a figure, in a place where one can be. A file that is there is replaced.

    The figure goes into a file beside it that takes its name in the end: a failure leaves what was
    there before, and nothing else.

    Args:
        path: ends in one of FORMS; folders above it are made when it is written.

    Raises:
        UsageError: another suffix, or a place where no file can be.

    Example:
        >>> FigureFile(Path("load.pdf"))
        Traceback (most recent call last):
        workbench.errors.UsageError: load.pdf: expected a file .html, .png, .svg, .json or .csv.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        shown = plain(self.path, 200)
        self._form = self.path.suffix.lower()
        if self._form not in FORMS:
            *first, last = FORMS
            raise UsageError(f"{shown}: expected a file {', '.join(first)} or {last}.")
        try:
            if "\0" in str(path):
                raise ValueError("no name holds a null character")
            if self.path.is_dir():
                raise IsADirectoryError("it is a folder")
            above = next(folder for folder in self.path.absolute().parents if folder.exists())
            if not above.is_dir():
                raise NotADirectoryError(f"{above} is a file")
            if not os.access(self.path if self.path.exists() else above, os.W_OK):
                raise PermissionError("it may not be written")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{shown}: expected a file to write, for example figure.html: {error}."
            ) from None

    def write(self, fig: go.Figure) -> Path:
        """Writes the figure.

        Raises:
            DrawingFailed: a picture was asked for and there is nothing that draws it.
            UsageError: the place no longer takes it.
        """
        # Drawn before anything is touched: a picture that fails makes no folder.
        content = FORMS[self._form](fig)
        beside = None
        try:
            target = self.path.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name[:40]}.{os.getpid()}-{token_hex(4)}")
            with beside.open("xb") as file:
                file.write(content)
            beside.replace(target)
        except OSError as error:
            raise UsageError(f"{plain(self.path, 200)}: could not be written: {error}.") from None
        finally:
            if beside is not None:
                beside.unlink(missing_ok=True)
        return self.path


def save(fig: go.Figure, path: Path | str) -> Path:
    """Writes a figure of this package to a file; its suffix says as what. Whole or not at all.

    Args:
        path: ends in .html, .png, .svg, .json or .csv; a file that is there is replaced.

    Raises:
        UsageError: another suffix, or a place where no file can be.
        DrawingFailed: .png and .svg need kaleido and a browser; the message says what is missing.

    Example:
        >>> save(figures.expert_load(load), "load.png")                     # doctest: +SKIP
        PosixPath('load.png')
    """
    return FigureFile(path).write(fig)
