"""The server's side of sums as messages: what is due when, and who is named for what."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch

from halfback.engine.sums import Sums, is_summed, masked_talk
from halfback.errors import PeerError
from halfback.masking.fixed_point import FixedPoint
from halfback.masking.rules import SumRules
from halfback.wire.messages import (
    Activations,
    Both,
    CutGradient,
    Exact,
    Join,
    Masking,
    Message,
    Nothing,
    Slopes,
    Weights,
)

RULES = SumRules(3, FixedPoint(64, 8.0, 3))
Say = Callable[[int, Message], Message]
"""Exchange and message of client 2 → what it says instead."""


def slopes(*values: float) -> Slopes:
    return Slopes(7, torch.tensor(values))


def summed(said: dict[int, Message], instead: Say = lambda exchange, message: message) -> dict[int, Message]:
    """What an algorithm is handed of what clients would say."""
    sums, talks = Sums(RULES), dict[int, Generator[Message, Any, Message]]()
    heard: dict[int, Any] = {}
    for client, message in said.items():
        talks[client] = masked_talk(client, 1, message, RULES)
        heard[client] = None
    for exchange in range(4):
        messages: dict[int, Message] = {}
        for client, talk in talks.items():
            try:
                messages[client] = talk.send(heard[client])
            except StopIteration as end:
                messages[client] = end.value
        messages[2] = instead(exchange, messages[2])
        assert sums.concerns(messages)
        answers = sums.answers(messages, {})
        if answers is None:
            assert exchange == 3
            return sums.mean(messages, [torch.zeros(2, dtype=torch.float16), torch.zeros(1)])
        heard = answers
    raise AssertionError("a sum takes four exchanges")


def test_what_is_handed_over_is_what_each_said_with_the_mean_in_the_place_of_its_values() -> None:
    rows = Activations(torch.zeros(2, 4), None, None, None)
    pair = Both(slopes(1.0, 2.0), rows)
    given: dict[int, Message] = {0: pair, 1: Both(slopes(3.0, -2.0), rows), 2: Both(slopes(5.0, 0.0), rows)}
    for client, message in summed(given).items():
        assert isinstance(message, Both)
        assert message.second is given[client].second  # type: ignore[union-attr]
        assert message.first.step == 7  # type: ignore[union-attr]
        assert message.first.values.tolist() == [3.0, 0.0]  # type: ignore[union-attr]
        assert message.first.values.dtype == torch.float32  # type: ignore[union-attr]


def test_parts_and_tensors_keep_their_places_and_weights_their_dtypes() -> None:
    exact = {m: Both(slopes(float(m)), Exact(torch.tensor([m + 1.0, -m]))) for m in range(3)}
    for message in summed(dict(exact)).values():
        assert message.first.values.tolist() == [1.0]  # type: ignore[union-attr]
        assert message.second.values.tolist() == [2.0, -1.0]  # type: ignore[union-attr]
    weights = {m: Weights((torch.full((2,), float(m)).half(), torch.tensor([4.0 * m]))) for m in range(3)}
    for message in summed(dict(weights)).values():
        assert [each.tolist() for each in message.tensors] == [[1.0, 1.0], [4.0]]  # type: ignore[union-attr]
        assert [each.dtype for each in message.tensors] == [torch.float16, torch.float32]  # type: ignore[union-attr]


def test_what_says_nothing_of_theta_goes_as_it_is() -> None:
    rows = Activations(torch.zeros(2, 4), None, None, None)
    assert not any(is_summed(each) for each in (Nothing(), Join(0), rows, CutGradient(torch.zeros(1))))
    assert all(is_summed(each) for each in (slopes(1.0), Weights(()), Both(slopes(1.0), rows)))


WRONG: dict[str, tuple[int, Message, str]] = {
    "keys of another length": (0, Masking(0, torch.tensor([2]), torch.zeros(1, 95, dtype=torch.uint8)), "95 bytes"),
    "keys under another number": (0, Masking(0, torch.tensor([1]), torch.zeros(1, 96, dtype=torch.uint8)), "another"),
    "another phase": (1, Masking(2, torch.tensor([0, 1]), torch.zeros(2, 48, dtype=torch.uint8)), "1 is due"),
    "shares for somebody else": (1, Masking(1, torch.tensor([0, 9]), torch.zeros(2, 48, dtype=torch.uint8)), "cohort"),
    "a client twice": (1, Masking(1, torch.tensor([0, 0]), torch.zeros(2, 48, dtype=torch.uint8)), "one row each"),
    "rows of another number": (1, Masking(1, torch.tensor([0, 1]), torch.zeros(3, 48, dtype=torch.uint8)), r"\(2, by"),
    "no bytes": (1, Masking(1, torch.tensor([0, 1]), torch.zeros(2, 48)), "torch.float32"),
    "fewer values": (2, Slopes(7, torch.zeros(1, dtype=torch.int64)), "another shape"),
    "floats": (2, slopes(1.0, 2.0), "in torch.int64 are allowed"),
    "another message": (2, Weights((torch.zeros(2, dtype=torch.int64),)), "another shape"),
    "shares of some": (3, Masking(2, torch.tensor([0, 1]), torch.zeros(2, 16, dtype=torch.uint8)), "others than"),
    "short shares": (3, Masking(2, torch.tensor([0, 1, 2]), torch.zeros(3, 15, dtype=torch.uint8)), "15 bytes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_who_says_what_no_client_may_say_is_named(kind: str) -> None:
    exchange, message, says = WRONG[kind]
    given: dict[int, Message] = {m: slopes(1.0, 2.0) for m in range(3)}
    with pytest.raises(PeerError, match=says) as refused:
        summed(given, lambda at, said: message if at == exchange else said)
    assert refused.value.sender == 2


def test_no_phase_stands_for_the_masked_values() -> None:
    sums = Sums(RULES)
    talks = {m: masked_talk(m, 1, slopes(1.0), RULES) for m in range(3)}
    keys = sums.answers({m: next(talk) for m, talk in talks.items()}, {})
    sums.answers({m: talk.send(keys[m]) for m, talk in talks.items()}, {})  # type: ignore[index]
    none = Masking(-1, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.uint8))
    with pytest.raises(PeerError, match="client 0: Masking came, masked values are due"):
        sums.answers(dict.fromkeys(range(3), none), {})
