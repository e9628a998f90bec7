"""Every tutorial as a notebook to download: a link under its title, and the file beside the page.

The notebook has the cells that a reader sees. It leaves out those with the tag ``remove-cell``, which check the page's
claims or serve the site alone, and starts with a cell that says what to install.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_INSTALL = """\
# Run this where the library is not installed yet, from a clone of its repository:
# %pip install --quiet '.[cli]' scikit-learn
%matplotlib inline"""
_LINK = (
    "\n\n```{{raw}} html\n"
    '<p class="notebook-link"><a href="{name}" download>Download this page as a notebook</a> for Jupyter or Colab</p>\n'
    "```\n"
)
_FOLDERS = ("start/", "tutorials/")


def setup(app: "Sphinx") -> dict[str, bool]:
    """Add the links when a page is read, and write the notebooks when the site is built."""
    app.connect("source-read", _add_link)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _add_link(app: "Sphinx", docname: str, source: list[str]) -> None:  # noqa: ARG001
    head, text = _split(source[0])
    if docname.startswith(_FOLDERS):
        name = f"{docname.rpartition('/')[2]}.ipynb"
        source[0] = head + re.sub(
            r"^# .+$", lambda title: title[0] + _LINK.format(name=name), text, count=1, flags=re.M
        )


def _write(app: "Sphinx", error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for docname in app.env.found_docs:
        if docname.startswith(_FOLDERS):
            path = Path(app.outdir, docname).with_suffix(".ipynb")
            path.parent.mkdir(parents=True, exist_ok=True)
            jupytext.write(as_notebook(Path(app.env.doc2path(docname)).read_text()), path)


def as_notebook(text: str) -> NotebookNode:
    """The page as a notebook without outputs."""
    notebook = jupytext.reads(text, fmt="md:myst")
    cells = [cell for cell in notebook.cells if "remove-cell" not in cell.metadata.get("tags", [])]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = _plain(cell.source)
    notebook.cells = [new_code_cell(_INSTALL), *cells]
    return notebook


def _plain(text: str) -> str:
    """Markdown for Jupyter: roles become code, and links to pages of the site become their text."""
    text = re.sub(r"\{(?:func|class|meth|mod|attr)\}`[~!]?(?:[^`<]*<)?([\w.]+)>?`", lambda m: f"`{m[1]}`", text)
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", text)


def _split(text: str) -> tuple[str, str]:
    """The YAML head of a page and the rest."""
    parts = re.match(r"---\n.*?\n---\n", text, re.S)
    return (parts[0], text[parts.end() :]) if parts else ("", text)
