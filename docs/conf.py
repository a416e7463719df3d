# SPDX-License-Identifier: LGPL-3.0-or-later
"""The site: Markdown pages, and a reference that is generated from the code."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "truenas_os"
author = "the truenas_os developers"
release = version = metadata.version("truenas-os")

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]

# A link to nothing is a warning, and every warning is an error: see scripts/docs.
nitpicky = True
# What other projects document. Their sites are not asked, so that building needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|contextlib|enum|os|pathlib|struct|threading|types|typing)\b.*"),
    (r"py:class", r"typing_extensions\..*"),
    (r"py:func", r"open"),
    # Type variables, and an alias within a quoted annotation.
    (r"py:class", r"(.*\.(AnyFd|T)|Returned|copy of B)"),
]
manpages_url = "https://man7.org/linux/man-pages/man{section}/{page}.{section}.html"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "truenas_os"
html_copy_source = False
html_domain_indices = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
