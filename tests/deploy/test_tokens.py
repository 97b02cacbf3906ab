"""Tokens of devices: what is kept of them, what ends them, and what a running gateway sees of it."""

import json
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from halfback.deploy.tokens import Tokens, add, listed, revoke, rotate
from halfback.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "halfback-site" / "tokens.json"


def number_of(token: str) -> str:
    return token.split(".")[1]


def test_a_token_is_good_and_its_secret_is_nowhere(path: Path) -> None:
    token = add(path, 3, "the phone")
    assert re.fullmatch(r"hb1\.[0-9a-f]{8}\.[A-Za-z0-9_-]{43}", token)
    assert Tokens(path).check(token) == number_of(token)
    assert listed(path)[number_of(token)].label == "the phone"
    assert token.split(".")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [name.name for name in path.parent.iterdir()] == ["tokens.json"]


def test_whatever_is_not_a_token_is_refused(path: Path) -> None:
    token, tokens = add(path, 3), Tokens(path)
    head, number, secret = token.split(".")
    other = add(path, 3).split(".")[2]  # the secret of another device
    digest = json.loads(path.read_text())["tokens"][number]["sha256"]
    for wrong in (
        "",
        token[:-1],
        f"{token}\n",
        f" {token}",
        token.swapcase(),
        f"{head}.{number}.{other}",
        f"{head}.{'0' * 8}.{secret}",
        f"{head}..{secret}",
        f"{head}.{number}.{digest}",  # what stands in the file
        f"{head}.{number}.{digest[:43]}",
        f"{head}.{number}.\udce9{secret[1:]}",
    ):
        assert tokens.check(wrong) is None, wrong


def test_each_has_a_place_of_its_own_and_places_of_the_gone_are_given_last(path: Path) -> None:
    made = [number_of(add(path, 3)) for _ in range(2)]
    revoke(path, made[0])
    assert sorted(entry.place for entry in listed(path).values()) == [1]
    later = [number_of(add(path, 3)) for _ in range(2)]
    assert [listed(path)[number].place for number in later] == [2, 0]
    with pytest.raises(UserError, match=r"all 3 seats of this site have a token; revoke one, or raise devices\.seats"):
        add(path, 3)


def test_a_running_gateway_sees_what_was_revoked_rotated_and_added(path: Path) -> None:
    one, two = add(path, 3), add(path, 3)
    tokens = Tokens(path)
    revoke(path, number_of(one))
    new, third = rotate(path, number_of(two)), add(path, 3)
    tokens.refresh()
    assert [tokens.check(token) is not None for token in (one, two, new, third)] == [False, False, True, True]
    assert tokens.place(number_of(new)) == 1
    assert tokens.place(number_of(one)) is None
    for gone in (one, two):
        with pytest.raises(UserError, match="has no token"):
            revoke(path, number_of(gone))
        with pytest.raises(UserError, match="has no token"):
            rotate(path, number_of(gone))


def test_a_damaged_file_ends_nobody_and_a_missing_one_everybody(path: Path) -> None:
    token = add(path, 3)
    tokens = Tokens(path)
    good = path.read_text()
    for damaged, said in (
        ("{", "tokens .*: : Invalid JSON"),
        ("[]", "Input should be an object"),
        (good.replace('"place": 0', '"place": -1'), r"tokens\.[0-9a-f]{8}\.place: Input should be greater"),
        (good.replace('"fresh"', '"frsh"'), r"frsh: Extra inputs are not permitted"),
        (good.replace("label", "lable"), r"\.label: Field required"),
    ):
        path.write_text(damaged)
        os.utime(path, ns=(1, len(damaged)))
        tokens.refresh()
        assert tokens.check(token) is not None
        with pytest.raises(UserError, match=said):
            Tokens(path)
        with pytest.raises(UserError, match=said):
            add(path, 3)  # which would lose what is there
        assert path.read_text() == damaged
    path.unlink()
    tokens.refresh()
    assert tokens.check(token) is None


def test_those_who_change_the_file_at_once_lose_nothing(path: Path) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(add(path, 40) for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.place for entry in listed(path).values()) == list(range(40))
    tokens = Tokens(path)
    assert all(tokens.check(token) for token in made)
