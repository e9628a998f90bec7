"""What the command prints: text that a file's name cannot turn into orders to the terminal."""

import argparse
from typing import NoReturn


def printable(text: str) -> str:
    """The text with each control character spelled out: a line stays one, and the terminal gets no orders."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Print a line above the progress bar, if there is one."""
    from tqdm import tqdm

    tqdm.write(printable(text))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are printable."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        super().error(printable(message))
