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


README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", README, re.M | re.S))
def test_code_of_the_readme_runs_by_itself_and_prints_where_it_says_so(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert bool(capsys.readouterr().out) == ("print(" in block)


RESULTS = ROOT / "benchmarks/results"
PAGES = [ROOT / "README.md", ROOT / "docs/reproduction.md"]
# The heads of the pages' tables of classification, and how the samplers are called in the results, or begin.
COLUMNS = {
    "bilinear": "bilinear",
    "bilinear, pre-blurred": "bilinear, blurred by",
    "pre-blurred": "bilinear, blurred by",
    "multi-scale": "multi-scale (1, 5, 10)",
    "released settings": "released code",
    "the paper's settings": "paper",
    "paper's text": "paper",
    "whitened, masked": "whitened, sigma 0.3, jitter 0",
    "supersampled": "supersampled 3 x 3",
    "mipmap": "mipmap",
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
    tables = re.findall(r"^(\|.*\|)\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(), re.M)
    compared = 0
    for head, body in tables:
        for row in map(cells, body.splitlines()):
            named = [(name, cell) for name, cell in zip(cells(head), row, strict=True) if name in COLUMNS and cell]
            if len(named) < 2:
                continue  # it is of something else
            if page.name == "README.md":
                data, transformer, rate = "GTSRB", row[0], "1x" if row[1] == "not" else f"{row[1].split()[0]}x"
            else:
                data, transformer, rate = row[0].split(", ")
            for name, cell in named:
                expected = recorded(data, transformer, rate, COLUMNS[name])
                assert cell.strip("*") == (expected.split()[0] if page.name == "README.md" else expected), (row, name)
                compared += 1
    assert compared >= 12
