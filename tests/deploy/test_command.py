"""What `halfback deploy` refuses before anything starts, and what `halfback site` does to a startup kit."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halfback.errors import UserError
from halfback.testing import small
from tests.command import digits, halfback, refusal

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
        (["quickstart", "attack.name=noise", "--env", "poc"], "attack.name=noise: clients lie in a simulation alone"),
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


def test_tokens_are_made_shown_changed_and_ended(tmp_path: Path) -> None:
    devices = "{listen: 'localhost:8443', certificate: c.pem, key: k.pem, seats: 2}"
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "halfback.yaml").write_text(f"runtime: device\npackage: p\ndevices: {devices}\n")

    def said(*words: str) -> str:
        done = halfback("site", "tokens", tmp_path, *words)
        assert done.status == 0
        return done.out.strip()

    token = said("add", "--label", "my\nphone")
    number = token.split(".")[1]
    assert re.fullmatch(rf"{number}  place 0  2\S+  my phone", said("list"))
    assert token.split(".")[2] not in said("list")
    turned = said("rotate", number)
    assert turned.split(".")[1] in said("list")
    assert number not in said("list")
    assert said("revoke", turned.split(".")[1]) == ""
    assert said("list") == ""
    for words, why in {
        ("ad",): "ad: did you mean add?",
        ("revoke",): "revoke: which? its ID, as list shows",
        ("add", "1"): "add: no ID is due",
        ("revoke", number): f"has no token '{number}'; `halfback site tokens KIT list` shows all",
        ("list", "--label", "x"): "--label is for add",
    }.items():
        assert why in refusal(halfback("site", "tokens", tmp_path, *words))


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


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"events": 5}, "events=5: Input should be a valid list"),
        ({"events": ["x"]}, "events.0='x': Input should be a valid dictionary"),
        ({"events": {"a": 1}}, "events={'a': 1}"),
        ({"records": "{}"}, "records='{}'"),
        ({"record": ["\x1b[2J\n"]}, "record=['\\x1b[2J\\n']"),
        ({"known": [["a"]]}, "known.0=['a']"),
        ({"sites": 3, "free": "all"}, "sites=3"),
    ],
)
def test_what_a_server_tells_of_a_run_is_a_claim(told: Any, said: str) -> None:
    from halfback.deploy.environments import Federation

    federation = Federation.__new__(Federation)
    federation._session, federation._patience = SimpleNamespace(do_app_command=lambda *_: told), 0.0
    with pytest.raises(UserError) as error:
        federation._told("job", {})
    assert str(error.value).startswith("the server tells of the run: ")
    assert said in str(error.value)


@pytest.mark.parametrize("held", [b"[\n", b"\xff\n", b"[" * 100_000 + b"\n", b"5\n"])
def test_events_that_a_server_left_are_a_claim_too(held: bytes, tmp_path: Path) -> None:
    from halfback.deploy.environments import _Told

    (tmp_path / "events.jsonl").write_bytes(held)
    with pytest.raises(UserError, match="events"):
        _Told().news(tmp_path)


def test_no_event_moves_the_cursor_of_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    from halfback.deploy.command import _follow

    follow = _follow(small.images("ho_sfl"), lambda _: None)
    with caplog.at_level(logging.INFO):
        follow({"events": [{"event": "\x1b[2J", "client": "a\n", "site": "\u202e", "why": "x" * 10**6}]})
    assert caplog.records[0].getMessage().isprintable()
    assert len(caplog.records[0].getMessage()) <= 1000


def test_the_page_of_a_fetched_run_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server's says: a browser would run it."""
    from halfback.deploy import command
    from halfback.runs import run

    run.train(small.images("ho_sfl", steps=1), tmp_path / "left")
    (tmp_path / "left" / "report.html").write_text("<script>fetch('http://elsewhere')</script>")
    (tmp_path / "left" / "ended.json").write_text('{"how": "finished", "why": ""}')
    monkeypatch.setattr(command, "Simulator", lambda *_: SimpleNamespace(run=lambda *_: tmp_path / "left"))
    config, to = small.images("ho_sfl", steps=1), command.Destination("simulator")
    command.deploy(config, "ours", tmp_path / "out", to, on_round=lambda _: None)
    assert "script" not in (tmp_path / "out" / "report.html").read_text()


def test_what_a_summary_says_is_no_markup(tmp_path: Path) -> None:
    from halfback.cli import printing

    out = tmp_path / "[" / "x]"
    assert halfback(*digits(out, "steps=1")).status == 0
    with printing.console.capture() as capture:
        printing.print_table(["", "[/b]\x1b[2J"], [["x", "[red]\n"]])
    assert "[/b] [2J" in capture.get()
    assert "[red]" in capture.get()
