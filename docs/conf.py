"""The documentation site: `make docs`, or `sphinx-build -W -n docs docs/_build/html`.

Nothing is fetched while it is built or read: no other project's index, no font, no script of
others; formulas are MathML. Notebooks are shown as they are committed and not run.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from building import mathml, pages, prose  # noqa: E402

from workbench import __version__  # noqa: E402

project = "Training-dynamics workbench"
copyright = "the training-dynamics workbench team, Apache-2.0"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated/tables", "building", "Thumbs.db"]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "Training-dynamics workbench"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
add_module_names = False
python_maximum_signature_line_length = 88
nitpicky = True
# Types in signatures are of numpy, xarray, torch, ... whose indexes would have to be fetched, or
# names that only a type checker imports. Everything that a page links to on purpose is checked.
nitpick_ignore_regex = [(r"py:(class|obj|data|exc|attr|meth|mod)", r".*")]
suppress_warnings = ["mystnb.unknown_mime_type", "config.cache", "ref.python"]

_TO_SOURCE = re.compile(r"\[`([^`]+)`\]\(\.\./([\w/.]+\.\w+)\)")


def _links_to_source(app: Any, name: str, source: list[str]) -> None:
    """A link to a file of the repository becomes one to its page, or plain code."""
    if name.startswith("generated/"):
        return

    def page(found: re.Match[str]) -> str:
        if found[2] == "workbench/store/schema.py":
            return f"[`{found[1]}`](generated/reference/record.rst)"
        return f"`{found[1]}`"

    source[0] = _TO_SOURCE.sub(page, source[0])


def _docstrings(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    lines[:] = prose.set_docstring(lines)
    if what in ("property", "attribute", "data"):
        # Napoleon takes what stands before a colon in the first line for a type.
        lines[:0] = ["..", ""]


def setup(app: Any) -> None:
    mathml.setup(app)
    app.connect("builder-inited", lambda app: pages.write_all(Path(app.srcdir)))
    app.connect("source-read", _links_to_source)
    # Before napoleon, which is at 500 and expects reStructuredText.
    app.connect("autodoc-process-docstring", _docstrings, priority=400)
