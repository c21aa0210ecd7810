"""Pictures for the gallery: every figure that `workbench plot` knows, drawn from a finished run.

    python docs/make_gallery.py runs/demo

Needs   a finished run of the demo (results that are missing are computed and kept in it); kaleido
        and a chromium; pillow.
Yields  docs/gallery/<figure>.webp, each under 20 kB, and docs/gallery/gallery.json: what each says.

A figure that the run has nothing for is named on the way and has no picture. Pictures of figures
that are no more are deleted.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image

from workbench import figures, open_run
from workbench.app.plots import draw, questions
from workbench.app.probe_plots import DRAWERS
from workbench.app.study import Study
from workbench.errors import WorkbenchError

GALLERY = Path(__file__).parent / "gallery"
WIDTH_PX, MOST_BYTES, QUALITY = 1000, 19_900, 45
MOST_HEIGHT_PX = 1400
"""Taller figures are cut off below: a card shows how it begins."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("names", nargs="*", help="these alone; the others stay as they are")
    asked = parser.parse_args()
    run = open_run(asked.run)
    last = run.branches[-1]
    pio.defaults.mathjax = None
    GALLERY.mkdir(exist_ok=True)
    file = GALLERY / "gallery.json"
    held = json.loads(file.read_text())["figures"] if file.exists() else {}
    known = dict(questions())
    for name in asked.names or known:
        study = Study(run.arm(last) if name in DRAWERS else run, load_models=True)
        try:
            fig = draw(name, study)
            size = _save(fig, GALLERY / f"{name}.webp")
            held[name] = _told(fig, run.path)
            sys.stderr.write(f"{name}: {size} bytes\n")
        except WorkbenchError as error:
            held.pop(name, None)
            sys.stderr.write(f"{name}: no picture: {error}\n")
    for picture in GALLERY.glob("*.webp"):
        if picture.stem not in known or picture.stem not in held:
            picture.unlink()
    kept = {name: held[name] for name in known if name in held}
    about = {"run": "demo", "figures": kept}
    file.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _told(fig: go.Figure, run: Path) -> dict[str, Any]:
    """What a figure says of itself; the run's folder on this machine is no part of it."""
    caption = figures.caption_of(fig)
    return {
        "title": caption.title,
        "sentence": caption.sentence,
        "notes": list(caption.notes),
        "code": caption.code.replace(str(run), "runs/demo"),
    }


def _save(fig: go.Figure, path: Path) -> int:
    """The largest picture that stays under the limit; returns its bytes."""
    height = int(fig.layout.height or 500)
    whole = Image.open(io.BytesIO(fig.to_image("png", width=WIDTH_PX, height=height)))
    whole = whole.convert("RGB").crop((0, 0, WIDTH_PX, min(height, MOST_HEIGHT_PX)))
    for width in range(WIDTH_PX, 200, -20):
        small = whole.resize((width, round(whole.height * width / WIDTH_PX)), Image.LANCZOS)
        out = io.BytesIO()
        # Lossy, but a third of a PNG's size: the smoothed letters of a chart do not compress there.
        small.save(out, "WEBP", quality=QUALITY, method=6)
        if out.tell() <= MOST_BYTES:
            path.write_bytes(out.getvalue())
            return out.tell()
    raise ValueError(f"{path.name}: no size is under {MOST_BYTES} bytes")


if __name__ == "__main__":
    sys.exit(main())
