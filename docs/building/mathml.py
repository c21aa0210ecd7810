"""Formulas as MathML, which browsers draw by themselves: no script, nothing fetched.

Needs   LaTeX in `math` roles and directives.
Yields  the renderer "mathml" for Sphinx's `html_math_renderer`.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None),
                               block_renderers=(_block, None))  # fmt: skip
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    drawn = tex2mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="formula">{drawn}</div>\n')
    raise nodes.SkipNode
