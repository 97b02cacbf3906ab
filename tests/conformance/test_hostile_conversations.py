"""Each algorithm's own conversation, spoiled by either side: one line that names who did it and what is allowed.

`test_hostile_peers` and `test_hostile_server` go through every way to spoil a field; here is one a kind, to show that
each algorithm looks at what it is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_hostile_server import spoil_answers

from halfback.algorithms import algorithms
from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.table import ROWS
from halfback.testing.wrapped import wrap
from halfback.wire.messages import (
    Activations,
    Both,
    CutGradient,
    HandOver,
    History,
    Join,
    Losses,
    Message,
    Nothing,
    Share,
    Slopes,
    Weights,
)

HOSTILE = 3


@dataclass(frozen=True)
class Spoiled:
    """One client's (or the server's) first message of a kind is changed, or with `at`, a later one."""

    kind: type[Message]
    change: Callable[[Any], Any]
    error: type[Exception]
    says: str
    at: int = 1


def _short(kind: type[Weights] | type[HandOver]) -> Spoiled:
    return Spoiled(
        kind, lambda m: kind(m.tensors[:-1]), PeerError, rf"{kind.__name__}.tensors: \d+ came, \d+ are allow"
    )


def _not_finite(kind: type[Weights] | type[HandOver]) -> Spoiled:
    def change(message: Any) -> Message:
        return kind((*message.tensors[:-1], message.tensors[-1] * torch.nan))

    return Spoiled(kind, change, Diverged, rf"{kind.__name__}.tensors, .* is not finite")


def _instead(kind: type[Message], other: Message, says: str) -> Spoiled:
    return Spoiled(kind, lambda _: other, PeerError, says)


AHEAD = Spoiled(Join, lambda _: Join(99), PeerError, r"Join.position: 99 came, 0 to \d are allowed")
LABELS = Spoiled(
    Activations, lambda m: replace(m, labels=m.labels + 99), PeerError, r"Activations.labels: \d+ came, 0 to 9 are"
)
NARROW = Spoiled(Activations, lambda m: replace(m, hidden=m.hidden[:, 1:]), PeerError, "Activations.hidden: ")
EARLY = Spoiled(Activations, lambda m: replace(m, labels=None), PeerError, "a probe came before the batch")
UNLABELLED = replace(EARLY, says="Activations.labels: none came, integers are needed")
SHORT_PROBE = Spoiled(
    Activations, lambda m: replace(m, hidden=m.hidden[:1]), PeerError, "a probe came before the batch", at=2
)
BAD_PROBE = Spoiled(
    Activations, lambda m: replace(m, hidden=m.hidden / 0), Diverged, "Activations.hidden of client 3", at=2
)
UNCALLED = [_instead(Join, CutGradient(torch.zeros(1)), "CutGradient: this algorithm expects no such message")]
BATCHES = [NARROW, LABELS, UNLABELLED]
AVERAGED = [_short(Weights), _not_finite(Weights), _instead(Weights, HandOver(()), "HandOver: this algorithm expects")]
NEXT = Both  # slopes and the next step's activations


def _first(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda m: replace(m, first=change(m.first))


def _second(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda m: replace(m, second=change(m.second))


BY_A_CLIENT: dict[str, list[Spoiled]] = {
    "ho_sfl_pipelined": [
        AHEAD,
        *BATCHES,
        *(replace(spoiled, kind=NEXT, change=_second(spoiled.change)) for spoiled in BATCHES),
        Spoiled(NEXT, _first(lambda m: replace(m, step=1)), PeerError, "Slopes.step: 1 came, 0 is allowed"),
        Spoiled(
            NEXT,
            _first(lambda m: replace(m, values=m.values[:1])),
            PeerError,
            r"Slopes.values: .* \(1,\) came, .* \(3,\)",
        ),
        Spoiled(
            NEXT,
            _first(lambda m: replace(m, values=m.values / 0)),
            Diverged,
            "Slopes.values of client 3 are not finite",
        ),
        Spoiled(
            NEXT, _second(lambda m: replace(m, hidden=m.hidden / 0)), Diverged, "step 1: Activations.hidden of client 3"
        ),
        _instead(Join, Slopes(0, torch.zeros(3)), "Slopes: they came before the batch that they belong to"),
        _instead(Activations, Slopes(0, torch.zeros(3)), "Slopes: they came before the batch that they belong to"),
        Spoiled(Slopes, lambda m: replace(m, step=0), PeerError, "Slopes.step: 0 came, 1 is allowed"),
        Spoiled(Slopes, lambda m: replace(m, values=m.values * torch.nan), Diverged, "Slopes.values of client 3"),
        *UNCALLED,
    ],
    "hosl": [AHEAD, NARROW, EARLY, SHORT_PROBE, BAD_PROBE, *UNCALLED],
    "sfl_v1": [*BATCHES, *AVERAGED, *UNCALLED],
    "sfl_v2": [*BATCHES, *AVERAGED, *UNCALLED],
    "vanilla_split": [
        *BATCHES,
        _short(HandOver),
        _not_finite(HandOver),
        _instead(HandOver, Weights(()), "Weights: this algorithm expects no such message"),
        *UNCALLED,
    ],
    "cse_fsl": [*BATCHES, *AVERAGED, *UNCALLED],
    "fsl_sage": [*BATCHES, *AVERAGED, *UNCALLED],
    "heron_sfl": [*BATCHES, *AVERAGED, *UNCALLED],
    "mu_splitfed": [NARROW, LABELS, EARLY, SHORT_PROBE, BAD_PROBE, *AVERAGED, *UNCALLED],
    "decomfl": [
        AHEAD,
        Spoiled(Slopes, lambda m: replace(m, step=1), PeerError, "Slopes.step: 1 came, 0 is allowed"),
        # Of one local step instead of two.
        Spoiled(Slopes, lambda m: Slopes(0, m.values[:3]), PeerError, r"Slopes.values: .* \(3,\) came, .* \(6,\) is"),
        Spoiled(Slopes, lambda m: Slopes(0, m.values.view(2, 3)), PeerError, r"Slopes.values: .* \(2, 3\) came"),
        Spoiled(Slopes, lambda m: Slopes(0, m.values * torch.nan), Diverged, "Slopes.values of client 3 are not fin"),
        *UNCALLED,
    ],
    "spry": [
        AHEAD,
        Spoiled(Slopes, lambda m: replace(m, step=1), PeerError, "Slopes.step: 1 came, 0 is allowed"),
        # As if for every group.
        Spoiled(
            Slopes, lambda m: Slopes(0, m.values.repeat(4)), PeerError, r"Slopes.values: .* \(8,\) came, .* \(2,\) is"
        ),
        Spoiled(Slopes, lambda m: Slopes(0, m.values * torch.nan), Diverged, "Slopes.values of client 3 are not fin"),
        *UNCALLED,
    ],
    "fedavg": [*AVERAGED, *UNCALLED],
}

TAKEN = [_short(Weights), _not_finite(Weights), _instead(Weights, Nothing(), "Nothing came, Weights is allowed")]
LOST = [
    Spoiled(Losses, lambda m: Losses(torch.zeros(2)), PeerError, r"Losses.values: .*\(2,\) came"),
    Spoiled(Losses, lambda m: Losses(m.values * torch.nan), Diverged, "Losses.values is not finite"),
    _instead(Losses, Nothing(), "Nothing came, Losses is allowed"),
]
GRADIENT = [
    Spoiled(CutGradient, lambda m: CutGradient(m.gradient[:1]), PeerError, "CutGradient.gradient: .* came"),
    _instead(CutGradient, Nothing(), "Nothing came, CutGradient is allowed"),
]
PAST = [
    Spoiled(History, lambda m: replace(m, first=2), PeerError, "History: step 2 came, 0 is allowed"),
    Spoiled(History, lambda m: History(0, torch.zeros(1, 7)), PeerError, r"History: slopes .* \(1, 7\) came"),
]
BACK = Both  # agreed slopes and the next cut gradient
BY_THE_SERVER: dict[str, list[Spoiled]] = {
    "ho_sfl_pipelined": [
        *PAST,
        *GRADIENT,
        Spoiled(
            BACK, _second(lambda m: replace(m, gradient=m.gradient[:1])), PeerError, "CutGradient.gradient: .* came"
        ),
        Spoiled(
            BACK, _second(lambda m: replace(m, gradient=m.gradient / 0)), Diverged, "CutGradient.gradient is not finite"
        ),
        Spoiled(
            BACK,
            _first(lambda m: replace(m, values=m.values[:1])),
            PeerError,
            r"Slopes: slopes \(1,\) came, \(3,\) is all",
        ),
        Spoiled(BACK, _first(lambda m: replace(m, step=1)), PeerError, "Slopes: step 1 came, 0 is allowed"),
        Spoiled(
            BACK,
            _first(lambda m: replace(m, values=m.values / 0)),
            Diverged,
            "Slopes: slopes from step 0 on are not fin",
        ),
        _instead(BACK, Nothing(), "Nothing came, SlopesAndCutGradient is allowed"),
        # Agreed slopes withheld.
        Spoiled(BACK, lambda m: m.second, PeerError, "CutGradient came, SlopesAndCutGradient is allowed"),
        Spoiled(Slopes, lambda m: replace(m, step=0), PeerError, "Slopes: step 0 came, 1 is allowed"),
        _instead(Slopes, Nothing(), "Nothing came, Slopes is allowed"),
    ],
    "hosl": [*PAST, *LOST],
    "sfl_v1": [*TAKEN, *GRADIENT],
    "sfl_v2": [*TAKEN, *GRADIENT],
    "vanilla_split": [
        _short(HandOver),
        _not_finite(HandOver),
        _instead(HandOver, Weights(()), "Weights came, HandOver is allowed"),
        *GRADIENT,
    ],
    "cse_fsl": TAKEN,
    "fsl_sage": TAKEN,
    "heron_sfl": TAKEN,
    "mu_splitfed": [*TAKEN, *LOST],
    "decomfl": [
        *PAST,
        Spoiled(Slopes, lambda m: Slopes(0, m.values[:3]), PeerError, r"Slopes: slopes \(3,\) came, \(6,\) is allowed"),
        Spoiled(Slopes, lambda m: Slopes(1, m.values), PeerError, "Slopes: step 1 came, 0 is allowed"),
        Spoiled(Slopes, lambda m: Slopes(0, m.values / 0), Diverged, "Slopes: slopes from step 0 on are not finite"),
        _instead(Slopes, Nothing(), "Nothing came, Slopes is allowed"),
    ],
    "spry": [
        Spoiled(Share, lambda m: replace(m, first=2), PeerError, "Share: step 2 came, 0 is allowed"),
        Spoiled(Share, lambda m: replace(m, slopes=torch.zeros(1, 2)), PeerError, r"Share: slopes .* \(1, 2\) came"),
        Spoiled(Share, lambda m: replace(m, group=4), PeerError, "Share.group: 4 came, 0 to 3 are allowed"),
        Spoiled(Share, lambda m: replace(m, group=-1), PeerError, "Share.group: -1 came"),
        _instead(Share, Nothing(), "Nothing came, Share is allowed"),
        Spoiled(Slopes, lambda m: Slopes(0, m.values[:2]), PeerError, r"Slopes: slopes \(2,\) came, \(8,\) is allowed"),
        Spoiled(Slopes, lambda m: Slopes(0, m.values / 0), Diverged, "Slopes: slopes from step 0 on are not finite"),
    ],
    "fedavg": TAKEN,
}


def _cases(table: dict[str, list[Spoiled]]) -> list[Any]:
    return [
        pytest.param(name, spoiled, id=f"{name}-{spoiled.kind.__name__}-{number}")
        for name, entries in table.items()
        for number, spoiled in enumerate(entries)
    ]


def _built(name: str) -> Federation:
    config = small.images(name, **ROWS[name].changes(sampled_clients=4, batch_size=4))
    return small.built(config).federation


def _bits(simulation: Federation) -> dict[str, torch.Tensor]:
    named = {f"θ.{name}": p for name, p in simulation.server.party.agreed.replica.parameters.items()}
    return {
        name: p.detach().clone() for name, p in {**named, **simulation.server.party.top.module.state_dict()}.items()
    }


def test_every_conversation_is_here() -> None:
    elsewhere = {"ho_sfl", "zo_sfl", "split_lora", "frozen_bottom", "ho_fl"}
    speaking = {name for name in ROWS if name == ROWS[name].name and ROWS[name].needs.agreement.name != "alone"}
    assert set(BY_A_CLIENT) == set(BY_THE_SERVER) == speaking - elsewhere


@pytest.mark.parametrize(("name", "spoiled"), _cases(BY_A_CLIENT))
def test_a_server_refuses(name: str, spoiled: Spoiled) -> None:
    """Also in the middle of a cohort: the server's parts are in their places afterwards."""
    simulation = _built(name)
    answer, seen, descent = simulation.server.algorithm.answer, 0, simulation.server.party.top.descent
    optimizer = None if descent is None else descent.optimizer
    shared = dict(simulation.server.party.top.module.named_parameters())

    def listening(server: Server, messages: dict[int, Any]) -> Any:
        nonlocal seen
        if isinstance(messages.get(HOSTILE), spoiled.kind):
            seen += 1
            if seen == spoiled.at:
                wrong = spoiled.change(messages[HOSTILE])
                mixed = type(wrong) is not spoiled.kind  # a whole cohort of them: mixed kinds are the engine's affair
                messages = {HOSTILE: wrong} if mixed else messages | {HOSTILE: wrong}
        return answer(server, messages)

    wrap(simulation, answer=listening)
    with pytest.raises(spoiled.error, match=spoiled.says) as caught:
        small.run(simulation, 1, steps=2)
    assert f"client {HOSTILE}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert simulation.server.party.top.descent is descent
    assert descent is None or descent.optimizer is optimizer
    now = dict(simulation.server.party.top.module.named_parameters())
    assert all(now[key] is parameter for key, parameter in shared.items())


