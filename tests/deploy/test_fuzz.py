"""Hostile peers by the thousand: whatever comes is refused in one line, by name, at once and for little memory.

The messages are those of small real runs, changed as bytes or field by field, and said in their turn. A server may
reply with PeerError or Diverged and nothing else; a client always replies with a frame. `tests/wire` does the same to
`unpack`.
"""

import json
import random
import secrets
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile import altered, confined, in_time, mutated

from halfback.config import RunConfig
from halfback.engine.remote.client import RemoteClient
from halfback.engine.remote.frames import (
    Ancestor,
    Done,
    Longest,
    Open,
    Prepare,
    Question,
    Ready,
    Refused,
    Reply,
    Said,
    Save,
    Saved,
    Say,
    frame,
    read_question,
    read_reply,
)
from halfback.engine.remote.stream import Gone, read_frame
from halfback.engine.state import load_server
from halfback.errors import Diverged, PeerError
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback.testing.table import ROWS
from halfback.wire.messages import Message
from halfback.wire.packing import Direction, pack, unpack

MEGABYTES = 256  # that refusing, and one step of the smallest models, may take beside what is there before
SECONDS = 60  # for one round on a busy machine; what hangs never ends
STEPS = 2
TOKEN = "0123456789abcdef"
FRAMES: list[Question | Reply] = [
    Prepare(run=TOKEN, client=3, config={"steps": 5, "model": {"cut": 1}}, label_names=("a", "b"), weights="00ff"),
    Open(
        lineage=TOKEN,
        ancestry=(Ancestor(lineage=TOKEN[::-1], rounds=3),),
        round=4,
        first=8,
        steps=STEPS,
        cursor=8,
        measure=True,
    ),
    Say(lineage=TOKEN, round=4, exchange=2),
    Save(lineage=TOKEN, rounds=5),
    Ready(fits=True, takes=1 << 20, rows=3),
    Said(lineage=TOKEN, round=4, exchange=2),
    Done(
        lineage=TOKEN,
        round=4,
        cursor=10,
        forward_passes=9,
        client_seconds=0.5,
        wire_seconds=0.25,
        peak_bytes=1 << 20,
        inference_peak_bytes=1 << 19,
        losses=(0.5, 0.25),
    ),
    Saved(),
    Refused(why="peer", error="server: λ is not due"),
]
# What JSON can say in the place of a value.
PLAIN = (
    "",
    "\n",
    "\u2028",
    "kind",
    None,
    True,
    -1,
    1.5,
    1e308,
    1 << 62,
    10**400,
    [],
    {},
    [[]] * 3,
    {"\n": 1},
    "0" * 16,
)
HEADERS = [frame(header).header for header in FRAMES]


def check_line(error: object) -> None:
    """A line for the user's terminal and for logs."""
    assert str(error).isprintable(), repr(str(error))


def _spoilt_header(dice: random.Random) -> str:
    """A header with its text changed, or with well-formed JSON in it that is not what is due."""
    header = dice.choice(HEADERS)
    if dice.random() < 0.5:
        data = mutated(header.encode(), dice, [other.encode() for other in HEADERS])
        return data.decode(errors="surrogatepass" if dice.random() < 0.1 else "replace") if _is_text(data) else header
    tree = json.loads(header)
    for _ in range(dice.randint(1, 2)):
        key = dice.choice([*tree, "\n", "x" * 2000])
        if dice.random() < 0.3:
            tree.pop(key, None)
        else:
            tree[key] = dice.choice(PLAIN)
    return json.dumps(tree, ensure_ascii=dice.random() < 0.5)


def _is_text(data: bytes) -> bool:
    try:
        data.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _fuzz_headers(inputs: int) -> Counter[str]:
    dice, came = random.Random(inputs), Counter[str]()
    for _ in range(inputs):
        header = _spoilt_header(dice)
        for read in (read_question, read_reply):
            try:
                found = read(header)
            except PeerError as error:
                check_line(error)
                came["refused"] += 1
            else:
                check_line(getattr(found, "error", ""))
                came["accepted"] += 1
    return came


