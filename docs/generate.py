"""Writes the pages that follow from the code, settings.md and commands.md: `python docs/generate.py`."""

import subprocess
import sys
import textwrap
from pathlib import Path

from halfback.algorithms import algorithms
from halfback.codecs import CODECS
from halfback.config.keys import Key, keys, options_of
from halfback.controllers import controllers

DOCS = Path(__file__).resolve().parent
BEGIN = "<!-- Made by docs/generate.py; change the code's own words instead. -->\n"


def settings() -> str:
    """The page of all settings."""
    parts = [
        f"{BEGIN}# Settings",
        "Every setting of a recipe, as `key=value` behind a command, as YAML, or by keyword from Python.",
        "`halfback keys` prints the same. A run's folder has a `config.yaml` with all of them and their values.\n",
    ]
    section = None
    for key in keys():
        own = key.path.partition(".")[0] if "." in key.path else "The run"
        if own != section:
            section = own
            parts += [f"\n## {section}\n", *_HEADER]
        parts.append(_row(key))
    parts.append("\n## Options\n\nAlgorithms, codecs and controllers have options of their own.")
    tables = (("algorithm", algorithms()), ("codec", CODECS), ("controller", controllers()))
    for what, known in tables:
        for name, kind in known.items():
            options = options_of(kind)
            if options:
                parts += [f"\n### {what} `{name}`\n", *_HEADER, *map(_row, options)]
    return "\n".join(parts) + "\n"


_HEADER = ("| setting | allowed | default | what it is |", "| --- | --- | --- | --- |")


def _row(key: Key) -> str:
    cells = (f"`{key.path}`", key.kind, f"`{key.default}`" if key.default else "must be given", key.says)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def commands() -> str:
    """The page of all commands, by Typer's own writer."""
    typer = [
        sys.executable,
        "-m",
        "typer",
        "halfback.cli",
        "utils",
        "docs",
        "--name",
        "halfback",
        "--title",
        "Commands",
    ]
    written = subprocess.run(typer, capture_output=True, text=True, check=True, cwd=DOCS.parent).stdout
    return BEGIN + "\n".join(_wrapped(line) for line in written.strip().splitlines()) + "\n"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  " * line.startswith("* "), break_on_hyphens=False)


PAGES = {"settings.md": settings, "commands.md": commands}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(DOCS / name)
