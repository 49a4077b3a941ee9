"""How Sphinx makes the documentation: ``make docs``."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from pkgutil import resolve_name

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))
from recipe_keys import arguments_of, keys_of, table

project = "fct_infer"
author = "the fct_infer contributors"
copyright = "the fct_infer contributors, Apache-2.0"
version = release = installed_version("fct-infer")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False  # autodoc links NumPy's and private aliases, too
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
napoleon_custom_sections = [("Returns", "params_style")]
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
intersphinx_mapping = {}  # nothing is fetched while building

html_theme = "furo"
html_title = "fct_infer"
html_static_path = []


class RecipeKeys(SphinxDirective):
    """``.. recipe-keys:: module.Class``: a table of the keys of a configuration."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table, to which ``:ref:`` of ``keys-Class`` leads from other tables."""
        kind = resolve_name(self.arguments[0])
        rows = ((f"``{key.name}``", key.type, key.default or "must be given", key.text) for key in keys_of(kind))
        lines = table(("key", "type", "default", "meaning"), rows, "18 22 20 60")
        return self.parse_text_to_nodes("\n".join(lines))


class RecipeModels(SphinxDirective):
    """``.. recipe-models:: module.NAMES``: a table of models or maps by name, with their arguments."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = ((f"``{name}``", arguments_of(make)) for name, make in resolve_name(self.arguments[0]).items())
        return self.parse_text_to_nodes("\n".join(table(("name", "arguments"), rows, "20 80")))


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("recipe-keys", RecipeKeys)
    app.add_directive("recipe-models", RecipeModels)
