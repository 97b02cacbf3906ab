"""What the command line says of what there is to name, and of this machine."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halfback.algorithms import algorithms
from halfback.cli import app
from halfback.cli.completing import recipe_or_setting
from halfback.codecs import CODECS
from halfback.config import recipes, resolve
from halfback.config.keys import Key, keys, options_of
from halfback.controllers import controllers
from halfback.data.tasks import TASKS
from halfback.errors import UserError
from halfback.runs.health import EXTRAS

NAMED = {"algorithms": algorithms(), "codecs": CODECS, "controllers": controllers(), "tasks": TASKS}
NAMED |= {"recipes": recipes(), "models": ["BERT", "resnet20", "resnet18-32", "all-minilm-l6-v2"]}


def said(*command: str) -> str:
    result = CliRunner().invoke(app, [*command], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("listing", NAMED)
def test_a_list_and_each_of_its_things_as_text_and_as_json(listing: str) -> None:
    rows = json.loads(said(listing, "--json"))
    assert all(row["says"].strip() for row in rows)
    if listing != "models":
        assert [row["name"] for row in rows] == [*NAMED[listing]]
    for name in NAMED[listing]:
        assert json.loads(said(listing, name, "--json"))["name"] == name
        assert said(listing, name).strip()
    with pytest.raises(UserError, match="is unknown"):
        CliRunner().invoke(app, [listing, "nobody-has-this"], standalone_mode=False, catch_exceptions=False)


def every_option() -> list[Key]:
    kinds = [*algorithms().values(), *CODECS.values(), *controllers().values()]
    return [option for kind in kinds for option in options_of(kind)]


def test_every_setting_and_option_says_what_it_is() -> None:
    assert [key.path for key in [*keys(), *every_option()] if not (key.says and key.kind)] == []


def test_every_default_is_what_a_run_takes() -> None:
    config = resolve("quickstart").model_copy()
    plain = resolve(None, ["algorithm.name=ho_sfl", "task.name=digits", "model.name=resnet8", "model.cut=1"])
    assert config.steps == 300
    for key in keys():
        value = plain
        for part in key.path.split("."):
            value = getattr(value, part, None)
        if key.default and value is not None and isinstance(value, (int, float, str)):
            shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
            assert key.default == (f"{shown:g}" if isinstance(shown, float) else str(shown)), key.path


def test_a_prefix_chooses_and_an_unknown_one_is_refused() -> None:
    assert {key["path"].partition(".")[0] for key in json.loads(said("keys", "bottom.", "--json"))} == {"bottom"}
    assert "bottom.lr=number above 0 to 10,000   (default 0.001)" in said("keys", "bottom.lr")
    with pytest.raises(UserError, match="no setting begins with 'botom'; did you mean bottom"):
        CliRunner().invoke(app, ["keys", "botom"], standalone_mode=False, catch_exceptions=False)


def test_the_help_has_every_command_in_a_group() -> None:
    text = said("--help")
    groups = [line for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert groups[:2] == ["Options:", "Train:"]
    assert "None" not in text
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"\n  {command.callback.__name__}  " in text


def test_a_shell_completes_recipes_settings_and_values() -> None:
    assert recipe_or_setting("quick") == ["quickstart"]
    assert "bottom.optimizer=" in recipe_or_setting("bottom.o")
    assert recipe_or_setting("bottom.schedule=c") == ["bottom.schedule=constant", "bottom.schedule=cosine"]
    assert recipe_or_setting("algorithm.name=ho_sfl_") == ["algorithm.name=ho_sfl_pipelined"]
    asked = {"_HALFBACK_COMPLETE": "complete_bash", "COMP_WORDS": "halfback train quick", "COMP_CWORD": "2"}
    command = [str(Path(sys.executable).with_name("halfback"))]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["quickstart"]


def test_doctor_knows_every_extra_and_finds_this_machine_well() -> None:
    of_developers = {"dev", "docs", "test"}
    assert {*EXTRAS} == {*distribution("halfback").metadata.get_all("Provides-Extra")} - of_developers
    found = json.loads(said("doctor", "--json"))
    assert {finding["part"] for finding in found} == {"machine", "extras", "self-test"}
    assert [finding for finding in found if finding["state"] == "wrong"] == []
    assert [finding["name"] for finding in found if finding["part"] == "self-test"] == ["a run learns", "a run goes on"]


HIDDEN = """
import sys
from importlib.abc import MetaPathFinder
hidden = {*sys.argv[1].split(",")}
class Hidden(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv[:] = ["halfback", *sys.argv[2:]]
from halfback.cli import main
main()
"""


@pytest.mark.parametrize(
    ("hidden", "command", "extra"),
    [
        ("transformers,peft", "train model.name=all-minilm-l6-v2 model.cut=1 algorithm.name=ho_sfl", "transformers"),
        ("datasets", "train model.name=resnet8 model.cut=1 algorithm.name=ho_sfl task.name=hub task.train=a/b", "hub"),
        ("nvflare", "deploy quickstart --env poc", "nvflare"),
    ],
)
def test_what_is_not_installed_is_named_with_what_installs_it(
    hidden: str, command: str, extra: str, tmp_path: os.PathLike[str]
) -> None:
    settings = [] if "task.name" in command or "deploy" in command else ["task.name=movies"]
    run = [sys.executable, "-c", HIDDEN, hidden, *command.split(), *settings, "--out", f"{tmp_path}/run"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert f"is not installed: pip install 'halfback[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
