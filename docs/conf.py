"""Sphinx: pages in Markdown (MyST), and the reference from the docstrings of `probes` and `models`."""

project = "residual-probes"
author = "the authors of residual-probes"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
default_role = "code"  # single backticks in docstrings

html_theme = "furo"
html_title = "residual-probes"
