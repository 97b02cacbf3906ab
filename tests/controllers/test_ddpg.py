"""The learned rule: on a toy whose best threshold is known, and to the bit after a restart."""

import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from observed_rounds import link_use

from halfback.controllers import build
from halfback.controllers.protocol import Controller, Observation
from halfback.engine import checkpoint

pytest.importorskip("torchrl", reason="the `ddpg` controller needs halfback[rl]")

LINKS = ("activations_up", "gradient_down")
BEST = 0.8


def observe(
    controller: Controller, number: int, train_loss: float | None = None, by_itself: float = 2.0, **use: Any
) -> None:
    """One round: bytes grow with the thresholds, in [0.5, 1]; the loss `by_itself` grows as they fall below `BEST`."""
    thresholds = controller.thresholds()
    if train_loss is None:
        train_loss = by_itself * (1 + mean(max(0.0, BEST - threshold) for threshold in thresholds.values()))
    links = {link: link_use(value, share=(value - 0.5) / 0.5, **use) for link, value in thresholds.items()}
    controller.observe(Observation(number, train_loss, None, links))


def trace(controller: Controller, rounds: range) -> list[dict[str, float]]:
    found = []
    for number in rounds:
        observe(controller, number)
        found.append(controller.thresholds())
    return found


def started(links: tuple[str, ...] = LINKS, seed: int = 0, **options: Any) -> Controller:
    return build("ddpg", {"low": 0.5, "high": 1.0, "initial": 1.0, "warm_up": 10} | options, links, seed)


@pytest.mark.parametrize(("seed", "falls_by"), [(0, 0.0), (1, 4.0)])
def test_it_finds_the_best_threshold_of_a_toy(seed: int, falls_by: float) -> None:
    """The reward climbs with the threshold up to `BEST` (10 for the loss, less 2 for bytes), then falls by 2: a kink.

    The loss stays around 2, or falls from 6 by itself. Of the last rounds those that are no probes count. 0.05 is a
    quarter of the way from the start; what remains is the critic's rounding of the kink and the averaged noise.
    """
    assert abs(played(seed, 300, falls_by, warm_up=20) - BEST) < 0.05


