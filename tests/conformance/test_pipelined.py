"""Pipelined HO-SFL: an exchange a step, late by one step and no more, and consistent when a client leaves."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from halfback.engine.federation import Federation
from halfback.errors import PeerError
from halfback.models.cut import install
from halfback.parties.holdings import Round
from halfback.parties.server import ByClient, Server
from halfback.testing import small
from halfback.testing.wrapped import wrap
from halfback.wire.messages import Both, Message, kinds_of, name_of
from halfback.zeroth.directions import direction_of
from halfback.zeroth.slopes import Cotangent, Probe, estimate_slopes

P = 3
_ADAMW = {"algorithm__directions": P, "bottom__optimizer": "adamw", "bottom__lr": 1e-3}
_PLAIN = {"algorithm__directions": P, "top__optimizer": "sgd", "top__lr": 1e-2}


def _built(name: str = "ho_sfl_pipelined", **changes: Any) -> Federation:
    return small.built(small.images(name, **{**_ADAMW, **changes})).federation


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_round_costs_one_exchange_a_step_and_one_more(steps: int) -> None:
    said: dict[str, list[str]] = {}
    for name in ("ho_sfl", "ho_sfl_pipelined"):
        simulation = _built(name)
        answer, kinds = simulation.server.algorithm.answer, said.setdefault(name, [])

        def listening(server: Server, messages: Any, answer: Any = answer, kinds: list[str] = kinds) -> Any:
            answers = answer(server, messages)
            kinds.append(" ".join(name_of(kinds_of(next(iter(each.values())))) for each in (messages, answers)))
            return answers

        wrap(simulation, answer=listening)
        small.run(simulation, 1, steps=steps)
        assert len(simulation.server.party.agreed.rows) == simulation.server.party.steps == steps
    join, first, last = "Join History", "Activations CutGradient", "Slopes Slopes"
    assert said["ho_sfl"] == [join, *[first, last] * steps]
    assert said["ho_sfl_pipelined"] == [join, first, *["SlopesAndActivations SlopesAndCutGradient"] * (steps - 1), last]
    assert len(said["ho_sfl_pipelined"]) - 1 == steps + 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="forward"),
        pytest.param({"algorithm__estimator": "central", "algorithm__clip_samples": 0.05}, id="central-clipped"),
        pytest.param({"algorithm__estimator": "forward_ad", "model__cut": [1, 2]}, id="forward_ad-mixed-cuts"),
        pytest.param({"codecs__activations_up": ["int8"], "codecs__gradient_down": ["cast"]}, id="codecs"),
    ],
)
def test_rounds_of_one_step_are_those_of_ho_sfl(changes: dict[str, Any]) -> None:
    """To the bit, and in bytes."""
    plain, pipelined = (_built(name, **changes) for name in ("ho_sfl", "ho_sfl_pipelined"))
    assert small.run(plain, 4) == small.run(pipelined, 4)
    small.assert_equal_states(plain, pipelined)
    small.run(plain, 1, first=4, steps=3)
    small.run(pipelined, 1, first=4, steps=3)
    assert not torch.equal(
        plain.server.party.agreed.rows[-1], pipelined.server.party.agreed.rows[-1]
    )  # and those of several are not


@pytest.mark.parametrize("steps", [2, 4])
def test_the_update_is_late_by_one_step_to_the_bit(steps: int) -> None:
    """Against a loop without messages, whose update of a step waits until the next step has been measured."""
    run, by_hand = _built(), _built()
    losses = small.run(run, 3, steps=steps)
    server, bottom = by_hand.server.party, by_hand.server.bottom
    optimizer = server.top.first_order.optimizer
    assert optimizer is not None
    for number in range(3):
        waiting: Tensor | None = None
        taken = []
        for step in range(number * steps, (number + 1) * steps):
            optimizer.zero_grad()
            rows = []
            for client in by_hand.server.cohort(number):
                party = by_hand.client(client).party
                (batch,) = party.feed.batches(Round(number, 1, step))
                with torch.no_grad():
                    hidden = bottom(batch.inputs)
                leaf = hidden.requires_grad_()
                loss = nn.functional.cross_entropy(server.top.module(leaf, None), batch.labels)
                loss.backward()
                taken.append(loss.item())
                assert leaf.grad is not None
                slopes = estimate_slopes(
                    lambda batch=batch: bottom(batch.inputs),  # type: ignore[misc]
                    bottom,
                    server.agreed.replica.parameters,
                    Cotangent.at(leaf.grad, hidden),
                    server.agreed.replica.seeds(P, step=step),
                    Probe(P).settled(server.agreed.replica.parameters, torch.float32),
                )
                rows.append(slopes.float().double())
            for parameter in server.top.module.parameters():
                if parameter.grad is not None:
                    parameter.grad /= len(rows)
            optimizer.step()
            if waiting is not None:
                server.agreed.replica.replay(step - 1, waiting)
            waiting = torch.stack(rows).mean(dim=0).float().unsqueeze(0)
            server.agreed.rows.append(waiting[0])
        assert waiting is not None
        server.agreed.replica.replay(step, waiting)
        assert sum(taken) / len(taken) == losses[number]
    run.server.agreed_bottom()
    for mine, theirs in zip(run.server.party.agreed.rows, server.agreed.rows, strict=True):
        assert torch.equal(mine, theirs)
    for part, other in ((run.server.bottom, bottom), (run.server.party.top.module, server.top.module)):
        named = dict(other.named_parameters())
        assert [name for name, p in part.named_parameters() if not torch.equal(p, named[name])] == []


def test_the_update_is_late_by_one_step_in_plain_arithmetic() -> None:
    """θ_{t+1} = θ_t − η ĝ_{t−1}, and the top W_{t+1} = W_t − η ∂ℓ/∂W at (θ_t, W_t): from copies, with no engine at all.

    Slopes are taken as products with the gradient of the bottom by backpropagation: the exact ones, `forward_ad`.
    """
    simulation = _built(**_PLAIN, algorithm__estimator="forward_ad", bottom__optimizer="sgd", bottom__lr=1e-2)
    server, bottom = simulation.server.party, simulation.server.bottom
    theta = {name: p.detach().clone() for name, p in server.agreed.replica.parameters.items()}
    weights = {name: p.detach().clone() for name, p in server.top.module.named_parameters()}
    waiting: dict[str, Tensor] | None = None
    cohort, steps = simulation.server.cohort(0), 4
    expected = []
    for step in range(steps):
        of_bottom, of_top = ({name: torch.zeros_like(p) for name, p in part.items()} for part in (theta, weights))
        for client in cohort:
            batch = simulation.client(client).party.feed.data.batch(step)
            here, above = ({n: p.clone().requires_grad_() for n, p in part.items()} for part in (theta, weights))
            hidden = functional_call(bottom, here, (batch.inputs,))
            loss = nn.functional.cross_entropy(functional_call(server.top.module, above, (hidden, None)), batch.labels)
            gradients = torch.autograd.grad(loss, [*here.values(), *above.values()])
            for total, gradient in zip((*of_bottom.values(), *of_top.values()), gradients, strict=True):
                total += gradient / len(cohort)
        seeds = [server.agreed.replica.directions.seed_of(step, p) for p in range(P)]
        directions = [{n: direction_of(seed, n, p, law="rademacher") for n, p in theta.items()} for seed in seeds]
        slopes = [sum(torch.sum(of_bottom[n] * u[n]).item() for n in theta) for u in directions]
        expected.append(slopes)
        estimate = {n: sum(v * u[n] for v, u in zip(slopes, directions, strict=True)) / P for n in theta}
        weights = {n: p - 1e-2 * of_top[n] for n, p in weights.items()}
        if waiting is not None:
            theta = {n: p - 1e-2 * waiting[n] for n, p in theta.items()}
        waiting = estimate  # type: ignore[assignment]
    assert waiting is not None
    theta = {n: p - 1e-2 * waiting[n] for n, p in theta.items()}
    small.run(simulation, 1, steps=steps)
    simulation.server.agreed_bottom()
    # Float32 sums in another order: a slope is a sum over some thousands of coordinates.
    torch.testing.assert_close(torch.stack(server.agreed.rows), torch.tensor(expected), rtol=2e-3, atol=2e-4)
    for name, tensor in theta.items():
        torch.testing.assert_close(server.agreed.replica.parameters[name].detach(), tensor, rtol=0, atol=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(dict(server.top.module.named_parameters())[name].detach(), tensor, rtol=0, atol=1e-5)


def test_the_loss_falls_with_pipelined_steps() -> None:
    simulation = _built(clients=2, task__train_rows=16, top__lr=1e-2)
    losses = small.run(simulation, 6, steps=5)
    assert losses[-1] < 0.5 * losses[0], losses


class Carried:
    """The conversations of a cohort whose clients have replicas of their own; a client may be cut off."""

    def __init__(self, **changes: Any) -> None:
        self.federation = _built(clients=3, sampled_clients=3, **changes)
        agreed = self.federation.server.party.agreed.replica
        for number in range(3):
            own = {name: nn.Parameter(p.detach().clone()) for name, p in agreed.parameters.items()}
            self.federation.client(number).party.theta.replica = agreed.alike(own)

    def round(self, number: int, *, steps: int, leaves: int | None = None, before: int = 0, heard: bool = True) -> None:
        """Client `leaves` is gone before exchange `before` of the round is answered, or if `heard`, right after it."""
        simulation, answers = self.federation, dict[int, Message | None]()
        simulation.server.party.round = round = Round(number, steps, number * steps)
        talks: dict[int, Generator[Message, Any, None]] = {
            client: simulation.server.algorithm.client_round(simulation.client(client).party, round)
            for client in range(3)
        }
        for exchange in range(steps + 2):
            messages = {client: self._speak(client, talk, answers.get(client)) for client, talk in talks.items()}
            if exchange == before and not heard:
                messages.pop(leaves, None)  # type: ignore[arg-type]
            answers = dict(simulation.server.algorithm.answer(simulation.server.party, messages))
            if exchange == before and leaves is not None:
                talks.pop(leaves).close()
        for client, talk in talks.items():
            with pytest.raises(StopIteration):
                self._speak(client, talk, answers[client])

    def _speak(self, client: int, talk: Generator[Message, Any, None], answer: Message | None) -> Message:
        party = self.federation.client(client).party
        install(self.federation.server.part, party.theta.replica.parameters)
        return talk.send(answer)


STEPS = 4


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "answered-and-gone"])
@pytest.mark.parametrize("exchange", range(STEPS + 2))
def test_a_client_that_leaves_in_mid_round_is_caught_up_in_a_later_one(exchange: int, heard: bool) -> None:
    """The rest go on without it, and with its next `Join` it has their bits."""
    carried = Carried()
    server = carried.federation.server.party
    carried.round(0, steps=STEPS)
    carried.round(1, steps=STEPS, leaves=1, before=exchange, heard=heard)
    assert len(server.agreed.rows) == server.steps == 2 * STEPS
    assert server.memory is None
    gone, *there = (carried.federation.client(client).party for client in (1, 0, 2))
    assert STEPS <= gone.theta.position == gone.theta.replica.position < 2 * STEPS
    assert all(client.theta.position == 2 * STEPS for client in there)
    carried.round(2, steps=STEPS)
    server.agreed.catch_up()
    for client in (gone, *there):
        assert client.theta.position == client.theta.replica.position == len(server.agreed.rows) == 3 * STEPS
        for name, parameter in server.agreed.replica.parameters.items():
            assert torch.equal(client.theta.replica.parameters[name], parameter)
            for moment, by_name in server.agreed.replica.moments.items():
                assert torch.equal(client.theta.replica.moments[moment][name], by_name[name])


def test_the_mean_is_over_those_who_are_there() -> None:
    """Slopes of a client that was cut off before it could say them count nowhere; its batch had moved the top."""
    whole, cut_off = Carried(), Carried()
    whole.round(0, steps=2)
    cut_off.round(0, steps=2, leaves=2, before=1)
    one, other = (carried.federation.server.party.agreed.rows for carried in (whole, cut_off))
    assert not torch.equal(one[0], other[0])
    alone = Carried()
    alone.round(0, steps=2, leaves=2, before=2, heard=False)  # its first slopes are lost on the way
    assert torch.equal(other[0], alone.federation.server.party.agreed.rows[0])
    assert torch.equal(other[1], alone.federation.server.party.agreed.rows[1])


@pytest.mark.parametrize("field", ["labels", "values"])
def test_a_refused_exchange_moves_nothing_and_can_be_answered_without_its_sender(field: str) -> None:
    """Two steps are in one exchange: neither the agreed one nor the top's may be taken before both are looked at."""
    simulation = _built(sampled_clients=4)
    algorithm, hostile, asked = simulation.server.algorithm, 3, 0
    answer = algorithm.answer

    def spoiled(server: Server, messages: dict[int, Any]) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            said = messages[hostile]
            labels, slopes = said.second, said.first
            if field == "labels":
                labels = replace(labels, labels=labels.labels + 99)
            else:
                slopes = replace(slopes, values=slopes.values[:1])
            messages = messages | {hostile: Both(slopes, labels)}
            before = {name: tensor.clone() for name, tensor in server.top.module.state_dict().items()}
            with pytest.raises(PeerError, match=f"client {hostile}: "):
                answer(server, messages)
            assert all(torch.equal(before[name], tensor) for name, tensor in server.top.module.state_dict().items())
            assert (server.agreed.rows, server.steps, len(server.losses)) == ([], 1, 4)
            answers = dict(answer(server, {m: said for m, said in messages.items() if m != hostile}))
            assert (len(server.agreed.rows), server.steps) == (1, 2)
            raise Answered(answers)
        return answer(server, messages)

    wrap(simulation, answer=spoiled)
    with pytest.raises(Answered) as caught:
        small.run(simulation, 1, steps=3)
    assert set(caught.value.answers) == {0, 1, 2}


class Answered(Exception):
    """Ends a run whose engine doesn't leave clients out."""

    def __init__(self, answers: dict[int, Message]) -> None:
        super().__init__()
        self.answers = answers


def test_a_round_that_everyone_left_is_over() -> None:
    """What was under way is lost: slopes for it are refused, and the next round starts from what was agreed on."""
    carried = Carried()
    algorithm, server = carried.federation.server.algorithm, carried.federation.server.party
    carried.round(0, steps=2)
    talk = algorithm.client_round(carried.federation.client(0).party, Round(1, 2, 2))
    answer: Message | None = None
    for _ in range(2):
        answer = algorithm.answer(server, {0: talk.send(answer)})[0]
    assert server.memory == ByClient({0: None})
    talk.close()
    carried.round(2, steps=2)
    assert len(server.agreed.rows) == 4
    server.agreed.catch_up()
    for number in range(3):
        mine = carried.federation.client(number).party.theta.replica.parameters
        assert all(torch.equal(mine[name], p) for name, p in server.agreed.replica.parameters.items())
