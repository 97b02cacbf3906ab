"""A cohort in one pass: up to rounding what its clients come to one by one, and no part is handed out that is stale."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halfback.assembly.choices import one_pass_of
from halfback.config import RunConfig
from halfback.deploy.job import deployable
from halfback.engine import checkpoint
from halfback.engine.federation import Federation
from halfback.engine.one_pass import OnePass, one_pass
from halfback.errors import Diverged, UserError
from halfback.parties.client import Client
from halfback.parties.holdings import Batch, Round
from halfback.parties.protocol import Conversation
from halfback.testing import small
from halfback.testing.wrapped import saying, wrap
from halfback.wire.messages import Activations, Message
from halfback.zeroth.directions import Law
from halfback.zeroth.slopes import perturbed

World = Callable[..., RunConfig]
ROUNDS, STEPS, COHORT, P = 3, 2, 3, 3


@pytest.fixture(params=["images", "texts", "tokens"])
def world(request: pytest.FixtureRequest) -> World:
    """(algorithm, changes) → configuration: a ResNet on digits, a BERT on texts, or a Llama that learns tokens."""

    def config(algorithm: str, **changes: Any) -> RunConfig:
        if request.param == "images":
            return small.images(algorithm, sampled_clients=COHORT, **changes)
        folder = request.getfixturevalue("tiny_bert" if request.param == "texts" else "tiny_llama")
        # Tokens have no classes by which rows could be shared out.
        whole = {"task__objective": "causal_lm", "partition__name": "iid"}
        given = changes | whole if request.param == "tokens" else changes
        return small.texts(algorithm, folder, request.getfixturevalue("sentences"), sampled_clients=COHORT, **given)

    return config


def images(algorithm: str, **changes: Any) -> RunConfig:
    return small.images(algorithm, sampled_clients=COHORT, **changes)


def both(world: World, *given: Any, **changes: Any) -> tuple[Federation, Federation]:
    """One by one, and in one pass."""
    alone, together = (small.built(world(*given, one_pass=on, **changes)).federation for on in (False, True))
    return alone, together


def calls_of(module: nn.Module) -> list[int]:
    """Of each call of a part of the model from now on, how many tokens or images it gives values for."""
    sizes: list[int] = []
    module.register_forward_hook(lambda _module, _args, out: sizes.append(len(out)))
    return sizes


def assert_close(alone: Federation, together: Federation, *, of_slopes: float = 5e-3) -> None:
    """What is counted is equal, what is summed close.

    Sums of float32 in another order differ by some 1e-7 of their size; in slopes the difference is divided by μ = 1e-4,
    which makes it some 1e-3 of the largest (measured: 1.0e-3), but for `forward_ad`, which divides by nothing.
    Parameters move by 1e-2 and less of that in a step, so they may be as much of 2e-2 apart as slopes are of theirs
    (measured: 1.5e-6, and 5.2e-5 on another CPU, which sums in another order: AdamW divides by a gradient's size, so
    what rounding is to a small one counts). They are some 0.1 in size; a stale part is 1e-2 off.
    """
    (tensors, values), (others, other_values) = alone.state(), together.state()
    for name in ("forward_passes", "ledger", "steps", "position", "top_position"):
        assert values[name] == other_values[name], name
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        bound = of_slopes * float(tensor.abs().max()) if name == "history" else max(2e-2 * of_slopes, 1e-5)
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=bound, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        pytest.param("ho_sfl", {"algorithm__directions": P}, id="forward"),
        pytest.param("ho_sfl", {"algorithm__directions": P, "algorithm__estimator": "central"}, id="central"),
        pytest.param("ho_sfl", {"algorithm__directions": P, "algorithm__estimator": "forward_ad"}, id="forward_ad"),
        pytest.param(
            "ho_sfl",
            {"algorithm__clip_samples": 0.05, "algorithm__aggregation": "rows", "partition__name": "dirichlet"},
            id="clipped-by-rows",
        ),
        pytest.param("ho_sfl", {"model__head": 0}, id="u-shape"),
        pytest.param("zo_sfl", {"bottom__lr": 1e-3, "top__optimizer": "sgd", "top__lr": 1e-3}, id="zo_sfl"),
        pytest.param("frozen_bottom", {}, id="frozen_bottom"),
        pytest.param("split_lora", {}, id="split_lora"),
    ],
)
def test_a_run_is_that_one_by_one_up_to_rounding(algorithm: str, changes: dict[str, Any], world: World) -> None:
    alone, together = both(world, algorithm, **changes)
    losses, others = (small.run(each, ROUNDS, steps=STEPS) for each in (alone, together))
    assert others == pytest.approx(losses, rel=1e-5)  # measured: 2.4e-7, one rounding of a float32
    # The losses of `zo_sfl` are float32 numbers of about 2, each rounded to 1e-7, and over 2μ that is 1e-3 of slopes of
    # 0.2 (measured: 8e-3 of the largest).
    of_slopes = 2e-2 if algorithm == "zo_sfl" else 5e-3
    assert_close(alone, together, of_slopes=1e-6 if "forward_ad" in changes.values() else of_slopes)


@pytest.mark.parametrize(
    ("algorithm", "changes", "bottom", "top"),
    [
        pytest.param("ho_sfl", {"algorithm__directions": P}, 1 + P, 1, id="forward"),
        pytest.param("ho_sfl", {"algorithm__estimator": "central", "algorithm__directions": P}, 1 + 2 * P, 1, id="c"),
        pytest.param("ho_sfl", {"algorithm__estimator": "forward_ad", "algorithm__directions": P}, 1 + P, 1, id="ad"),
        pytest.param("frozen_bottom", {}, 1, 1, id="frozen_bottom"),
        # Here one of the two parts, or both, is left alone.
        pytest.param("split_lora", {}, COHORT, 1, id="a-theta-of-its-own"),
        pytest.param("ho_sfl", {"model__head": 0, "algorithm__directions": P}, 1 + P, COHORT, id="u-shape"),
        pytest.param("sfl_v2", {}, COHORT, COHORT, id="turns"),
        pytest.param("ho_sfl", {"algorithm__exact_blocks": 1, "model__cut": 2}, 3 * COHORT, 1, id="exact-blocks"),
    ],
)
def test_the_model_runs_once_for_all(algorithm: str, changes: dict[str, Any], bottom: int, top: int) -> None:
    together = small.built(images(algorithm, one_pass=True, batch_size=5, **changes)).federation  # 6 are an epoch
    bottoms, tops = calls_of(together.server.bottom), calls_of(together.server.party.top.module)
    small.run(together, ROUNDS, steps=STEPS)
    assert (len(bottoms), len(tops)) == (ROUNDS * STEPS * bottom, ROUNDS * STEPS * top)
    assert set(bottoms) in ({5}, {5 * COHORT})


def test_pipelined_clients_run_alone_and_come_to_the_same() -> None:
    alone, together = both(images, "ho_sfl_pipelined")
    calls = [calls_of(each.server.bottom) for each in (alone, together)]
    for each in (alone, together):
        small.run(each, ROUNDS, steps=STEPS)
    assert calls[0] == calls[1]
    assert_close(alone, together)


def test_clients_with_the_same_cut_go_together() -> None:
    alone, together = both(images, "ho_sfl", model__cut=[1, 2], batch_size=5)
    for each in (alone, together):
        small.run(small.among(each, lambda _: [0, 1, 2]), 1, steps=STEPS)  # cut 1, 2, 1
    assert_close(alone, together)
    bottom = calls_of(together.client(0).party.bottom)
    small.run(together, 1, first=1, steps=STEPS)
    assert bottom == [2 * 5] * STEPS * (1 + 2)


def test_where_memory_is_measured_each_runs_alone(world: World) -> None:
    alone, together = both(world, "ho_sfl")
    assert small.run(alone, 2, steps=STEPS, measure=True) == small.run(together, 2, steps=STEPS, measure=True)
    small.assert_equal_states(alone, together)


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(world: World, tmp_path: Path) -> None:
    config = world("ho_sfl", one_pass=True, bottom__optimizer="adamw")
    unbroken, broken, resumed = (small.built(config).federation for _ in range(3))
    losses = small.run(unbroken, 4, steps=STEPS)
    small.run(broken, 2, steps=STEPS)
    checkpoint.save(tmp_path, 2, *broken.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    resumed.load_state(*found[1:])
    assert small.run(resumed, 2, first=2, steps=STEPS) == losses[2:]
    small.assert_equal_states(unbroken, resumed)


@pytest.mark.parametrize("chain", [["int8"], ["temporal", "int8"]], ids="-".join)
def test_links_have_their_codecs(chain: list[str], world: World) -> None:
    links = {"codecs__activations_up": chain, "codecs__gradient_down": chain}
    alone, together = both(world, "ho_sfl", batch_size=32, **links)  # an epoch is a batch, so samples come again
    losses, others = (small.run(each, ROUNDS, steps=STEPS) for each in (alone, together))
    # A value next to where int8 rounds may fall on the other side, which is 1/254 of the largest in its row.
    assert others == pytest.approx(losses, rel=4e-3)
    assert alone.server.meters.forward_passes == together.server.meters.forward_passes
    if chain == ["int8"]:
        assert alone.server.ledger.state_dict() == together.server.ledger.state_dict()


def test_a_client_may_leave_in_the_middle_of_a_round(world: World) -> None:
    alone, together = both(world, "ho_sfl")
    for each in (alone, together):
        client_round = each.server.algorithm.client_round

        def leaving(client: Client, round: Round, client_round: Any = client_round) -> Conversation:
            talk, reply = client_round(client, round), None
            for _ in range(2 if client.id == 1 else 1 + 2 * STEPS):  # behind its first cut gradient
                reply = yield talk.send(reply)
            if client.id != 1:
                yield from talk_on(talk, reply)

        wrap(small.among(each, lambda number: [0, 1, 2 + number % 2]), client_round=leaving)
        small.run(each, ROUNDS, steps=STEPS)
    # Later slopes inherit how far the top came apart (measured: 6e-3 of the largest, on a CPU that sums otherwise).
    assert_close(alone, together, of_slopes=1e-2)


def talk_on(talk: Conversation, reply: Any) -> Conversation:
    """What is left of a client's side of a round."""
    while True:
        try:
            reply = yield talk.send(reply)
        except StopIteration:
            return


