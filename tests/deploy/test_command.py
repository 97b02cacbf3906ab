"""What `halfback deploy` refuses before anything starts, and what `halfback site` does to a startup kit."""

from pathlib import Path

import pytest

from tests.command import halfback, refusal

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quickstart", "--env", "pod"], "--env pod: did you mean"),
        (["quickstart", "--env", "prod"], "--env prod needs --kit, an admin's startup kit, and --user"),
        (["quickstart", "--env", "prod", "--kit", "nowhere", "--user", "a"], "--kit "),
        (["quickstart", "--env", "poc", "--name", "a/b"], "--name a/b: up to 64 letters, digits"),
        (["quickstart", "algorithm.name=mezo", "--env", "poc"], "algorithm.name=mezo runs on one machine"),
        (
            ["quickstart", "deployment.min_cohort=4", "--env", "poc"],
            "deployment.min_cohort=4: at most sampled_clients=3",
        ),
        (["quickstart", "codecs.activations_up=[zip]", "--env", "poc"], "codecs.activations_up"),
        (["quickstart", "deployment.deadline=0", "--env", "poc"], "deployment.deadline=0"),
    ],
)
def test_what_cannot_be_deployed_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(halfback("deploy", *words))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_anything_else_in_it_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    said = refusal(halfback("deploy", "quickstart", "--env", "poc", "--out", tmp_path))
    assert said == f"--out {tmp_path} exists and holds no fetched run; name a new folder"


def test_a_folder_that_is_no_startup_kit_is_not_made_one(tmp_path: Path) -> None:
    assert "is no startup kit" in refusal(halfback("site", tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "user", "said"),
    [
        ("fed_client.json", "admin@clinic.org", "is no startup kit of an admin: there is no startup/fed_admin.json"),
        ("fed_admin.json", "somebody@else.org", "--user somebody@else.org: the startup kit"),
    ],
)
def test_a_kit_that_is_not_this_admins_is_refused_before_anyone_logs_in(
    file: str, user: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "kit" / "startup").mkdir(parents=True)
    (tmp_path / "kit" / "startup" / file).write_text('{"admin": {"username": "admin@clinic.org"}}')
    words = ["quickstart", "--env", "prod", "--kit", str(tmp_path / "kit"), "--user", user]
    assert said in refusal(halfback("deploy", *words, "--out", tmp_path / "out"))
