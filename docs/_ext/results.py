"""The pages of results: a section for every file in ``benchmarks/results`` that a page names.

A line ``% results: PATTERN ...`` in a page under ``docs/reproduction`` is replaced by the sections of the files whose
names, without ``.json``, match one of the patterns, in this order.
"""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MARKER = re.compile(r"^% results: (.+)$", re.M)
_PAGES = "reproduction/"


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill the pages in whenever they are read, and read them at every build."""
    app.connect("env-get-outdated", lambda _, env, *__: {name for name in env.found_docs if name.startswith(_PAGES)})
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill_in(app: Sphinx, docname: str, source: list[str]) -> None:  # noqa: ARG001
    if docname.startswith(_PAGES):
        up = "../" * (docname.count("/") + 1)
        source[0] = MARKER.sub(lambda line: "\n\n".join(_section(path, up) for path in matching(line[1])), source[0])


def matching(patterns: str) -> list[Path]:
    """The files of results that patterns name, each once."""
    files = sorted(RESULTS.glob("*.json"))
    found = [path for pattern in patterns.split() for path in files if fnmatch(path.stem, pattern)]
    return list(dict.fromkeys(found))


def _section(path: Path, up: str) -> str:
    result = json.loads(path.read_text())
    if "table" not in result:
        return f"`benchmarks/results/{path.name}` has figures without a table."
    parts = [f"## {result['title']}", result["what"], *_pictures(result, up), _table(result["table"])]
    if "notes" in result:
        parts.append(result["notes"].replace("](../benchmarks/", f"]({up}benchmarks/"))
    about = ", ".join(f"{key} {value}" for key, value in result.get("about", {}).items())
    parts.append(
        f"Made by\n\n```console\n$ {result['command']}\n```\n\nand kept in `benchmarks/results/{path.name}`: {about}."
    )
    return "\n\n".join(parts)


def _pictures(result: dict[str, Any], up: str) -> list[str]:
    if "figure" not in result:
        return []
    figure = result["figure"]
    return [f"![{figure['alt']}]({up}benchmarks/results/{figure['file']})"]


def _table(table: dict[str, Any]) -> str:
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
