"""Sphinx configuration."""

from typing import Any

import residmix

project = "residmix"
author = "the residmix developers"
copyright = "2026, the residmix developers"
version = release = residmix.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
autodoc_typehints = "none"
# Overrides of what torch and scikit-learn call on their own have no docstring.
autodoc_inherit_docstrings = False
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_title = "residmix"
html_theme_options = {
    "show_prev_next": False,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
}


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out of a class's page what it has from torch's or scikit-learn's classes."""
    function = getattr(member, "fget", getattr(member, "__func__", member))
    return None if str(getattr(function, "__module__", None)).startswith("residmix") else True


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", _skip)
