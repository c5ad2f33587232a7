"""Sphinx configuration; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import cellsmith

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "cellsmith"
author = "The cellsmith developers"
copyright = f"2026, {author}"
release = version = cellsmith.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "equations",
    "own_members",
    "typed_returns",
]
# Other projects' inventories need the network: a build asks for them with CELLSMITH_INTERSPHINX=1.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
if os.environ.get("CELLSMITH_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
    }

# autosummary writes its pages with the first of these suffixes
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
# files with a leading underscore are parts of other pages
exclude_patterns = ["_build", "_ext", "**/_*.md", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = False

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_title = "cellsmith"
html_theme_options = {
    "repository_url": "https://github.com/scverse/cellsmith",
    "use_repository_button": True,
    "path_to_docs": "docs/",
    "navigation_with_keys": False,
}
html_static_path = ["_static"] if (HERE / "_static").exists() else []


def copy_tutorials() -> None:
    """Bring the executed notebooks, which live in /tutorials, below the source directory."""
    target = HERE / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    source = HERE.parent / "tutorials"
    if source.exists():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))


copy_tutorials()
