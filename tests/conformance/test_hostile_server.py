"""What a device does with answers that are well-formed and wrong: one line that names the field, and no step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from halfback.config import RunConfig
from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.table import ROWS
from halfback.testing.wrapped import wrap
from halfback.wire.messages import Both, CutGradient, History, Losses, Message, Nothing, Slopes, Turns, Weights

Spoil = Callable[[Any], Message]
# (row, kind of the answer, how it is spoiled, error, what it says)
ANSWERS: dict[str, tuple[str, type[Message], Spoil, type[Exception], str]] = {
    "history-nan": (
        "ho_sfl",
        History,
        lambda m: History(0, torch.full((2, 3), torch.nan)),
        Diverged,
        "History: slopes from step 0 on are not finite",
    ),
    "history-columns": (
        "ho_sfl",
        History,
        lambda m: History(0, torch.zeros(2, 7)),
        PeerError,
        r"History: slopes torch.float32 \(2, 7\) came, torch.float32 with 3 a step",
    ),
    "history-flat": ("ho_sfl", History, lambda m: History(0, torch.zeros(3)), PeerError, r"slopes .* \(3,\) came"),
    "turns-where-none-are": (
        "ho_sfl",
        History,
        lambda m: Both(m, Turns(torch.zeros(0, dtype=torch.int32))),
        PeerError,
        "HistoryAndTurns came, History is allowed",
    ),
    "turns-number": (
        "hosl",
        History,
        lambda m: Both(m, Turns(torch.zeros(1, dtype=torch.int32))),
        PeerError,
        r"Turns.steps: torch.int32 \(1,\) came, torch.int32 \(0,\) from 0 on",
    ),
    "turns-dtype": (
        "hosl",
        History,
        lambda m: Both(m, Turns(torch.zeros(0))),
        PeerError,
        r"Turns.steps: torch.float32 \(0,\) came",
    ),
    "turns-before-the-run": (
        "hosl",
        History,
        lambda m: Both(History(0, torch.zeros(1, 2)), Turns(torch.tensor([-1], dtype=torch.int32))),
        PeerError,
        r"Turns.steps: torch.int32 \(1,\) came, torch.int32 \(1,\) from 0 on",
    ),
    "history-later": (
        "ho_sfl",
        History,
        lambda m: replace(m, first=5),
        PeerError,
        "History: step 5 came, 0 is allowed",
    ),
    "history-float64": ("ho_sfl", History, lambda m: replace(m, slopes=m.slopes.double()), PeerError, "torch.float64"),
    "gradient-size": (
        "ho_sfl",
        CutGradient,
        lambda m: CutGradient(m.gradient[:1]),
        PeerError,
        r"CutGradient.gradient: torch.float32 \(1, 16, 16, 16\) came, torch.float32 \(8, 16, 16, 16\) is allowed",
    ),
    "gradient-flat": ("ho_sfl", CutGradient, lambda m: CutGradient(m.gradient.flatten()), PeerError, "came"),
    "gradient-dtype": ("ho_sfl", CutGradient, lambda m: CutGradient(m.gradient.half()), PeerError, "torch.float16"),
    "gradient-nan": (
        "ho_sfl",
        CutGradient,
        lambda m: CutGradient(m.gradient * torch.nan),
        Diverged,
        "CutGradient.gradient is not finite",
    ),
    "gradient-first-order": ("split_lora", CutGradient, lambda m: CutGradient(m.gradient[0]), PeerError, "CutGradient"),
    "slopes-number": (
        "ho_sfl",
        Slopes,
        lambda m: Slopes(m.step, torch.zeros(7)),
        PeerError,
        r"Slopes: slopes \(7,\) came, \(3,\) is allowed",
    ),
    "slopes-step": ("ho_sfl", Slopes, lambda m: Slopes(1, m.values), PeerError, "Slopes: step 1 came, 0 is allowed"),
    "slopes-inf": ("zo_sfl", Slopes, lambda m: Slopes(m.step, m.values / 0), Diverged, "Slopes: .* not finite"),
    "losses-number": ("zo_sfl", Losses, lambda m: Losses(torch.zeros(2)), PeerError, r"Losses.values: .*\(2,\) came"),
    "losses-nan": ("zo_sfl", Losses, lambda m: Losses(m.values * torch.nan), Diverged, "Losses.values is not finite"),
    "weights-none": ("split_lora", Weights, lambda m: Weights(()), PeerError, "Weights.tensors: 0 came"),
    "weights-broadcast": (
        "split_lora",
        Weights,
        lambda m: Weights(tuple(t.flatten()[:1] for t in m.tensors)),
        PeerError,
        r"Weights.tensors, body\.stem.*\(1,\) came",
    ),
    "weights-nan": (
        "split_lora",
        Weights,
        lambda m: Weights(tuple(t * torch.nan for t in m.tensors)),
        Diverged,
        "Weights.tensors, .* of server is not finite",
    ),
    "another-kind-for-history": ("ho_sfl", History, lambda m: Nothing(), PeerError, "Nothing came, History is allowed"),
    "another-kind-for-gradient": ("ho_sfl", CutGradient, lambda m: Nothing(), PeerError, "CutGradient is allowed"),
    "another-kind-for-slopes": ("zo_sfl", Slopes, lambda m: Nothing(), PeerError, "Slopes is allowed"),
    "another-kind-for-loss": ("zo_sfl", Losses, lambda m: Nothing(), PeerError, "Losses is allowed"),
    "another-kind-for-weights": ("split_lora", Weights, lambda m: Nothing(), PeerError, "Weights is allowed"),
}


def config_of(row: str) -> RunConfig:
    return small.images(ROWS[row].name, **{k.replace(".", "__"): v for k, v in ROWS[row].settings.items()})


def spoil_answers(simulation: Federation, kind: type[Message], change: Spoil) -> None:
    answer = simulation.server.algorithm.answer

    def spoiled(server: Server, messages: Any) -> Any:
        return {n: change(m) if isinstance(m, kind) else m for n, m in answer(server, messages).items()}

    wrap(simulation, answer=spoiled)


@pytest.mark.parametrize("what", ANSWERS)
def test_a_device_refuses(what: str) -> None:
    row, kind, change, error, said = ANSWERS[what]
    simulation = small.built(config_of(row)).federation
    before = {name: tensor.clone() for name, tensor in simulation.server.bottom.state_dict().items()}
    spoil_answers(simulation, kind, change)
    with pytest.raises(error, match=said) as caught:
        small.run(simulation, 1)
    assert "\n" not in str(caught.value)
    assert "server" in str(caught.value)
    after = simulation.server.bottom.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_repeated_row_does_not_set_a_client_back() -> None:
    simulation = small.built(config_of("ho_sfl")).federation
    small.run(simulation, 3)
    client = next(iter(simulation.clients.values())).party
    client.theta.replay(client.theta.position, simulation.server.party.agreed.missed(client.theta.position))
    assert client.theta.position == 3
    client.theta.replay(0, simulation.server.party.agreed.rows[0].unsqueeze(0))
    assert client.theta.position == 3