def test_who_diverges_is_named(world: World) -> None:
    """Values of one client that overflow in a row of the top reach its neighbours, who aren't to blame."""
    said = []
    for each in both(world, "ho_sfl"):
        client_round = each.server.algorithm.client_round

        def poisoned(client: Client, round: Round, client_round: Any = client_round) -> Conversation:
            return saying(client_round(client, round), overflowing if client.id == 1 else lambda message: message)

        wrap(small.among(each, lambda _: [0, 1, 2]), client_round=poisoned)
        with pytest.raises(Diverged) as caught:
            small.run(each, 1)
        said.append(str(caught.value))
        assert caught.value.sender == 1
    assert said[0] == said[1]


def overflowing(message: Message) -> Message:
    if not isinstance(message, Activations):
        return message
    return replace(message, hidden=torch.full_like(message.hidden, 3e38))


@dataclass(frozen=True)
class Waiting:
    """Two clients in one pass, and the second's batch, whose part the first has left ready."""

    together: OnePass
    first: Client
    second: Client
    batch: Batch
    calls: list[int]

    def assert_runs_alone(self) -> None:
        before, wanted = len(self.calls), self.second.bottom(self.batch.inputs)
        assert torch.equal(self.second.forward(self.batch), wanted)
        assert len(self.calls) == before + 2


