"""What a site allows: our components alone, no code from elsewhere, no look at its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from halfback.deploy.job import CLASSES, allow
from halfback.errors import UserError

ROLES: dict[str, Any] = {
    "project_admin": "any",
    "lead": {"submit_job": "any", "view": "any", "shell_commands": "o:site", "byoc": "any"},
    "member": {"view": "any"},
}
CLOSED = ("byoc", "shell_commands", "pwd", "ls", "cat", "head", "tail", "grep")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A startup kit as FLARE provisions it."""
    (tmp_path / "local").mkdir()
    resources = {"class_allow_list": ["nvflare.some.Reader"], "allow_log_streaming": True, "components": [{"id": "x"}]}
    write(tmp_path, "resources.json.default", resources)
    write(tmp_path, "authorization.json.default", {"format_version": "1.0", "permissions": ROLES})
    return tmp_path


def write(kit: Path, name: str, tree: Any) -> None:
    (kit / "local" / name).write_text(json.dumps(tree))


def read(kit: Path, name: str) -> Any:
    return json.loads((kit / "local" / name).read_text())


def test_our_classes_are_allowed_and_no_others(kit: Path) -> None:
    allow(kit)
    resources = read(kit, "resources.json")
    assert resources["class_allow_list"] == list(CLASSES)
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["components"] == [{"id": "x"}]


def test_logs_stay_on_the_site(kit: Path) -> None:
    allow(kit)
    assert read(kit, "resources.json")["allow_log_streaming"] is False


def test_what_a_site_allows_by_itself_stays_allowed(kit: Path) -> None:
    write(kit, "resources.json", {"class_allow_list": ["nvflare.my.Choice", CLASSES[0]]})
    allow(kit)
    allow(kit)
    assert read(kit, "resources.json")["class_allow_list"] == ["nvflare.my.Choice", *CLASSES]


def test_nobody_may_bring_code_or_look_at_files(kit: Path) -> None:
    allow(kit)
    roles = read(kit, "authorization.json")["permissions"]
    for role in ROLES:
        assert {roles[role][right] for right in CLOSED} == {"none"}
    assert roles["lead"] == ROLES["lead"] | dict.fromkeys(CLOSED, "none") | {"app_command": "n:submitter"}
    assert "app_command" not in roles["member"]
    assert roles["project_admin"]["submit_job"] == roles["project_admin"]["view"] == "any"


def test_a_folder_that_is_no_kit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no startup kit of a FLARE server or client: .*resources\.json\.default"):
        allow(tmp_path)
