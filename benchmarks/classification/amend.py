"""What a package adds to a result: the command by the package's name, pictures and notes."""

import json
import sys
from pathlib import Path


def amend(path: Path, module: str, **entries: object) -> None:
    """Add entries to a result, and the command line that made it, without the folders of this machine."""
    shown = [f'"{argument}"' if " " in argument else argument for argument in sys.argv[1:]]
    for option in ("--data", "--runs"):
        if option in shown:
            shown[shown.index(option) + 1] = "DIR"
    result = {
        **json.loads(path.read_text()),
        "command": " ".join(["python", "-m", f"benchmarks.{module}", *shown]),
        **entries,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
