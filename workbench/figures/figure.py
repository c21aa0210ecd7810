"""Figure: a plotly figure that cannot be sent to anybody's cloud, with its words around it.

Needs   a drawn figure and its Caption.
Yields  Figure; `show_config`; `finish`, which frames a drawing, and `bare` and `unframed`, which
        take the frame off.

Plotly 7 puts a "Share chart" button beside every chart that uploads it to a company's server unless
the configuration forbids it. `show_config` does, and Figure passes it wherever plotly would show or
write a chart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from workbench.figures.caption import Caption, attach, caption_of
from workbench.figures.template import MUTED, TEMPLATE
from workbench.figures.thinning import note_of
from workbench.figures.wording import label, wrapped

_LINE_PX = 17
_TITLE_PX = 44


def show_config() -> dict[str, Any]:
    """Configuration for plotly.js on every way out: no upload, no logo, grows with the page."""
    return {
        "showSendToCloud": False,
        "plotlyServerURL": "",
        "displaylogo": False,
        "responsive": True,
        "topojsonURL": "",
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
        "toImageButtonOptions": {"format": "png", "scale": 2},
    }


class Figure(go.Figure):
    """A plotly figure whose every own way out carries `show_config`."""

    def show(self, *args: Any, config: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        return super().show(*args, config={**(config or {}), **show_config()}, **kwargs)

    def to_html(self, *args: Any, config: Mapping[str, Any] | None = None, **kwargs: Any) -> str:
        return super().to_html(*args, config={**(config or {}), **show_config()}, **kwargs)

    def write_html(
        self, *args: Any, config: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().write_html(*args, config={**(config or {}), **show_config()}, **kwargs)

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(*args, **{**kwargs, "config": show_config()})
        words = self._words_html()
        return {"text/html": words, **bundle} if bundle and words else bundle

    def _ipython_display_(self) -> None:
        import plotly.io as pio

        # This renderer alone leaves nothing for those who read no plotly: a notebook made into a
        # web page would drop the figure without a word.
        if pio.renderers.default != "plotly_mimetype" or not pio.renderers.render_on_display:
            self.show()
            return
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)

    def _words_html(self) -> str:
        """Title, sentence and table where the drawing itself cannot be shown; "" without them."""
        import html

        from workbench.figures.page import table_html

        if not (isinstance(self.layout.meta, Mapping) and "caption" in self.layout.meta):
            return ""
        caption = caption_of(self)
        said = " ".join([caption.sentence, *caption.notes])
        return (
            f"<figure><figcaption><b>{html.escape(caption.title)}</b><br>{html.escape(said)}"
            "<br><i>Drawn where plotly's figures are read; for a web page set "
            "PLOTLY_RENDERER=plotly_mimetype+notebook before the notebook runs.</i></figcaption>"
            f"{table_html(caption)}</figure>"
        )


def finish(fig: go.Figure, caption: Caption, *, height: int, top: int = 10) -> go.Figure:
    """Frame a drawing: template, title, sentence under it, origin at the foot, caption inside.

    `height` and `top` are the pixels of the panels and of what stands directly over them (legend,
    labels); room for title, sentence and foot is added here, and taken off again by `bare`.
    """
    if thin := (fig.layout.meta or {}).get("thinned"):
        caption = replace(caption, notes=(*caption.notes, note_of(*thin)))
    words = wrapped(" ".join([caption.sentence, *caption.notes]))
    head = _TITLE_PX + _LINE_PX * (words.count("<br>") + 1)
    foot = 20 if caption.origin else 0
    bottom = 52
    fig.update_layout(
        template=TEMPLATE,
        height=height + head + top + bottom + foot,
        margin={"t": head + top, "b": bottom + foot},
        title={"text": label(caption.title, 120), "subtitle": {"text": words}},
    )
    if foot:
        fig.add_annotation(
            text=label(caption.origin, 160),
            name="origin",
            showarrow=False,
            xref="paper",
            yref="paper",
            x=1,
            y=0,
            xanchor="right",
            yanchor="top",
            yshift=-bottom,
            font={"size": 10, "color": MUTED},
        )
    attach(fig, caption)
    fig.layout.meta = {**fig.layout.meta, "head_px": head, "foot_px": foot}
    return fig


def bare(fig: go.Figure) -> go.Figure:
    """The figure without title, sentence and origin, for a page that writes these around it."""
    inner = Figure(fig)
    inner.layout = unframed(fig.layout.to_plotly_json())
    return inner


def unframed(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The layout of a finished figure without title, sentence and origin, as JSON of both."""
    meta, margin = layout["meta"], layout["margin"]
    inner = {key: value for key, value in layout.items() if key not in ("title", "meta")}
    return inner | {
        "annotations": [a for a in layout.get("annotations", ()) if a.get("name") != "origin"],
        "height": layout["height"] - meta["head_px"] - meta["foot_px"],
        "margin": {
            **margin, "t": margin["t"] - meta["head_px"], "b": margin["b"] - meta["foot_px"]
        },
    }  # fmt: skip
