"""What the server of a simulation hears of clients that lie: by hand, and in real runs."""

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from halfback.engine.federation import Federation
from halfback.errors import UserError
from halfback.parties.attack import Attack, Liars
from halfback.parties.server import Server
from halfback.testing import small
from halfback.wire.messages import Both, Exact, Join, Slopes, Weights

SAID = {0: [1.0, 2.0], 1: [3.0, 6.0], 2: [5.0, 1.0], 3: [4.0, -5.0]}


def server(algorithm: str = "ho_sfl", **changes: Any) -> Server:
    return small.built(small.images(algorithm, **changes)).federation.server.party


def heard(messages: dict[int, Any], to: Server | None = None, **attack: Any) -> dict[int, Any]:
    return Liars(Attack(**attack), 7).heard(to or server(), messages)


def slopes(said: dict[int, list[float]]) -> dict[int, Any]:
    return {client: Slopes(0, torch.tensor(values)) for client, values in said.items()}


@pytest.mark.parametrize(
    ("attack", "lies"),
    [
        ({"name": "sign_flip"}, {0: [-1.0, -2.0]}),
        ({"name": "sign_flip", "strength": 2.0, "clients": (1, 3)}, {1: [-6.0, -12.0], 3: [-8.0, 10.0]}),
        ({"name": "scale"}, {0: [100.0, 200.0]}),
        ({"name": "scale", "strength": 0.5, "clients": 2}, {0: [0.5, 1.0], 1: [1.5, 3.0]}),
    ],
)
def test_what_is_heard(attack: dict[str, Any], lies: dict[int, list[float]]) -> None:
    told = heard(slopes(SAID), **attack)
    assert {client: message.values.tolist() for client, message in told.items()} == SAID | lies


def test_a_little_is_the_mean_of_the_honest_less_their_deviations() -> None:
    """Against the standard library's population deviation; one rounding to float32 apart."""
    told = heard(slopes(SAID), name="little_is_enough", clients=(1, 3), strength=1.5)
    for place in range(2):
        honest = [SAID[0][place], SAID[2][place]]
        wanted = statistics.fmean(honest) - 1.5 * statistics.pstdev(honest)
        for liar in (1, 3):
            assert told[liar].values[place].item() == pytest.approx(wanted, rel=1e-7)
    alone = heard(slopes({1: SAID[1]}), name="little_is_enough", clients=(1, 3))
    assert alone[1].values.tolist() == SAID[1], "nobody is there to hide behind"


def test_noise_has_the_size_that_it_should_and_comes_again() -> None:
    true = {0: [1.0, -3.0] * 2000}
    first, again = (heard(slopes(true), name="noise", strength=2.0)[0].values for _ in range(2))
    assert torch.equal(first, again)
    # Of 4,000 draws, four standard deviations: of the mean σ/√n, of the size σ/√2n.
    size = 2.0 * 5.0**0.5
    assert abs(first.mean()) < 4 * size / 4000**0.5
    assert abs(first.square().mean().sqrt() - size) < 4 * size / 8000**0.5
    later = server()
    later.steps = 1
    assert not torch.equal(first, heard(slopes(true), later, name="noise", strength=2.0)[0].values)


def test_exact_gradients_are_lied_about_as_slopes_are() -> None:
    said = {n: Both(Slopes(0, torch.tensor(v)), Exact(torch.tensor([v[0]] * 3))) for n, v in SAID.items()}
    told = heard(said, name="sign_flip")
    assert told[0].first.values.tolist() == [-1.0, -2.0]
    assert told[0].second.values.tolist() == [-1.0] * 3
    assert told[1] is said[1]


def test_weights_are_lied_about_by_how_they_moved() -> None:
    party = server("fedavg")
    begun = [parameter.detach().clone() for parameter in party.agreed.replica.parameters.values()]
    told = heard(
        {n: Weights(tuple(each + 0.5 for each in begun)) for n in range(2)}, party, name="sign_flip", strength=3.0
    )
    for was, lie, true in zip(begun, told[0].tensors, told[1].tensors, strict=True):
        torch.testing.assert_close(lie, was - 1.5)  # float32 sums
        assert torch.equal(true, was + 0.5)
    assert heard({0: Join(0)}, party, name="scale") == {0: Join(0)}


def moved(algorithm: str, **changes: Any) -> list[torch.Tensor]:
    """How θ moves in a round of two clients, of equal shares."""
    settings = {"clients": 2, "sampled_clients": 2, "algorithm__aggregation": "uniform", **changes}
    simulation = small.built(small.images(algorithm, **settings)).federation
    begun = [parameter.detach().clone() for parameter in simulation.server.party.agreed.replica.parameters.values()]
    small.run(simulation, 1, steps=2)
    now = simulation.server.party.agreed.replica.parameters.values()
    return [(new - old).detach().double() for new, old in zip(now, begun, strict=True)]


@pytest.mark.parametrize("algorithm", ["fedavg", "split_lora", "heron_sfl"])
def test_whoever_of_two_lies_the_mean_goes_the_other_way(algorithm: str) -> None:
    """By (b − a)/2 where client 0 lies about its move a, by (a − b)/2 where client 1 does about b."""
    honest = moved(algorithm)
    lies = [moved(algorithm, attack={"name": "sign_flip", "clients": [client]}) for client in (0, 1)]
    assert max(each.abs().max() for each in honest) > 1e-5
    for true, first, second in zip(honest, *lies, strict=True):
        # Rounding of float32 weights of about 1.
        torch.testing.assert_close(first, -second, rtol=0, atol=1e-6)
        assert not torch.equal(true, first)


def test_where_a_part_is_moved_by_slopes_both_are_lied_about() -> None:
    honest, lies = (
        moved("ho_fl", algorithm__boundaries=[1]),
        moved("ho_fl", algorithm__boundaries=[1], attack={"name": "sign_flip", "clients": [0, 1]}),
    )
    assert all(torch.sign((true * lie).sum()) <= 0 for true, lie in zip(honest, lies, strict=True))
    assert sum((true * lie).sum() for true, lie in zip(honest, lies, strict=True)) < 0


def _labels(simulation: Federation, client: int) -> torch.Tensor:
    return simulation.client(client).party.feed.data.batch(0).labels


def test_flipped_labels_are_what_a_liar_works_on() -> None:
    honest, poisoned = (
        small.built(small.images("ho_sfl", **attack)).federation
        for attack in ({}, {"attack__name": "label_flip", "attack__clients": [1]})
    )
    assert torch.equal(_labels(poisoned, 1), 9 - _labels(honest, 1))
    assert torch.equal(_labels(poisoned, 0), _labels(honest, 0))
    assert poisoned.server.liars is None


def test_a_run_with_labels_flipped_goes_on_to_the_bit() -> None:
    config = small.images("split_lora", attack__name="label_flip", attack__clients=2)
    whole, first, second = (small.built(config).federation for _ in range(3))
    small.run(whole, 2)
    small.run(first, 1)
    second.load_state(*first.state())
    small.run(second, 1, first=1)
    small.assert_equal_states(whole, second)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clients": 0}, r"attack\.clients=0: 1 or more are allowed, or a list of clients' numbers"),
        ({"strength": 0.0}, r"attack\.strength=0: a positive number is allowed"),
    ],
)
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Attack("noise", **options)


def test_who_lies_is_who_was_named() -> None:
    assert Attack().liars == ()
    assert Attack("scale", 2).liars == (0, 1)
    assert replace(Attack("scale"), clients=(3, 1)).liars == (3, 1)
