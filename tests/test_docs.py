import json
import re
from pathlib import Path

import pytest

import lms_geometry
from lms_geometry import integrations

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", [lms_geometry, integrations])
def test_every_public_name_is_in_the_reference(package):
    directives = re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert set(package.__all__) <= {name.rpartition(".")[2] for name in directives}


def test_code_of_the_readme_gives_what_it_says(capsys):
    printed = []
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S):
        exec(compile(block, "README.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    drop_in, patched = printed
    assert drop_in.count("tensor(") == 2
    assert "swapped" in patched


RESULTS = ROOT / "benchmarks/results"
PAGES = [ROOT / "README.md", ROOT / "docs/reproduction.md"]
COLUMNS = {
    "bilinear": "bilinear",
    "bilinear, pre-blurred": "bilinear, blurred by",
    "pre-blurred": "bilinear, blurred by",
    "multi-scale": "multi-scale (1, 5, 10)",
    "released settings": "released code",
    "the paper's settings": "paper",
    "paper's text": "paper",
    "`training()`": "whitened, sigma 0.3, jitter 0",
}


def recorded(data, transformer, rate, sampler):
    """Test error in a file of results, as "mean ± deviation"."""
    files = "mnist*" if data == "MNIST" else f"{transformer.lower()}_{rate}"
    tables = [json.loads(p.read_text())["table"] for p in RESULTS.glob(f"classification_{files}.json")]
    exact = not sampler.endswith("by")
    (cell,) = [
        row[table["columns"].index(rate)]
        for table in tables
        if rate in table["columns"]
        for row in table["rows"]
        if row[0] == transformer and (row[1] == sampler if exact else row[1].startswith(sampler))
    ]
    return cell


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_errors_of_classification_are_those_recorded(page):
    (table,) = re.findall(r"^(\| \|[^\n]*`training\(\)` \|)\n[-|]+\n((?:\|.*\n)+)", page.read_text(), re.M)
    head, rows = cells(table[0]), [cells(line) for line in table[1].splitlines()]
    compared = 0
    for row in rows:
        if page.name == "README.md":
            data, transformer, rate = "GTSRB", row[0], "1x" if row[1] == "not" else f"{row[1].split()[0]}x"
        else:
            data, transformer, rate = row[0].split(", ")
        for name, cell in zip(head, row, strict=True):
            if name in COLUMNS and cell:
                expected = recorded(data, transformer, rate, COLUMNS[name])
                assert cell.strip("*") == (expected.split()[0] if page.name == "README.md" else expected), (row, name)
                compared += 1
    assert compared >= 4 * len(rows)