@contextmanager
def waiting(config: RunConfig, *, probing: bool = False) -> Iterator[Waiting]:
    federation = small.built(config).federation
    sides = [federation.client(number) for number in (0, 1)]
    first, second = (side.party for side in sides)
    calls = calls_of(first.bottom)
    with one_pass(sides) as together:
        together.exchange([0, 1])
        mine, batch = first.feed.next(), second.feed.next()
        first.forward(mine)
        if probing:
            second.forward(batch)
            with perturbed(first.bottom, first.theta.measured, 1, 1e-2):
                first.forward(mine)
        yield Waiting(together, first, second, batch, calls)


def probed(
    ready: Waiting, seed: int = 1, radius: float = 1e-2, law: Law = "rademacher", *, among: int | None = None
) -> AbstractContextManager[None]:
    """The second client's probe, of the first so many parameters; without arguments it is the one of the first."""
    chosen = dict(list(ready.second.theta.measured.items())[:among])
    return perturbed(ready.second.bottom, chosen, seed, radius, law=law)


def test_a_part_that_fits_is_found(world: World) -> None:
    with waiting(world("ho_sfl")) as ready:
        found = ready.second.forward(ready.batch)
        assert len(ready.calls) == 1
        # Blocks of a row sum in another order than those of a batch by itself: a few roundings of values about 1.
        torch.testing.assert_close(found, ready.second.bottom(ready.batch.inputs), rtol=0, atol=1e-5)
    with waiting(world("ho_sfl"), probing=True) as ready, probed(ready):
        found = ready.second.forward(ready.batch)
        assert len(ready.calls) == 2
        torch.testing.assert_close(found, ready.second.bottom(ready.batch.inputs), rtol=0, atol=1e-5)