@pytest.mark.parametrize(("name", "spoiled"), _cases(BY_THE_SERVER))
def test_a_device_refuses(name: str, spoiled: Spoiled) -> None:
    simulation = _built(name)
    before = _bits(simulation) if spoiled.kind in (Weights, HandOver, History) else None  # first in a round
    spoil_answers(simulation, spoiled.kind, spoiled.change)
    with pytest.raises(spoiled.error, match=spoiled.says) as caught:
        small.run(simulation, 1, steps=2)
    assert "server" in str(caught.value)
    assert "\n" not in str(caught.value)
    if before is not None:
        assert all(torch.equal(before[key], tensor) for key, tensor in _bits(simulation).items())


@pytest.mark.parametrize("name", ["mezo", "centralised"])
@pytest.mark.parametrize("message", [Join(0), Slopes(0, torch.zeros(1)), Weights(())])
def test_one_machine_hears_nobody(name: str, message: Message) -> None:
    server = _built(name).server
    with pytest.raises(PeerError, match=f"client {HOSTILE}: {type(message).__name__}: this algorithm expects no such"):
        algorithms()[name]().answer(server, {HOSTILE: message})


@pytest.mark.parametrize("name", ["sfl_v1", "mu_splitfed", "hosl", "zo_sfl", "ho_sfl_pipelined"])
def test_nothing_is_kept_beyond_its_round(name: str) -> None:
    simulation = _built(name)
    small.run(simulation, 1, steps=2)
    memory = simulation.server.party.memory
    assert memory is None or memory == type(memory)()
