"""Page: a figure as HTML that runs nothing but our own scripts and asks nobody for anything.

Needs   a figure with its caption.
Yields  `to_html`, one self-contained page; `to_fragment`, `table_html`, `policy` and DRAW for pages
        with more figures.

Names in a figure may be anybody's. They reach the page in two ways: as escaped text, and as JSON
inside a script element of a type that no browser runs. A Content-Security-Policy that names our
scripts by their hash is the second fence.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.figures.caption import Caption, caption_of
from workbench.figures.figure import bare, show_config
from workbench.figures.wording import number


def to_fragment(fig: go.Figure, name: str) -> str:
    """The figure as an HTML fragment for a page that has plotly.js and DRAW in it.

    The numbers stand in a script element of a type that no browser runs; `<`, `>` and `&` are
    written as JSON escapes, so nothing inside can end the element.
    """
    inner = bare(fig)
    numbers = str(inner.to_json())
    for sign in "<>&\u2028\u2029":
        numbers = numbers.replace(sign, f"\\u{ord(sign):04x}")
    said = html.escape(caption_of(fig).sentence)
    height = inner.layout.height
    return (
        f'<div class="plot" id="{html.escape(name)}" role="figure" aria-label="{said}" '
        f'style="height:{height}px"></div>'
        f'<script type="application/json" class="plot-data" data-for="{html.escape(name)}">'
        f"{numbers}</script>"
    )


DRAW = (
    """
"use strict";
(async () => {
  const config = CONFIG;
  for (const data of document.querySelectorAll("script.plot-data")) {
    const place = document.getElementById(data.dataset.for);
    const fig = JSON.parse(data.textContent);
    await Plotly.newPlot(place, fig.data, fig.layout, config);
    place.dataset.drawn = "yes";
  }
  document.documentElement.dataset.drawn = "all";
})();
"""
).replace("CONFIG", json.dumps(show_config()))
"""Draws every fragment of a page, in order; `<html data-drawn="all">` says when done."""


def policy(*scripts: str) -> str:
    """Content-Security-Policy: only these inline scripts run, no request leaves the page."""
    hashes = " ".join(
        "'sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() + "'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def to_html(fig: go.Figure) -> str:
    """The figure as one self-contained HTML page (about 5 MB, plotly.js inside).

    Example:
        >>> import xarray as xr
        >>> from workbench.figures import expert_load
        >>> load = xr.DataArray([[[0.25, 0.75]]], dims=("step", "layer", "expert"))
        >>> page = to_html(expert_load(load))
        >>> page.count("<script"), "http-equiv" in page
        (3, True)
    """
    caption = caption_of(fig)
    plotly = get_plotlyjs()
    title = html.escape(caption.title)
    notes = f'<p class="note">{html.escape(" ".join(caption.notes))}</p>' if caption.notes else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy(plotly, DRAW))}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style></head>
<body><main><figure><h1>{title}</h1>
<figcaption><p>{html.escape(caption.sentence)}</p>{notes}</figcaption>
<div class="wide">{to_fragment(fig, "figure")}</div>
{table_html(caption)}
<p class="note">{html.escape(caption.origin)}</p></figure></main>
<script>{plotly}</script><script>{DRAW}</script></body></html>
"""


def table_html(caption: Caption) -> str:
    """The caption's table behind a summary that a key opens; nothing where it has no rows."""
    if not caption.table.rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in caption.table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell_text(c))}</td>" for c in row) + "</tr>"
        for row in caption.table.rows
    )
    return (
        "<details><summary>The numbers as a table</summary><div class=wide><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def cell_text(value: Any) -> str:
    """A table's cell as text: a dash where there is no value, three decimals of a small float.

    Example:
        >>> cell_text(None), cell_text(-0.00004), cell_text(0.5), cell_text(1.0), cell_text("x")
        ('–', '−0.000', '0.500', '1', 'x')
    """
    if value is None or value != value:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value.is_integer() or abs(value) >= 10:
        return number(value, 4)
    return f"{value:.3f}".replace("-", "−")


_STYLE = """
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',Arial,sans-serif;
color:#222;margin:0}
main{max-width:1180px;margin:0 auto;padding:20px}figure{margin:0}h1{font-size:20px;margin:0 0 6px}
figcaption p{margin:0 0 4px;max-width:90ch}.note{color:#666;font-size:13px}.wide{overflow-x:auto}
.plot{min-width:640px}table{border-collapse:collapse;font-size:13px}
th,td{padding:2px 10px 2px 0;text-align:left;border-bottom:1px solid #e4e4e4}
th,td{overflow-wrap:anywhere}
"""
