"""Sphinx builds these pages by `make docs`; every warning is an error, and nothing is fetched from the network."""

import re
from typing import Any

from sphinx.application import Sphinx

import star_jax

project = "star_jax"
author = "The star_jax authors"
release = version = star_jax.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"star_jax {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3

# Notebooks are kept with their outputs, which `make notebooks` renews; the tests execute them.
nb_execution_mode = "off"

# Docstrings are in Google's style and write code in single backticks.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False


def offer_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to Markdown outside this folder, which work where the repository is browsed, are to files here."""
    source[0] = re.sub(r"\]\((\.\./[^)]*\.md)\)", r"](path:\1)", source[0])


def setup(app: Sphinx) -> None:
    """Texts of attributes stay as they are: napoleon takes what stands before their first colon for a type."""
    app.connect("source-read", offer_files)
    texts: dict[str, list[str]] = {}

    def keep(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
        if what in ("attribute", "data"):
            texts[name] = list(lines)

    def restore(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
        if name in texts:
            lines[:] = texts.pop(name)

    app.connect("autodoc-process-docstring", keep, priority=100)
    app.connect("autodoc-process-docstring", restore, priority=900)
