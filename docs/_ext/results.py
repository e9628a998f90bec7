"""The reproduction page: one section for every file in ``benchmarks/results``; docs/reproduction.md has its shape."""

import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_PAGE = "reproduction"
_MARKER = "% results"
_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill the page in whenever it is read, and read it at every build."""
    app.connect("env-get-outdated", lambda *_: {_PAGE})
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill_in(app: Sphinx, docname: str, source: list[str]) -> None:  # noqa: ARG001
    if docname != _PAGE:
        return
    files = sorted(_RESULTS.glob("*.json"))
    contents = {file.name: json.loads(file.read_text()) for file in files}
    sections = [_section(name, result) for name, result in contents.items() if "table" in result]
    raw = [f"`{name}`" for name, result in contents.items() if "table" not in result]
    if raw:
        sections.append(f"## Figures without a table\n\nAlso in `benchmarks/results/`: {', '.join(raw)}.")
    if not sections:
        sections.append("*No results have been recorded yet.*")
    source[0] = source[0].replace(_MARKER, "\n\n".join(sections))


def _section(name: str, result: dict[str, Any]) -> str:
    columns, rows = result["table"]["columns"], result["table"]["rows"]
    table = [columns, ["---"] * len(columns), *rows]
    about = ", ".join(f"{key} {value}" for key, value in result.get("about", {}).items())
    parts = [
        f"## {result['title']}",
        result["what"],
        "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in table),
    ]
    if "figure" in result:
        figure = result["figure"]
        parts.append(f"![{figure['alt']}](../benchmarks/results/{figure['file']})")
    if "notes" in result:
        parts.append(result["notes"])
    parts.append(f"Made by\n\n```\n{result['command']}\n```\n\nand kept in `benchmarks/results/{name}`: {about}.")
    return "\n\n".join(parts)