def played(seed: int, rounds: int, falls_by: float, **options: Any) -> float:
    """The mean threshold of the last sixth of a run's rounds, without the probes."""
    controller = started(links=LINKS[:1], seed=seed, **options)
    assert controller.thresholds() == {"activations_up": 1.0}
    late = []
    for number in range(rounds):
        observe(controller, number, by_itself=2 + falls_by * math.exp(-3 * number / rounds))
        late.append(controller.thresholds()["activations_up"])
    every = controller.options.probe_every  # type: ignore[attr-defined]
    chosen = [value for number, value in enumerate(late) if number % every]
    return mean(chosen[-(rounds // 6) :])


def test_thresholds_stay_within_the_bounds() -> None:
    controller = started(noise=5.0)
    assert all(0.5 <= value <= 1 for thresholds in trace(controller, range(40)) for value in thresholds.values())
    held = started(low=0.7, high=0.7, initial=0.7)
    assert all(thresholds == dict.fromkeys(LINKS, 0.7) for thresholds in trace(held, range(20)))


def test_the_same_seed_decides_the_same_and_another_differs() -> None:
    first, again, other = (trace(started(seed=seed), range(30)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("capacity", [2000, 16])
@pytest.mark.parametrize("stop", [0, 1, 5, 20])
def test_it_goes_on_to_the_bit_from_a_checkpoint(
    stop: int, capacity: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything was seen, while exploring, while learning; also with a buffer that has wrapped around."""
    monkeypatch.setattr("halfback.controllers.learner._CAPACITY", capacity)
    unbroken = trace(started(), range(50))
    first, second = started(), started(seed=9)  # what another seed drew is overwritten
    before = trace(first, range(stop))
    checkpoint.save(tmp_path, stop, *first.state_dict())
    found = checkpoint.load(tmp_path)
    assert found is not None
    second.load_state_dict(found[1], found[2])
    assert before + trace(second, range(stop, 50)) == unbroken


def test_what_was_saved_does_not_follow_the_controller() -> None:
    controller = started()
    trace(controller, range(20))
    tensors, _ = controller.state_dict()
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    trace(controller, range(20, 25))
    assert all(torch.equal(tensors[name], copy) for name, copy in copies.items())


def test_rewards_and_states_are_the_stated_ones() -> None:
    """By hand: the probes of rounds 1 and 5 have losses of 2.0 and 1.6, so 1.9, 1.8 and 1.7 are due in between."""
    controller = started(probe_every=4)
    shares, losses = [], (9.0, 2.0, 1.9, 1.98, 1.7, 1.6)
    for number, loss in enumerate(losses):
        shares.append([round(1000 * (value - 0.5) / 0.5) / 1000 for value in controller.thresholds().values()])
        observe(controller, number, loss)
    assert shares[0] == shares[1] == shares[5] == [1, 1]
    tensors, values = controller.state_dict()
    rewards = [-10 * increase - mean(both) for increase, both in zip((0.0, 0.1, 0.0), shares[2:5], strict=True)]
    torch.testing.assert_close(tensors["learner.seen.next.reward"].squeeze(1), torch.tensor(rewards))  # float32
    assert (values["reference"], values["waiting"]) == (1.6, [])
    for place, increase in enumerate((-0.05, -0.01, -0.15)):  # against the last probe alone
        expected = [10 * increase]
        for share in shares[2 + place]:
            expected += [0.8, 0.1, share, 2 * share - 1]
        actual = tensors["learner.seen.next.observation"][place]
        wanted = torch.tensor(expected).clamp(-1, 1)
        torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-3)  # shares are rounded to whole bytes


def test_a_loss_that_lasts_costs_as_much_at_the_end_as_at_first() -> None:
    """Half a run at one threshold below the best: a baseline that follows the loss forgets it within twenty rounds."""
    controller = started(links=LINKS[:1], low=0.7, initial=0.7, warm_up=100, noise=0.0)
    for number in range(60):
        probe = controller.thresholds()["activations_up"] == 1.0
        observe(controller, number, 2.0 if probe else 2.1)
    rewards = controller.state_dict()[0]["learner.seen.next.reward"].squeeze(1)
    sent = controller.state_dict()[0]["learner.seen.next.observation"][:, 3]
    torch.testing.assert_close(rewards + sent, torch.full_like(rewards, -0.5), rtol=0, atol=2e-3)
    assert len(rewards) > 40


def test_rounds_with_nothing_to_compare_keep_the_initial_threshold_and_teach_nothing() -> None:
    controller = started()
    for number in range(5):
        observe(controller, number, similarity=None, compared=0)
    assert controller.thresholds() == dict.fromkeys(LINKS, 1.0)
    assert not any(name.startswith("learner.seen.") for name in controller.state_dict()[0])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 0.0, 1e300])
def test_a_strange_loss_or_similarity_leaves_every_number_finite(loss: float) -> None:
    controller = started()
    trace(controller, range(12))
    observe(controller, 12, loss, similarity=math.nan)
    assert all(math.isfinite(value) for thresholds in trace(controller, range(13, 22)) for value in thresholds.values())
    tensors, values = controller.state_dict()
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert math.isfinite(values["reference"])
    if not math.isfinite(loss):
        assert tensors["learner.seen.next.reward"].min() < -10  # an increase of 1, and bytes


def test_a_link_that_was_not_used_in_a_round_counts_as_silent() -> None:
    controller = started()
    trace(controller, range(3))
    use = link_use(controller.thresholds()["activations_up"])
    controller.observe(Observation(3, 2.0, None, {"activations_up": use}))
    assert controller.state_dict()[0]["state"][5:8].tolist() == [0, 0, 0]
    assert controller.thresholds().keys() == set(LINKS)
