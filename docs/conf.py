"""How Sphinx makes the documentation: ``make docs``."""

from importlib.metadata import version as installed_version

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