def test_a_part_is_found_once(world: World) -> None:
    with waiting(world("ho_sfl")) as ready:
        ready.second.forward(ready.batch)
        ready.assert_runs_alone()


@torch.no_grad()
def theta_moves(ready: Waiting) -> Batch:
    for parameter in ready.second.theta.parameters.values():
        parameter.add_(0.1)
    return ready.batch


def theta_is_replayed(ready: Waiting) -> Batch:
    ready.second.theta.replay(0, torch.full((1, 2), 10.0))
    return ready.batch


def a_batch_changes(ready: Waiting) -> Batch:
    next(iter(ready.batch.inputs.values())).zero_()
    return ready.batch


def another_tensor_is_in_the_batch(ready: Waiting) -> Batch:
    name, tensor = next(iter(ready.batch.inputs.items()))
    ready.batch.inputs[name] = torch.zeros_like(tensor)
    return ready.batch


def it_goes_on_to_another_batch(ready: Waiting) -> Batch:
    ready.second.feed.cursor += 1
    return ready.second.feed.next()


@pytest.mark.parametrize(
    "change",
    [theta_moves, theta_is_replayed, a_batch_changes, another_tensor_is_in_the_batch, it_goes_on_to_another_batch],
)
def test_a_stale_part_is_not_handed_out(change: Callable[[Waiting], Batch], world: World) -> None:
    with waiting(world("ho_sfl")) as ready:
        replace(ready, batch=change(ready)).assert_runs_alone()


@pytest.mark.parametrize(
    ("seed", "radius", "law"), [(2, 1e-2, "rademacher"), (1, -1e-2, "rademacher"), (1, 1e-2, "gaussian")]
)
def test_a_part_of_another_probe_is_not_handed_out(seed: int, radius: float, law: Law, world: World) -> None:
    with waiting(world("ho_sfl"), probing=True) as ready, probed(ready, seed, radius, law):
        ready.assert_runs_alone()


def test_a_part_of_a_probe_of_more_or_of_none_is_not_handed_out(world: World) -> None:
    with waiting(world("ho_sfl"), probing=True) as ready, probed(ready, among=1):
        ready.assert_runs_alone()
    with waiting(world("ho_sfl"), probing=True) as ready:
        ready.assert_runs_alone()


def test_a_part_of_another_exchange_is_not_handed_out_and_no_more_is_made_ahead() -> None:
    with waiting(images("ho_sfl")) as ready:
        ready.together.exchange([0, 1])
        ready.assert_runs_alone()
        ready.calls.clear()
        ready.together.exchange([0, 1])
        ready.first.forward(ready.first.feed.next())
        assert ready.calls == [8]


def test_values_that_are_not_finite_stay_with_whom_they_are() -> None:
    federation = small.built(images("ho_sfl")).federation
    sides = [federation.client(number) for number in (0, 1)]
    with one_pass(sides) as together:
        together.exchange([0, 1])
        mine, theirs = (side.party.feed.next() for side in sides)
        theirs.inputs["pixel_values"].fill_(torch.inf)
        calls = calls_of(federation.server.bottom)
        found = [side.party.forward(batch) for side, batch in zip(sides, (mine, theirs), strict=True)]
    assert calls == [16, 8, 8]
    assert torch.equal(found[0], federation.server.bottom(mine.inputs))
    assert not found[1].isfinite().any()
    assert federation.server.meters.forward_passes == -1  # the pass for both, which whoever counts the first has in it


def test_it_is_chosen_by_the_device_and_refused_where_clients_are_elsewhere() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [one_pass_of(images("ho_sfl"), device) for device in (cpu, cuda)] == [False, True]
    assert [one_pass_of(images("ho_sfl", one_pass=True), device) for device in (cpu, cuda)] == [True, True]
    assert [one_pass_of(images("ho_sfl", one_pass=False), device) for device in (cpu, cuda)] == [False, False]
    normed = images("ho_sfl", top__batch_norm="train")
    assert not one_pass_of(normed, cuda), "a batch norm goes by each client's own batch"
    assert deployable(images("ho_sfl")).one_pass is None
    with pytest.raises(UserError, match="one_pass=true: clients on other machines run alone"):
        deployable(images("ho_sfl", one_pass=True))
