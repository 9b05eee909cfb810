"""Sphinx configuration."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util.math import get_node_equation_number

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
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"  # "fit()", not "Residualizer.fit()": the list beside the page is narrow
# Overrides of what torch and scikit-learn call on their own have no docstring.
autodoc_inherit_docstrings = False
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = False

# Formulas are MathML, which every browser shows by itself: pages ask for nothing, and read well offline.
html_math_renderer = "mathml"
# Prompts and output are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = "residmix"
html_theme_options = {
    "show_prev_next": False,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
}


# What estimators call on one another, or keep for later parts of a fit; users have other names for all of it.
_INSIDE = {
    "applied_",
    "effects_",
    "fit_",
    "fit_to",
    "moments_",
    "open_rows",
    "rows_of",
    "saved_degrees",
    "x_is_features",
}


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out of a class's page what it has from torch's or scikit-learn's classes, and what isn't for users."""
    if name in _INSIDE:
        return True
    function = getattr(member, "fget", getattr(member, "__func__", member))
    return None if str(getattr(function, "__module__", None)).startswith("residmix") else True


def _mathml(tex: str, **kind: bool) -> str:
    try:
        return latex2mathml.tex2mathml(tex, **kind)
    except MathError as error:
        raise SystemExit(f"this formula has no MathML: {tex}: {error}") from error


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    number = f"({get_node_equation_number(self, node)})" if node["number"] else ""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    self.body.append(f"{_mathml(node.astext(), as_block=True)}{number}</div>")
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("autodoc-skip-member", _skip)
