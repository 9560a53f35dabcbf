"""The documentation's settings: `make docs` builds it into build/docs."""

import tamis

project = "Tamis"
author = "the Tamis developers"
release = tamis.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"Tamis {release}"
html_show_copyright = False
exclude_patterns: list[str] = []
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_rtype = False
myst_heading_anchors = 3
nitpicky = False
