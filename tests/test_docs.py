"""The documentation, held against the code: scripts and examples run, commands are parsed, links lead somewhere."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import halfback
from halfback import config as configuration
from halfback.cli import app
from halfback.cli.printing import parsed, recipe_and_settings
from halfback.config.values import resolve_values
from halfback.models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
PAGES |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
WRITTEN_BY_CODE = ("docs/settings.md", "docs/commands.md")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

_SCRIPT = r"^## (.*?)\n(?:[^`#]*\n)?```python\n(.*?)^```"
# Pages whose scripts run as they stand; of others a script is a piece of something larger, and tests of that run it.
SCRIPTS = {
    f"{name}, {title}": script
    for name in ("docs/python.md", "docs/own_models_and_data.md", "docs/use.md", "docs/tutorials/own_model.md")
    for title, script in re.findall(
        r"^## (.*?)\n(?:[^`#]*\n)?```python\n(.*?)^```", PAGES.get(name, ""), re.DOTALL | re.MULTILINE
    )
}


@pytest.mark.parametrize("place", SCRIPTS)
def test_a_script_runs_as_it_stands(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FAMILIES, "_here", {**FAMILIES._here})  # a family that a script registers goes with it
    exec(compile(SCRIPTS[place], place, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")


_NEXT = r"""(?:&&|;|\|(?=\s))(?=(?:[^"']*["'][^"']*["'])*[^"']*$)"""  # command, outside of quotes


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) for each command line of each block that a reader would copy into a shell."""
    for name, page in PAGES.items():
        if name in WRITTEN_BY_CODE:
            continue
        for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE):
            if language not in ("", "sh"):
                continue
            block = re.sub(r"<<(\w+)\n.*?\n\1\n", "\n", block.replace("\\\n", ""), flags=re.DOTALL)
            for line in block.splitlines():
                for command in re.split(_NEXT, line.partition("  #")[0].removeprefix("$ ")):
                    if language == "sh" or re.match(r"\s*(\w+=\S+ )*(halfback|python|pip)\s", command):
                        yield name, command.strip()


COMMANDS = sorted({(name, command) for name, command in commands() if command and not command.startswith("#")})
# Programs that are nobody's of ours: what is said behind them is theirs.
OTHERS = {"pip", "docker", "nvflare", "openssl", "mkdir", "cd", "cp", "source", "export", "tensorboard", "ssh", "scp"}
OTHERS |= {"wandb", "mlflow", "curl", "echo", "kill", "git", "cat", "npm", "pre-commit", "pytest", "start.sh"}
OTHERS |= {"$EDITOR"}
OURS = {"python", "python3", "halfback-device", "check.sh", "zensical", "activate"}


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command[:50]}" for page, command in COMMANDS])
def test_a_command_is_one(page: str, command: str) -> None:
    words = shlex.split(re.sub(r"(?<![:,]) \[[^\]]*\](\.\.\.)?", "", command))  # without what may be left away
    while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] == "."):  # of the environment
        words.pop(0)
    if not words:
        return
    program, *rest = words
    program = Path(program).name
    if program == "halfback":
        _check(rest)
    elif program in ("python", "python3") and rest[0] != "-m" and rest[0] != "-c":
        assert rest[0] in ("my_script.py",) or (ROOT / rest[0]).is_file(), f"{rest[0]} is not there"
    elif program not in OTHERS | OURS:
        raise AssertionError(f"nobody knows {program}")


def _check(words: list[str]) -> None:
    """As the command line would read it, up to where something is done."""
    group: Any = typer.main.get_command(app)
    if words[0].startswith("--"):
        return
    with group.make_context("halfback", [*words]) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        with command.make_context(name, rest, parent=context) as inner:
            settings = inner.params.get("settings")
    if settings is not None and name in ("train", "compare", "plan", "deploy", "package"):
        recipe, given = recipe_and_settings([word.replace("…", "ho_sfl") for word in settings])
        if recipe is not None and (recipe.endswith((".yaml", ".yml")) or recipe not in configuration.recipes()):
            parsed(given)  # a file or a run's folder of the reader's own
        else:
            resolve_values(recipe, parsed(given))


def test_the_site_is_built_without_a_warning() -> None:
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_made_from_the_code_are_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    for name, make in made.items():
        assert PAGES[f"docs/{name}"] == make(), f"run docs/generate.py: {name} is old"


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in PAGES if name.startswith("docs/") and name.removeprefix("docs/") not in listed] == []
    shown = re.findall(r"^::: halfback\.\S*?(\w+)$", PAGES["docs/api.md"], re.MULTILINE)
    modules = {"messages", "testing"}
    assert {*halfback.__all__} - modules - {*shown} == set()


def test_no_line_of_prose_is_longer_than_120_characters() -> None:
    long = []
    for name, page in PAGES.items():
        if name in WRITTEN_BY_CODE:
            continue
        prose = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
        for line in prose.splitlines():
            if len(line) > 120 and not line.lstrip().startswith("|") and " " in line.strip():
                long.append(f"{name}: {line[:60]}")
    assert long == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("halfback train quickstart --nothing", "No such option"),
        ("halfback trian quickstart", "No such command"),
        ("halfback train quickstart botom.lr=1", "key 'botom' is unknown"),
        ("python benchmarks/nothing.py", "is not there"),
        ("nobody x", "nobody knows nobody"),
    ],
)
def test_a_command_that_is_none_would_be_found(command: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        test_a_command_is_one("", command)
