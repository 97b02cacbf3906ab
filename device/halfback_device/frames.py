"""What an engine says to a client beside the algorithm's own bytes: questions and replies (docs/protocol.md).

A frame is a header (JSON of one of these) and a body: the bytes of a packed message, or none. A question names the
lineage, the round and the exchange that it belongs to, so that whatever comes twice, late or out of turn is recognised.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from halfback_device.errors import DeviceError, PeerError, one_line

MAX_HEADER = 1 << 22  # characters; the largest holds a configuration
_TOKEN = re.compile(r"[0-9a-f]{16}")
_LARGEST = 3.4028235e38  # of float32
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # what may be half of a pair, which is no character


@dataclass(frozen=True)
class Ancestor:
    """An earlier lineage, and how many rounds of it count."""

    lineage: str
    rounds: int


@dataclass(frozen=True)
class Prepare:
    """Question, first of all: build your part of this run; in the body, weights to begin with, or none."""

    run: str
    client: int
    config: Mapping[str, Any]
    label_names: tuple[str, ...]
    weights: str


@dataclass(frozen=True)
class Evaluation:
    """How well the server's model did after so many steps: mean loss, and accuracy in percent where it is measured."""

    step: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Open:
    """Question: begin a round; the reply has the first message. `evaluation`: the last one, to be shown."""

    lineage: str
    ancestry: tuple[Ancestor, ...]
    round: int
    first: int
    steps: int
    cursor: int
    measure: bool
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Say:
    """Question: here is the answer to your last message; what do you say next?"""

    lineage: str
    round: int
    exchange: int


@dataclass(frozen=True)
class Save:
    """Question: write down what you need to go on from here, after so many rounds."""

    lineage: str
    rounds: int
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Ready:
    """Reply to `Prepare`; `fits` is false where the weights to begin with are others.

    `takes`: bytes of the longest body that the client reads from now on. `rows`: it trains on so many.
    """

    fits: bool
    takes: int
    rows: int


@dataclass(frozen=True)
class Said:
    """Reply: a message, in the body, of this exchange."""

    lineage: str
    round: int
    exchange: int


@dataclass(frozen=True)
class Done:
    """Reply: the client has said all of this round; what the round cost it, and its peaks so far."""

    lineage: str
    round: int
    cursor: int
    forward_passes: int
    client_seconds: float
    wire_seconds: float
    peak_bytes: int
    inference_peak_bytes: int
    losses: tuple[float, ...]
    releases: int | None = None


@dataclass(frozen=True)
class Saved:
    """Reply to `Save`."""


@dataclass(frozen=True)
class Refused:
    """Reply: no, and why. `stale`: the question belongs to another time; the others are the kinds of error."""

    why: Literal["stale", "peer", "diverged", "user", "failed"]
    error: str


Question = Prepare | Open | Say | Save
Reply = Ready | Said | Done | Saved | Refused


class Frame(NamedTuple):
    """A header as JSON text, and a body."""

    header: str
    body: bytes = b""


def frame(reply: Reply, body: bytes = b"") -> Frame:
    """The frame to send; its kind comes first in the header, by which a relay knows `Ready`."""
    values = {each.name: getattr(reply, each.name) for each in fields(reply)}
    told = {"kind": type(reply).__name__.lower()} | {name: each for name, each in values.items() if each is not None}
    return Frame(json.dumps(told, separators=(",", ":"), allow_nan=False), body)


def refused(why: Literal["stale", "peer", "diverged", "user", "failed"], error: Exception | str) -> Frame:
    """The reply to a question that an error has ended."""
    return frame(Refused(why, one_line(str(error))[:2000]))


class Longest(NamedTuple):
    """The longest frame that may come: bytes of its body, characters of its header."""

    body: int
    header: int = MAX_HEADER

    def check(self, header: int, body: int) -> None:
        """Refuses a frame of which so many bytes are announced, before anyone reads them.

        Raises:
            PeerError: says what came and what is allowed.
        """
        if header > 4 * self.header or body > self.body:  # a character takes up to four bytes
            came = f"a header of {header} bytes and a body of {body}"
            raise PeerError("frame", came, f"at most {4 * self.header} and {self.body} are allowed")


