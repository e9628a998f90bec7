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
