"""The scripts of docs/python.md, run as they stand, in an empty folder."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"^## (.*?)\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("title", SCRIPTS)
def test_a_script_of_ten_lines(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(SCRIPTS[title], f"docs/python.md, {title}", "exec"), {"__name__": "__main__"})


def test_every_script_of_the_page_is_run() -> None:
    assert len(SCRIPTS) == PAGE.count("```python\n")
