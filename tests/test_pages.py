"""The Python scripts of the docs, run as they stand, in an empty folder."""

import re
from pathlib import Path

import pytest

from halfback.models.families import FAMILIES

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("python.md", "own_models_and_data.md", "use.md")}
SCRIPTS = {
    f"{name}, {title}": script
    for name, page in PAGES.items()
    for title, script in re.findall(r"^## (.*?)\n```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("place", SCRIPTS)
def test_a_script_runs_as_it_stands(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FAMILIES, "_here", {**FAMILIES._here})  # a family that a script registers goes with it
    exec(compile(SCRIPTS[place], f"docs/{place}", "exec"), {"__name__": "__main__"})


def test_every_script_is_run() -> None:
    assert len(SCRIPTS) == sum(page.count("```python\n") for page in PAGES.values())
