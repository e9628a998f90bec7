"""Settings of the documentation site: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import os
import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# The pages that are run inherit this. They work on small tensors, over which several threads cost more than they bring,
# and their figures have the site's colours.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MATPLOTLIBRC"] = str(Path(__file__).parent / "figure.mplstyle")

project = "lms_geometry"
author = "The lms_geometry developers"
copyright = author
release = metadata.version("lms_geometry")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "elsewhere",
    "mathml",
    "notebooks",
    "results",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
autosummary_ignore_module_all = False
nitpicky = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_show_tb = True  # a cell that fails is a warning, and the build runs with warnings as errors
nb_execution_timeout = 1800  # seconds a cell; the slowest takes half a minute of one core that is free
nb_output_stderr = "remove-warn"  # what a page writes to stderr is a warning, and warnings fail the build
nb_merge_streams = True
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = ["Convention"]
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_show_search_summary = False  # a page opened from a file may not read the others
html_title = f"lms_geometry {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
pygments_dark_style = "github-dark"  # the theme's own underlines imports as if they were links


def setup(app: Sphinx) -> None:
    """Leave out the fields of named tuples, of which Python says no more than their number."""
    app.connect("autodoc-skip-member", lambda *event: (event[3].__doc__ or "").startswith("Alias for field") or None)