@pytest.mark.parametrize("inputs", [5_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_headers(inputs: int) -> None:
    with confined(MEGABYTES):
        came = _fuzz_headers(inputs)
    assert came["refused"] > inputs
    assert came["accepted"] > inputs // 20


def _fuzz_streams(inputs: int) -> Counter[str]:
    dice, came = random.Random(inputs), Counter[str]()
    for _ in range(inputs):
        header, body = dice.choice(HEADERS).encode(), dice.randbytes(dice.randint(0, 40))
        honest = struct.pack("<II", len(header), len(body)) + header + body
        near, far = socket.socketpair()
        with near:
            near.settimeout(60)  # a reader that waits for what never comes
            with far:
                spoilt = 8 if dice.random() < 0.5 else len(honest)  # the lengths, or anything
                far.sendall(mutated(honest[:spoilt], dice, [honest]) + honest[spoilt:])
            while True:
                try:
                    read_frame(near, Longest(1 << 20))
                except Gone:
                    came["gone"] += 1
                    break
                except PeerError as error:
                    check_line(error)
                    came["refused"] += 1
                    break
                came["accepted"] += 1
    return came


@pytest.mark.parametrize("inputs", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_streams(inputs: int) -> None:
    with confined(MEGABYTES):
        came = _fuzz_streams(inputs)
    assert min(came[how] for how in ("gone", "refused", "accepted")) > inputs // 50


class Script:
    """An honest round of a small run: what was said by the clients, exchange by exchange, and to one of them."""

    def __init__(self, config: RunConfig) -> None:
        simulation = small.built(config).federation
        self.client = simulation.server.cohort(0)[0]
        self.up: list[dict[int, bytes]] = []
        self.down: list[bytes] = []
        ended = True  # the exchange: the server has spoken since

        def listen(number: int, direction: Direction, data: bytes) -> None:
            nonlocal ended
            if direction == "up":
                if ended:
                    self.up.append({})
                self.up[-1][number] = data
            elif number == self.client:
                self.down.append(data)
            ended = direction == "down"

        simulation.tap = listen
        small.run(simulation, 1, steps=STEPS)
        self.known = [data for said in self.up for data in said.values()] + self.down
        self.messages = [unpack(data) for data in self.known]

    def spoilt(self, data: bytes, dice: random.Random) -> bytes:
        if dice.random() < 0.5:
            return mutated(data, dice, self.known)
        return pack(altered(unpack(data), dice, self.messages)).data


class HostileClients:
    """The server of a small run among clients that say the round's messages, spoilt from some exchange on."""

    def __init__(self, config: RunConfig, seed: int) -> None:
        self.script = Script(config)
        self.dice = random.Random(seed)
        self.came = Counter[str]()
        federation = small.built(config).federation
        self.server = federation.server
        tensors, values = federation.state()
        self._begin = {name: tensor.detach().clone() for name, tensor in tensors.items()}, values

    def round(self) -> None:
        """One round from the same state, until the server refuses to go on."""
        server, expelled = self.server, set[int]()
        load_server(server, *self._begin)
        server.begin(Round(0, STEPS, 0), server.cohort(0))
        first = self.dice.randrange(len(self.script.up))
        for place, said in enumerate(self.script.up):
            messages: dict[int, Message] = {}
            greetings = server.take_greetings()
            for number, data in said.items():
                if number in expelled:
                    continue
                if spoilt := place >= first and self.dice.random() < 0.7:
                    self.came["inputs"] += 1
                    data = self.script.spoilt(data, self.dice)
                try:
                    messages[number] = server.hear(number, data)
                    if greetings:
                        server.meet(number, messages[number])
                        server.say(number, greetings[number])
                        del messages[number]
                except PeerError as error:
                    assert spoilt or place > first
                    self._count(error, "unheard")
                    expelled.add(number)
            if not messages:
                continue
            try:
                for number, answer in server.answers(messages).items():
                    server.say(number, answer)
            except (PeerError, Diverged) as error:
                assert place >= first
                self._count(error, type(error).__name__)
                return
            self.came["answered"] += 1

    def _count(self, error: PeerError | Diverged, how: str) -> None:
        check_line(error)
        if how == "PeerError":  # the engine must know who did it, so that the others can go on
            assert isinstance(error.sender, int)
        self.came[how] += 1


class HostileServer:
    """A client of a small run that is asked the round's questions, spoilt from some exchange on."""

    def __init__(self, config: RunConfig, seed: int, folder: Path) -> None:
        self.script = Script(config)
        self.dice = random.Random(seed)
        self.came = Counter[str]()
        side = small.built(config).federation.client(self.script.client)
        self.client = RemoteClient(side, folder, most_steps=STEPS)

    def round(self) -> None:
        """One round of a new lineage, until the client refuses to go on."""
        lineage = secrets.token_hex(8)
        asked: list[Open | Say] = [
            Open(
                lineage=lineage,
                ancestry=(),
                round=0,
                first=0,
                steps=STEPS,
                cursor=0,
                measure=self.dice.random() < 0.1,
            )
        ]
        asked += [Say(lineage=lineage, round=0, exchange=place) for place in range(len(self.script.down))]
        first = self.dice.randrange(len(asked))
        for place, (question, body) in enumerate(zip(asked, [b"", *self.script.down], strict=True)):
            if spoilt := place >= first and self.dice.random() < 0.7:
                self.came["inputs"] += 1
                if body and self.dice.random() < 0.8:
                    body = self.script.spoilt(body, self.dice)
                else:
                    question = self._spoilt(question)
            reply = read_reply(self.client.reply(question, body).header)
            if isinstance(reply, Refused):
                assert spoilt or place > first, reply
                check_line(reply.error)
                self.came[reply.why] += 1
                return
            self.came["replied"] += 1

    def _spoilt(self, question: Open | Say) -> Question:
        """Another question, or one with another value that its field may have."""
        if self.dice.random() < 0.1:
            return Save(lineage=question.lineage, rounds=self.dice.choice(COUNTS))
        names = [name for name in type(question).model_fields if name not in ("kind", "ancestry")]
        name = self.dice.choice(names)
        values = {"lineage": [TOKEN, secrets.token_hex(8)], "measure": [True, False]}.get(name, COUNTS)
        return question.model_copy(update={name: self.dice.choice(values)})


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ho_sfl-texts": ("ho_sfl", "texts", {}),
    "ho_sfl-images": ("ho_sfl", "images", {}),
    "split_lora-texts": ("split_lora", "texts", {}),
    "zo_sfl-texts": ("zo_sfl", "texts", {}),
    "zo_sfl-temporal": ("zo_sfl-temporal", "texts", {}),
    "u-shape": ("ho_sfl-u", "texts", {}),
    "u-shape-temporal": ("ho_sfl-u-temporal", "texts", {}),
    "temporal": ("ho_sfl-temporal", "images", {}),
    "exact-signs": ("ho_sfl-exact-all", "images", {}),
    "gradient-alone-texts": ("ho_sfl", "texts", {"codecs.gradient_down": ["temporal", "int8"]}),
    "gradient-alone-images": ("split_lora", "images", {"codecs.gradient_down": ["temporal", "int8"]}),
}
COUNTS = (0, 1, 2, 99, 1 << 31, (1 << 62) - 1)


@pytest.fixture
def config(case: str, tiny_bert: Path, sentences: Path) -> RunConfig:
    row, world, settings = CASES[case]
    settings = {"batch_size": 2} | ROWS[row].settings | settings
    changes = {key.replace(".", "__"): value for key, value in settings.items()}
    if world == "images":
        return small.images(ROWS[row].name, **changes)
    return small.texts(ROWS[row].name, tiny_bert, sentences, **changes)


many = pytest.mark.parametrize("inputs", [40, pytest.param(2_000, marks=pytest.mark.slow)])


@many
@pytest.mark.parametrize("case", CASES)
def test_a_server(case: str, config: RunConfig, inputs: int) -> None:
    hostile = HostileClients(config, inputs)
    with confined(MEGABYTES):
        while hostile.came["inputs"] < inputs:
            with in_time(SECONDS):
                hostile.round()
    assert min(hostile.came[how] for how in ("unheard", "PeerError", "answered")) > inputs // 50


@many
@pytest.mark.parametrize("case", CASES)
def test_a_device(case: str, config: RunConfig, inputs: int, tmp_path: Path) -> None:
    hostile = HostileServer(config, inputs, tmp_path)
    with confined(MEGABYTES):
        while hostile.came["inputs"] < inputs:
            with in_time(SECONDS):
                hostile.round()
    assert min(hostile.came[how] for how in ("peer", "replied")) > inputs // 50
