"""Sphinx: pages in Markdown (MyST), notebooks as they were executed, and the reference from the docstrings of `probes`
and `models`."""

import re

from docutils import nodes
from sphinx.application import Sphinx

project = "residual-probes"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` executes them, and so do the tests

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
default_role = "code"  # single backticks in docstrings

html_theme = "furo"
html_title = "residual-probes"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_copyright = False


def keep_numbers_whole(_: Sphinx, document: nodes.document) -> None:
    """Break no line of a table within `0.57 ± 0.05` or `[0.41, 0.56]`."""
    for cell in document.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            whole = re.sub(r" (?=±)|(?<=±) |(?<=\d,) (?=[-+\d])", "\N{NO-BREAK SPACE}", text)
            text.parent.replace(text, nodes.Text(whole))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", keep_numbers_whole)