def read_question(header: str) -> Question:
    """The question in a header; PeerError names the field that is wrong."""
    if not isinstance(header, str) or len(header) > MAX_HEADER:
        came = f"{len(header)} characters" if isinstance(header, str) else type(header).__name__
        raise PeerError("header", came, f"text of at most {MAX_HEADER} is allowed")
    told = parsed(header)
    if not isinstance(told, dict):
        raise PeerError("header", "no object came")
    kind = told.pop("kind", None)
    if not isinstance(kind, str) or kind not in _QUESTIONS:
        raise PeerError("header.kind", _shown(kind), f"one of {', '.join(_QUESTIONS)} is allowed")
    made, wanted = _QUESTIONS[kind]
    return made(**_checked(told, wanted, f"header.{kind}"))


def parsed(header: str) -> Any:
    """What a header's JSON says; PeerError where it is none."""
    try:
        told = json.loads(header, parse_constant=_constant, object_pairs_hook=_object)
        if _HALF.search(header):
            json.dumps(told, ensure_ascii=False).encode()
    except RecursionError:
        raise PeerError("header", "it is nested too deep") from None
    except ValueError as error:  # of JSON, of numbers of thousands of digits, and of half characters
        raise PeerError("header", f"it is no JSON: {one_line(str(error))[:200]}") from None
    return told


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) < len(pairs):
        raise ValueError("an object names a key twice")
    return told


def _checked(told: dict[str, Any], wanted: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    if unknown := next((name for name in told if name not in wanted), None):
        raise PeerError(f"{where}.{_shown(unknown)}", "this field is unknown")
    if missing := next((name for name in wanted if name not in told and name not in _OPTIONAL), None):
        raise PeerError(f"{where}.{missing}", "it is missing")
    found = {}
    for name, check in ((name, check) for name, check in wanted.items() if name in told):
        try:
            found[name] = check(told[name])
        except _WrongError as error:
            raise PeerError(f"{where}.{name}{error.within}", _shown(error.came), error.allowed) from None
    return found


class _WrongError(DeviceError):
    def __init__(self, came: Any, allowed: str, within: str = "") -> None:
        super().__init__(allowed)
        self.came, self.allowed, self.within = came, allowed, within


def _shown(value: object) -> str:
    """A value as it stands in a message: its kind, where it may be long."""
    if isinstance(value, str):
        return one_line(repr(value[:100]))
    small = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 80)
    return repr(value) if small else f"{type(value).__name__}"


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise _WrongError(value, "a whole number from 0 to 2^62 - 1 is allowed")
    return value


def _token(value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise _WrongError(value, "sixteen digits of base 16 are allowed")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongError(value, "true or false is allowed")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongError(value, "a text is allowed")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _WrongError(value, "a list of texts is allowed")
    return tuple(value)


def _tree(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(value, "an object is allowed")
    return value


def _ancestry(value: Any) -> tuple[Ancestor, ...]:
    if not isinstance(value, list):
        raise _WrongError(value, "a list is allowed")
    found = []
    for place, each in enumerate(value):
        if not isinstance(each, dict) or set(each) != {"lineage", "rounds"}:
            raise _WrongError(each, "lineage and rounds are allowed", f".{place}")
        found.append(Ancestor(_token(each["lineage"]), _count(each["rounds"])))
    return tuple(found)


def _evaluation(value: Any) -> Evaluation | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"step", "loss", "accuracy"}:
        raise _WrongError(value, "step, loss and accuracy are allowed")
    loss, accuracy = value["loss"], value["accuracy"]
    if not _is_within(loss, -_LARGEST, _LARGEST):
        raise _WrongError(loss, "a number of float32 is allowed", ".loss")
    if accuracy is not None and not _is_within(accuracy, 0, 100):
        raise _WrongError(accuracy, "0 to 100 is allowed", ".accuracy")
    return Evaluation(_count(value["step"]), float(loss), None if accuracy is None else float(accuracy))


def _is_within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


_OPTIONAL = {"evaluation"}
_QUESTIONS: dict[str, tuple[type[Prepare | Open | Say | Save], dict[str, Callable[[Any], Any]]]] = {
    "prepare": (
        Prepare,
        {"run": _token, "client": _count, "config": _tree, "label_names": _texts, "weights": _text},
    ),
    "open": (
        Open,
        {
            "lineage": _token,
            "ancestry": _ancestry,
            "round": _count,
            "first": _count,
            "steps": _count,
            "cursor": _count,
            "measure": _truth,
            "evaluation": _evaluation,
        },
    ),
    "say": (Say, {"lineage": _token, "round": _count, "exchange": _count}),
    "save": (Save, {"lineage": _token, "rounds": _count, "evaluation": _evaluation}),
}
