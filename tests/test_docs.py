import json
import re
import warnings
from fnmatch import fnmatch
from pathlib import Path

import pytest
from settings import KORNIA_TAKES_FLAG

import lms_geometry
from lms_geometry import integrations

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", [lms_geometry, integrations])
def test_every_public_name_is_in_the_reference(package):
    listed = re.findall(r"^   ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert set(package.__all__) <= {name.rpartition(".")[2] for name in listed}


DOCS = ROOT / "docs"
# Every page with code, and the README, which is read first.
WITH_CODE = [
    path
    for path in (ROOT / "README.md", *sorted(DOCS.glob("**/*.md")))
    if re.search(r"^```(?:python|\{code-cell\})", path.read_text(), re.M) and "_build" not in path.parts
]
# These train networks or align dozens of images.
SLOW = {"stn_digits.md", "registration.md", "roi_align.md"}
# What is written in a page, and what stands for it in the test: a sixth of the training.
SHORTER = {"stn_digits.md": {"steps=600": "steps=100", "range(100, 601, 100)": "range(100, 101, 100)"}}


def visible_code(page):
    """The blocks of a page that a reader can copy, in order."""
    blocks = re.findall(r"^```(python|\{code-cell\} python)\n(.*?)^```$", page.read_text(), re.M | re.S)
    for _, block in blocks:
        head, _, code = block.partition("---\n")[2].partition("---\n") if block.startswith("---") else ("", "", block)
        options = head + "".join(re.findall(r"^:.*$", code, re.M))
        if "remove-" not in options:
            yield re.sub(r"^:.*\n", "", code, flags=re.M)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ()) for page in WITH_CODE],
    ids=lambda page: page.name,
)
def test_code_runs_when_it_is_copied_into_a_file(page, tmp_path, monkeypatch, capsys):
    code = "\n".join(visible_code(page))
    if not KORNIA_TAKES_FLAG and ("linearize_lafs" in code or "normalize_homography" in code):
        pytest.skip("kornia before 0.9 lacks what this page calls")
    for written, shorter in SHORTER.get(page.name, {}).items():
        assert written in code
        code = code.replace(written, shorter)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the commands that a page runs
    monkeypatch.syspath_prepend(page.parent)  # where the model lies that stands for somebody's code
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
    assert "print(" not in code or capsys.readouterr().out


def test_the_readme_is_short_and_its_pictures_are_there():
    readme = (ROOT / "README.md").read_text()
    prose = re.sub(r"^```.*?^```$", "", readme, flags=re.M | re.S)
    prose = re.sub(r"^    .*$|\]\([^)]*\)", "", prose, flags=re.M)
    assert 600 <= len(prose.split()) <= 900
    pictures = [ROOT / path for path in re.findall(r"!\[[^]]*\]\((docs/[^)]+)\)", readme)]
    assert pictures
    assert all(0 < picture.stat().st_size < 1e6 for picture in pictures)
    links = re.findall(r"\]\(((?!http)[^)#]+)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_result_is_on_a_page():
    markers = re.findall(
        r"^% results: (.+)$", "\n".join(page.read_text() for page in DOCS.glob("reproduction/**/*.md")), re.M
    )
    patterns = " ".join(markers).split()
    names = [path.stem for path in RESULTS.glob("*.json")]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []


def test_a_notebook_has_what_a_reader_sees(monkeypatch):
    pytest.importorskip("jupytext")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    from notebooks import as_notebook

    page = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n# T\n\n{func}`~a.b` and [c](d.md)\n\n"
    page += "```{code-cell} python\nx = 1\n```\n\n```{code-cell} python\n:tags: [remove-cell]\nassert x\n```\n"
    cells = as_notebook(page).cells
    assert [cell.cell_type for cell in cells] == ["code", "markdown", "code"]
    assert cells[1].source == "# T\n\n`a.b` and c"
    assert cells[2].source == "x = 1"


RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/reproduction/classification.md"
# The heads of the page's tables of classification, and how the samplers are called in the results, or begin.
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


def test_errors_of_classification_are_those_recorded():
    tables = re.findall(r"^(\|.*\|)\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(), re.M)
    compared = 0
    for head, body in tables:
        for row in map(cells, body.splitlines()):
            named = [(name, cell) for name, cell in zip(cells(head), row, strict=True) if name in COLUMNS and cell]
            if len(named) < 2:
                continue  # it is of something else
            data, transformer, rate = row[0].split(", ")
            for name, cell in named:
                assert cell.strip("*") == recorded(data, transformer, rate, COLUMNS[name]), (row, name)
                compared += 1
    assert compared >= 12


def test_numbers_of_the_readme_are_those_recorded():
    readme = (ROOT / "README.md").read_text()

    def table(name):
        return json.loads((RESULTS / f"{name}.json").read_text())["table"]

    loop = {row[0]: row for row in table("drop_in")["rows"]}
    found = [loop[name][1].split()[0] for name in list(loop)[:4]]
    sentence = "kornia's function found {}, 3 x 3 supersampling {}, a mipmap {}, and `warp_affine_linearized` all\n{}"
    assert sentence.format(*found) in readme
    ours, kornias = (float(loop[name][-1]) for name in ("warp_affine_linearized", "kornia's warp_affine"))
    assert f"at {ours / kornias:.1f} times kornia's time" in readme

    cosines = {}
    for rate, sampler, *entries in table("pixel_gradient")["rows"]:
        cosines[rate, sampler] = min(float(cosine) for entry in entries for cosine in entry.split(" / "))
    assert f"falls to {cosines['8x', 'bilinear'] - 1e-9:.2f}; ours is at least {cosines['8x', 'default']}" in readme
    assert f"gradient at 8x {cosines['8x', 'supersampled 3 x 3']:.2f}" in readme

    def by_method(name):
        columns, rows = table(name)["columns"], table(name)["rows"]
        return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}

    pairs = by_method("registration_pairs")
    ours, sift = pairs["register"], pairs["OpenCV SIFT and MAGSAC"]
    assert f"{sift['CPU s']} s a pair of photographs, ours {ours['CPU s']} s" in readme
    assert f"in {sift['1 %']} / {sift['0.3 %']}, ours in {ours['1 %']} / {ours['0.3 %']}" in readme
    ecc = pairs["OpenCV ECC, pyramid"]
    assert f"{ecc['CPU s']} s a pair of photographs; a close start" in readme
    assert f"the same 15 pairs: {ecc['1 %']} / {ecc['0.3 %']}" in readme
    phase = by_method("registration")["phase correlation"]
    assert f"{phase['ms']} ms; translations: finds {phase['4x, translations']}" in readme

    digits = {row[0]: [cell.split()[0] for cell in row[1:]] for row in table("digits")["rows"]}
    ours, peer = digits["linearized, as it comes"], digits["supersampled, 3 x 3"]
    assert f"digits in grain at 8x: error {peer[0]} % and {peer[1]} %, ours {ours[0]} % and {ours[1]} %" in readme
    ratios = [float(cell.split()[0]) for row in table("speed_warps")["rows"] for cell in row[1:]]
    assert f"a warp takes {min(ratios)} to {max(ratios)} times as long as kornia's" in readme
    mipmap = digits["bilinear, on a mipmap"]
    assert f"digits: {mipmap[0]} % and {mipmap[1]} %, level with ours" in readme
