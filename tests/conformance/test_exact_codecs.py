"""HO-SFL whose exact gradients go through codecs: against a plain loop in float64, from both sides of the link."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_float64_loops import LOCAL, STEPS, Vector, World, _gradient, _mean, _rounds
from test_hostile_server import spoil_answers
from torch import Tensor

from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError, UserError
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.wrapped import wrap
from halfback.wire.messages import Both, Encoded, Exact, Slopes
from halfback.wire.packing import unpack

SIGNS = {"codecs__slopes_up": ["sign"], "codecs__slopes_down": ["sign"]}
ALL = {"model__cut": 2, "algorithm__exact_blocks": "all", "algorithm__directions": 0, "bottom__lr": 1e-3}
PARTLY = {"clients": 3, "sampled_clients": 2}


class Feedback:
    """1-bit values with what they lost: rows of 256, the last one filled up with zeros, which take part."""

    def __init__(self) -> None:
        self.lost: Tensor | float = 0.0

    def sent(self, vector: Vector) -> Vector:
        flat = torch.cat([g.flatten() for g in vector.values()])
        rows = torch.cat([flat, flat.new_zeros(-len(flat) % 256)]).reshape(-1, 256) + self.lost
        size = rows.abs().mean(dim=1, keepdim=True)
        came = torch.where(rows < 0, -size, size)
        self.lost = rows - came
        pieces = came.flatten()[: len(flat)].split([g.numel() for g in vector.values()])
        return {n: piece.view_as(g) for (n, g), piece in zip(vector.items(), pieces, strict=True)}


def _loop(w: World) -> None:
    """Every client keeps what its signs lost, however long it is away; the server, what those of the mean lost."""
    bottom, top = w.rule("bottom"), w.rule("top")
    ups, down = {c: Feedback() for c in range(3)}, Feedback()
    for number, cohort, shares, batches in _rounds(w):
        for place in range(LOCAL):
            step = number * LOCAL + place
            found = [_gradient(lambda a, b, c=c: w.loss(a, b, batches[c][place]), w.theta, w.top) for c in cohort]  # noqa: B023
            exact = w.federation.server.party.agreed.replica.exact
            sent = [ups[c].sent({n: g[0][n] for n in exact}) for c, g in zip(cohort, found, strict=True)]
            top.step(w.top, _mean([g[1] for g in found], shares), step)
            bottom.step(w.theta, down.sent(_mean(sent, shares)), step)


def test_error_feedback_on_both_sides_is_the_plain_loop() -> None:
    """Two rounds of two steps, in which two of three clients of unequal size take part."""
    settings: dict[str, Any] = {"clients": 3, "steps": STEPS, "steps_per_round": LOCAL, "batch_size": 4}
    settings |= {"task__train_rows": 21, "partition__name": "dirichlet", "partition__alpha": 1.0, "seed": 5}
    settings |= {"bottom__optimizer": "momentum", "bottom__train": "norm", "bottom__weight_decay": 0.1}
    settings |= {"bottom__schedule": "linear", "bottom__warmup": 1, "top__schedule": "cosine", "top__warmup": 2}
    settings |= {"top__optimizer": "momentum", "top__lr": 1e-2, "top__weight_decay": 0.05}
    w = World("ho_sfl", settings | ALL | SIGNS | {"model__cut": 3})  # 448 values: a row, and a part of one
    theta = w.federation.server.party.agreed.replica
    assert len({c for number in range(STEPS // LOCAL) for c in w.cohort(number)}) == 3, "nobody was away"
    begun = dict(w.theta)
    small.run(w.federation, STEPS // LOCAL, steps=LOCAL)
    w.federation.server.agreed_bottom()
    _loop(w)
    for name, before in begun.items():
        moved, wish = theta.parameters[name].detach().double() - before, w.theta[name] - before
        # A weight near 1 is rounded at 6e-8 a step, on a way of 3e-4: measured 3e-4. A sign that rounding turned round
        # would be off by twice a row's mean, which is the way itself; of 448 values none is so near to zero.
        assert (moved - wish).abs().max() <= 1e-3 * max(wish.abs().max().item(), 1e-30), name


@pytest.mark.parametrize("chain", [["sign"], ["int8"], ["cast", "int4"]])
def test_all_are_sent_the_same_bytes_and_the_server_replays_what_they_say(chain: list[str]) -> None:
    changes = ALL | PARTLY | {"codecs__slopes_up": chain, "codecs__slopes_down": chain}
    simulation = small.built(small.images("ho_sfl", **changes)).federation
    said: dict[int, list[bytes]] = {}

    def listening(client: int, direction: str, data: bytes) -> None:
        message = unpack(data)
        if direction == "down" and isinstance(message, Both) and isinstance(message.second, Exact):
            assert isinstance(message.second.values, Encoded)
            said.setdefault(client, []).append(data)

    simulation.tap = listening
    small.run(simulation, 1, steps=2)
    one, other = said.values()
    assert one == other
    message: Any = simulation.client(next(iter(said))).near.receive(one[-1])
    assert torch.equal(simulation.server.party.agreed.rows[-1], message.second.values)


def test_what_is_lost_is_in_a_checkpoint_and_nothing_else_is_taken_for_it() -> None:
    simulation, other = (small.built(small.images("ho_sfl", **ALL, **PARTLY, **SIGNS)).federation for _ in range(2))
    small.run(simulation, 3)
    tensors, values = simulation.state()
    kept = {name for name in tensors if name.startswith("broadcast.") or ".link.slopes_up." in name}
    assert kept == {"broadcast.0"} | {f"client.{number}.link.slopes_up.0" for number in simulation.clients}
    assert all(tensors[name].any() for name in kept)
    with pytest.raises(UserError, match="the checkpoint can't be gone on from"):
        other.load_state(tensors | {"broadcast.none": torch.zeros(1)}, values)
    plain = small.built(small.images("ho_sfl", **ALL, **PARTLY)).federation
    with pytest.raises(UserError, match=r"tensor broadcast\.0 is there, and nothing has this name"):
        plain.load_state({name: tensor for name, tensor in tensors.items() if not name.startswith("recent.")}, values)


HOSTILE = 1
Spoilt = tuple[Callable[[Both], Any], type[Exception], str]


def _exact(change: Callable[[Any], Any]) -> Callable[[Both], Any]:
    return lambda m: replace(m, second=Exact(change(m.second.values)))  # type: ignore[union-attr]


SPOILT: dict[str, Spoilt] = {
    "fewer": (_exact(lambda v: v[1:]), PeerError, r"Exact.values: torch.float32 \(\d+,\) came, torch.float32 \("),
    "shape": (_exact(lambda v: v.view(1, -1)), PeerError, r"Exact.values: torch.float32 \(1, \d+\) came"),
    "dtype": (_exact(lambda v: v.double()), PeerError, "Exact.values: torch.float64"),
    "nan": (_exact(lambda v: v * torch.nan), Diverged, "Exact.values.* are not finite"),
    "step": (lambda m: replace(m, first=replace(m.first, step=7)), PeerError, "step.* 7 came, 0 is allowed"),
    "slopes": (
        lambda m: replace(m, first=Slopes(0, torch.zeros(1))),
        PeerError,
        r"Slopes.*\(1,\) came, (torch.float32 )?\(2,\) is allowed",
    ),
    "slopes-not-finite": (
        lambda m: replace(m, first=replace(m.first, values=m.first.values / 0)),  # type: ignore[union-attr]
        Diverged,
        "Slopes.* are not finite",
    ),
    "slopes-alone": (lambda m: m.first, PeerError, "Slopes came, SlopesAndExact is allowed"),
}
MIXED = {"model__cut": 2, "algorithm__exact_blocks": 1, "algorithm__directions": 2, "sampled_clients": 4}


@pytest.mark.parametrize("what", SPOILT)
def test_a_server_checks_exact_gradients(what: str) -> None:
    change, error, says = SPOILT[what]
    simulation = small.built(small.images("ho_sfl", **MIXED)).federation
    answer = simulation.server.algorithm.answer

    def spoiled(server: Server, messages: dict[int, Any]) -> Any:
        if isinstance(messages[HOSTILE], Both):
            wrong = change(messages[HOSTILE])
            messages = messages | {HOSTILE: wrong} if isinstance(wrong, Both) else {HOSTILE: wrong}
        return answer(server, messages)

    wrap(simulation, answer=spoiled)
    with pytest.raises(error, match=says) as caught:
        small.run(simulation, 1)
    assert f"client {HOSTILE}" in str(caught.value)
    assert simulation.server.party.agreed.rows == []


@pytest.mark.parametrize("what", SPOILT)
def test_a_device_checks_the_agreed_ones(what: str) -> None:
    change, error, says = SPOILT[what]
    simulation = small.built(small.images("ho_sfl", **MIXED)).federation
    before = _theta(simulation)

    def of_agreed(message: Both) -> Any:
        return change(message) if isinstance(message.second, Exact) else message

    spoil_answers(simulation, Both, of_agreed)
    with pytest.raises(error, match=says) as caught:
        small.run(simulation, 1)
    assert "server" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in _theta(simulation).items())


def test_exact_gradients_where_none_are_due() -> None:
    simulation = small.built(small.images("ho_sfl", algorithm__directions=2)).federation
    message = Both(Slopes(0, torch.zeros(2)), Exact(torch.zeros(5)))
    with pytest.raises(PeerError, match="client 1: SlopesAndExact came, Slopes is allowed"):
        simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: message})


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_tensor_where_signs_are_due_and_signs_where_a_tensor_is(direction: str) -> None:
    coded, plain = (small.built(small.images("ho_sfl", **ALL, **more)).federation for more in (SIGNS, {}))
    count = coded.server.party.agreed.replica.width(0)
    message = Both(Slopes(0, torch.zeros(0)), Exact(torch.ones(count)))
    said, _ = coded.server.broadcast.encode(torch.ones(count))  # type: ignore[union-attr]
    signs = replace(message, second=Exact(said))  # type: ignore[arg-type]
    for federation, wrong, allowed in ((coded, message, "encoded values is"), (plain, signs, "a tensor is")):
        near, far = federation.client(0).near, federation.server.end(0)
        data = (plain if wrong is message else coded).server.end(0).send(wrong).data
        with pytest.raises(PeerError, match=f"Exact.values: .* came, {allowed} allowed|at most .* allowed"):
            (far if direction == "up" else near).receive(data)


def _theta(simulation: Federation) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in simulation.server.party.agreed.replica.parameters.items()}


def test_the_sum_of_what_was_sent_follows_the_sum_of_what_was_meant() -> None:
    """The server's own feedback: what clients have decoded is what was agreed on, but for what is held back."""
    simulation = small.built(small.images("ho_sfl", **ALL, codecs__slopes_down=["sign"])).federation
    count = simulation.server.party.agreed.replica.width(0)
    broadcast = simulation.server.broadcast
    assert broadcast is not None
    meant, came = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for seed in range(20):
        vector = torch.randn(count, generator=torch.Generator().manual_seed(seed))
        meant += vector
        came += broadcast.encode(vector)[1]
    (lost,) = broadcast.tensors()
    # Twenty float32 roundings of values near 4.
    torch.testing.assert_close(came + lost.flatten()[:count], meant, rtol=0, atol=20 * 2**-22)
    assert math.sqrt(float((meant - came).square().mean())) < 4, "of normal values, 20 steps would lose this many"


def test_what_feedback_adds_up_beyond_all_floats_is_no_peers_fault() -> None:
    """One value among 256 that comes again and again is lost but for a 256th, and what is lost comes on top."""
    federation = small.built(small.images("ho_sfl", **ALL, **SIGNS)).federation
    broadcast = federation.server.broadcast
    assert broadcast is not None
    agreed = torch.zeros(federation.server.party.agreed.replica.width(0))
    agreed[3] = 1e38
    for _ in range(3):
        broadcast.encode(agreed)
    with pytest.raises(Diverged, match="agreed exact gradients are not finite"):
        broadcast.encode(agreed)
