"""Headers that a device takes are those that the reference takes; whatever else comes is refused in one line."""

import json
import random
import socket
import struct
import threading
from typing import Any

import pytest

from halfback.engine.remote import frames as reference
from halfback.errors import PeerError as ReferenceError
from halfback_device.errors import PeerError
from halfback_device.frames import Done, Frame, Longest, Ready, Refused, Said, Saved, frame, read_question, refused
from halfback_device.stream import read_frame, write_frame

LINEAGE, OTHER = "0123456789abcdef", "fedcba9876543210"
QUESTIONS: list[reference.Question] = [
    reference.Prepare(run=LINEAGE, client=2, config={"a": {"b": [1, 2.5, None]}}, label_names=("a", "b"), weights="ab"),
    reference.Open(
        lineage=LINEAGE,
        ancestry=(reference.Ancestor(lineage=OTHER, rounds=3),),
        round=4,
        first=8,
        steps=2,
        cursor=7,
        measure=False,
    ),
    reference.Open(
        lineage=LINEAGE,
        ancestry=(),
        round=4,
        first=8,
        steps=2,
        cursor=7,
        measure=True,
        evaluation=reference.Evaluation(step=8, loss=0.25, accuracy=75.0),
    ),
    reference.Say(lineage=LINEAGE, round=4, exchange=0),
    reference.Save(lineage=LINEAGE, rounds=5),
]
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.0,
    1.5,
    1 << 62,
    1 << 63,
    10**400,
    "",
    "x",
    LINEAGE,
    LINEAGE + "\n",
    [],
    [[]],
    {},
)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.kind)
def test_the_reference_s_questions_are_read(question: reference.Question) -> None:
    ours: Any = read_question(reference.frame(question).header)
    assert type(ours).__name__ == type(question).__name__
    told = json.loads(json.dumps(ours, default=lambda value: vars(value)))
    told = {key: value for key, value in told.items() if value is not None}
    assert told == {key: value for key, value in json.loads(reference.frame(question).header).items() if key != "kind"}


def test_what_the_reference_refuses_is_refused_in_one_line() -> None:
    dice = random.Random(0)
    taken = 0
    for _ in range(4000):
        header = _changed(json.loads(reference.frame(dice.choice(QUESTIONS)).header), dice)
        try:
            reference.read_question(header)
        except ReferenceError:
            with pytest.raises(PeerError) as error:
                read_question(header)
            assert str(error.value).isprintable()
            assert len(str(error.value)) < 600
        else:
            read_question(header)
            taken += 1
    assert 100 < taken < 3900  # both happen


def _changed(told: dict[str, Any], dice: random.Random) -> str:
    for _ in range(dice.randint(0, 2)):
        key = dice.choice([*told, "new", "kind"])
        match dice.randrange(4):
            case 0:
                told.pop(key, None)
            case 1 if key == "ancestry":
                told[key] = [{"lineage": dice.choice((OTHER, "x")), "rounds": dice.choice((1, -1))}]
            case 1 if key == "evaluation" and isinstance(told.get(key), dict):
                told[key] = told[key] | {dice.choice(("step", "loss", "accuracy", "new")): dice.choice(ODD)}
            case 1 if key == "kind":
                told[key] = dice.choice(("prepare", "open", "say", "save", "done", "none"))
            case 1:
                told[key] = dice.choice(ODD)
            case _:
                pass
    header = json.dumps(told)
    if dice.random() < 0.2:
        at = dice.randrange(len(header))
        header = header[:at] + dice.choice(("", '"', "}", "\x00", "é", "1")) + header[at + 1 :]
    return header


@pytest.mark.parametrize(
    "header",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        '{"kind":"say","kind":"say","lineage":"0123456789abcdef","round":0,"exchange":0}',
        '{"kind":"say","lineage":"0123456789abcdef","round":NaN,"exchange":0}',
        '{"kind":"prepare","run":"0123456789abcdef","client":0,"config":{"a":"\\ud800"},"label_names":[],"weights":""}',
    ],
)
def test_odd_texts_are_refused(header: str) -> None:
    with pytest.raises(PeerError) as error:
        read_question(header)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "reply",
    [
        Ready(fits=True, takes=10, rows=3),
        Said(LINEAGE, 1, 0),
        Done(LINEAGE, 1, 2, 3, 0.5, 1e-9, 4, 5, (0.25, -1.0)),
        Saved(),
        Refused("peer", "no"),
    ],
)
def test_the_reference_reads_the_replies(reply: Any) -> None:
    theirs = reference.read_reply(frame(reply).header)
    assert vars(reply).items() <= theirs.model_dump().items()
    assert frame(reply).header.startswith('{"kind":')  # by which a relay knows which it is


def test_a_refusal_is_one_line_that_is_not_too_long() -> None:
    theirs = reference.read_reply(refused("user", "a\nb" * 4000).header)
    assert isinstance(theirs, reference.Refused)
    assert len(theirs.error) <= 2000


def test_frames_come_through_a_socket_and_lengths_alone_cost_nothing() -> None:
    near, far = socket.socketpair()
    with near, far:
        sent = Frame('{"é": 1}', b"x" * 3_000_000)
        thread = threading.Thread(target=write_frame, args=(near, sent))
        thread.start()
        assert read_frame(far, Longest(len(sent.body))) == sent
        thread.join()
        near.sendall(struct.pack("<II", 2, 1) + b"\xff\xff" + b"x")
        with pytest.raises(PeerError, match="no text"):
            read_frame(far, Longest(10))
        near.sendall(struct.pack("<II", 4, 0xFFFFFFFF))
        with pytest.raises(PeerError, match="at most"):
            read_frame(far, Longest(10))
