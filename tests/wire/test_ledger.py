"""The ledger adds up what was packed, split so that every byte has one place."""

import torch
from messages_by_kind import MESSAGES

from halfback.wire.messages import ROLES, Slopes
from halfback.wire.packing import Ledger, pack


def test_totals_are_the_lengths_of_the_messages() -> None:
    ledger = Ledger()
    for direction, times in (("up", 2), ("down", 3)):
        for _ in range(times):
            for message in MESSAGES.values():
                ledger.add(direction, message, pack(message))  # type: ignore[arg-type]
    once = sum(len(pack(message).data) for message in MESSAGES.values())
    assert ledger.total("up") == 2 * once
    assert ledger.total("down") == 3 * once


def test_roles_are_those_of_the_fields() -> None:
    ledger = Ledger()
    for message in MESSAGES.values():
        ledger.add("up", message, pack(message))
    kinds = ledger.bytes_by_kind["up"]
    assert set(kinds["Activations"]) == {"activations", "lengths", "labels", "sample_ids", "framing"}
    assert set(kinds["Slopes"]) == {"steps", "slopes", "framing"}
    assert set(kinds["Nothing"]) == {"framing"}
    assert {role for roles in kinds.values() for role in roles} <= {*ROLES, "framing"}
    assert kinds["Activations"]["lengths"] == 16  # four bytes for each of two texts, in two messages
    assert kinds["Slopes"] == {"steps": 8, "slopes": 8, "framing": 4 + 1 + 1 + 2 + 4}


def test_a_ledger_continues_from_a_checkpoint() -> None:
    first, second = Ledger(), Ledger()
    first.add("up", "Slopes", pack(Slopes(0, torch.zeros(2))))
    second.load_state_dict(first.state_dict())
    second.add("up", "Slopes", pack(Slopes(1, torch.zeros(2))))
    assert second.total("up") == 2 * len(pack(Slopes(0, torch.zeros(2))).data)
