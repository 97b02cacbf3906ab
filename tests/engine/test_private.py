"""Private slopes in real runs: how far a row can move them, the noise, an attacker, and an account that survives."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from halfback import config as configuration
from halfback.engine import checkpoint
from halfback.engine.attendance import Attended
from halfback.engine.federation import Federation
from halfback.engine.private import Hiding
from halfback.errors import UserError
from halfback.parties.holdings import Round
from halfback.privacy.account import epsilon
from halfback.privacy.rules import PrivacyRules
from halfback.runs import execution, exporting_card
from halfback.runs.opening import Caller
from halfback.runs.told import RunState
from halfback.telemetry.records import read_summary
from halfback.testing import small
from halfback.testing.remote import run_over_sockets
from halfback.wire.messages import Both, Exact, Slopes

CLIP, P, B = 0.5, 3, 8
ROW: dict[str, Any] = {"privacy__unit": "sample", "algorithm__clip_samples": CLIP}
ALL_ROWS: dict[str, Any] = {"privacy__unit": "client", "privacy__clip": 1.0}
RARE = 1e-9


def private(algorithm: str = "decomfl", **changes: Any) -> configuration.RunConfig:
    return small.images(algorithm, **{"algorithm__directions": P, "privacy__noise": 1.0} | ROW | changes)


def quiet(federation: Federation) -> Federation:
    """The same without noise, but for a trace."""
    side = federation.server.private
    assert side is not None
    side.rules = PrivacyRules(side.rules.unit, side.rules.bound, 1e-12, side.rules.size, side.rules.directions)
    return federation


def first_mean(federation: Federation) -> Tensor:
    small.run(federation, 1)
    return federation.server.party.agreed.rows[0].double()


def with_other_rows(run: Federation, client: int, rows: Mapping[int, float]) -> Federation:
    """The rows of a client, by their places, scaled: other rows in their place."""
    source = run.client(client).party.feed.data
    split = source._split
    images = split._images.clone()
    for place, factor in rows.items():
        images[source.rows[place]] *= factor
    split._images = images
    return run


@pytest.mark.parametrize("algorithm", ["decomfl", "ho_sfl"])
@pytest.mark.parametrize("size", [B, 16])
def test_a_row_moves_the_mean_by_no_more_than_the_sensitivity(algorithm: str, size: int) -> None:
    """Of real slopes that the clip cuts, with other rows in the place of some of a batch."""
    config = private(algorithm, batch_size=size, sampled_clients=4)
    run = small.built(config).federation
    plain, source, worst = first_mean(quiet(run)), run.client(1).party.feed.data, 0.0
    first = source.batch(0).sample_ids.tolist()
    for row, factor in zip(first, (-3.0, 0.0, 20.0), strict=False):
        other = with_other_rows(small.built(config).federation, 1, {source.rows.tolist().index(row): factor})
        worst = max(worst, float((first_mean(quiet(other)) - plain).norm()))
    side = run.server.private
    assert side is not None
    bound = side.rules.sensitivity / 4
    assert bound == pytest.approx(2 * CLIP * math.sqrt(P) / size / 4, rel=1e-5)
    assert 0 < worst <= bound * (1 + 1e-5)


def test_a_client_moves_the_mean_by_no_more_than_its_clip() -> None:
    changes: dict[str, Any] = {"algorithm__clip_samples": None, "privacy__unit": "client", "privacy__clip": 0.7}
    config = private("ho_sfl", algorithm__exact_blocks=1, sampled_clients=4, **changes)
    plain = first_mean(quiet(small.built(config).federation))
    rows = dict.fromkeys(range(30), -5.0)
    other = first_mean(quiet(with_other_rows(small.built(config).federation, 1, rows)))
    apart = float((other - plain).norm())
    assert 0.02 < apart <= 2 * 0.7 / 4 * (1 + 1e-5)


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize(("batch", "rows"), [(2, 8), (3, 6)])  # of 30 rows
def test_central_noise_has_the_stated_variance(clients: int, batch: int, rows: int) -> None:
    """What the server agrees on in many steps, against the mean of what clients said; each row counts alike."""
    server = small.built(private(sampled_clients=clients, privacy__noise=0.8)).federation.server
    values, found = torch.tensor([0.1, -0.2, 0.05]), []
    for step in range(400):
        server.begin(Round(step, 1, step), dict.fromkeys(range(clients), batch))
        server.answers({client: Slopes(step, values) for client in range(clients)})
        found.append(server.party.agreed.rows[-1] - values * rows / B)
    noise = torch.stack(found).flatten()
    assert float(noise.mean().abs()) < 7 * 0.8 * 2 * CLIP * math.sqrt(P) / B / clients / math.sqrt(len(noise))
    expected = 0.8 * 2 * CLIP * math.sqrt(P) / B / clients
    ratio = float((noise / expected).square().sum())
    assert chi2.ppf(RARE, len(noise)) < ratio < chi2.ppf(1 - RARE, len(noise))


@pytest.mark.parametrize("unit", ["sample", "client"])
def test_shares_of_noise_are_enough_whoever_leaves(unit: Any) -> None:
    """Of five clients with a threshold of three: the sum of those who stay has the noise of three shares or more."""
    rules = PrivacyRules(unit, CLIP * math.sqrt(P) if unit == "sample" else 0.7, 1.5, B, P, sharers=3)
    said = Slopes(4, torch.full((P,), 0.05))
    needed = rules.noise * rules.sensitivity
    for stay in (3, 4, 5):
        sums = []
        for _ in range(600):
            hidden = [Hiding(rules).hidden(said, 0, 30)[0] for _ in range(stay)]
            sums.append(sum(each.values.double() for each in hidden))  # type: ignore[attr-defined]
        noise = torch.stack(sums).flatten() - stay * 0.05
        ratio = float((noise / (needed * math.sqrt(stay / 3))).square().sum())
        assert chi2.ppf(RARE, len(noise)) < ratio < chi2.ppf(1 - RARE, len(noise))


@pytest.mark.parametrize(("leaves", "summed"), [(3, 4), (4, 5)])  # before its masked values, and behind them
def test_the_noise_of_a_masked_sum_is_that_of_those_in_it(leaves: int, summed: int) -> None:
    """Five clients, a threshold of four, one of which leaves in every round; slopes are nothing beside this noise."""
    noise, rounds = 1000.0, 15
    changes: dict[str, Any] = {"secure__sum": True, "privacy__where": "distributed", "privacy__noise": noise}
    own = private(clients=5, sampled_clients=5, algorithm__clip_samples=1e-3, bottom__lr=1e-9, **changes)
    run = small.built(own).federation
    run.attendance = {n: Attended(n, (0, 1, 2, 3, 4), {n % 5: leaves}) for n in range(rounds)}
    small.run(run, rounds)
    found = torch.stack(run.server.party.agreed.rows).double().flatten()
    expected = noise * 2 * 1e-3 * math.sqrt(P) / B * math.sqrt(summed / 4) / summed
    ratio = float((found / expected).square().sum())
    assert chi2.ppf(RARE, len(found)) < ratio < chi2.ppf(1 - RARE, len(found))
    side = run.server.private
    assert side is not None
    assert side.spent.steps == rounds


def test_a_client_clips_each_step_and_counts_rows_alike() -> None:
    rules = PrivacyRules("client", 0.5, 1.0, B, P)
    said = Slopes(0, torch.tensor([3.0, 4.0, 0.0, 0.1, 0.0, 0.0]))
    hidden, batch = Hiding(rules).hidden(said, 2, 30)
    assert isinstance(hidden, Slopes)
    assert batch == 4
    assert torch.allclose(hidden.values, torch.tensor([0.3, 0.4, 0.0, 0.1, 0.0, 0.0]))
    both = Both(Slopes(0, torch.ones(P)), Exact(torch.full((6,), -1.0)))
    clipped, batch = Hiding(rules).hidden(both, 2, 30)
    assert isinstance(clipped, Both)
    assert batch == 3
    assert torch.allclose(torch.cat([clipped.first.values, clipped.second.values]).norm(), torch.tensor(0.5))


def test_behind_masks_a_client_has_the_rows_of_a_smaller_batch_count_alike() -> None:
    """The fourth batch of 30 rows has six; without masks the server does it."""
    masked = PrivacyRules("sample", 1.0, 1.0, B, P, masked=True)
    hidden, _ = Hiding(masked).hidden(Slopes(0, torch.full((P,), 0.8)), 3, 30)
    assert isinstance(hidden, Slopes)
    assert torch.allclose(hidden.values, torch.full((P,), 0.6))


def test_over_sockets_with_masks_the_noise_is_there_and_written_down(tmp_path: Path) -> None:
    config = private("ho_sfl", secure__sum=True, privacy__where="distributed", sampled_clients=3)
    run = small.built(config).federation
    side = run.server.private
    assert side is not None
    side.spent.keep(tmp_path / "releases.jsonl", 0)
    run_over_sockets(run, lambda number: small.alone(config, number), rounds=2, steps=2, folder=tmp_path)
    assert side.spent.steps == 4
    lines = [json.loads(line) for line in (tmp_path / "releases.jsonl").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [[str(client) for client in run.server.cohort(n // 2)] for n in range(4)]
    same = {"algorithm__directions": P, "algorithm__clip_samples": CLIP, "sampled_clients": 3}
    plain = small.built(small.images("ho_sfl", **same)).federation
    small.run(plain, 1)
    apart = run.server.party.agreed.rows[0] - plain.server.party.agreed.rows[0]
    assert 0 < float(apart.norm()) < 12 * 2 * CLIP * math.sqrt(P) / B / 3 * math.sqrt(P)


# An attacker who knows everything but which of two rows is in the batch.


def _told_apart(means: tuple[Tensor, Tensor], noisy: Any, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """The likelihood ratio of what was released, with the one row and with the other."""
    axis = (means[1] - means[0]).numpy()
    middle = (means[1] + means[0]).numpy() / 2
    return tuple(np.array([(noisy(mean) - middle) @ axis for _ in range(trials)]) for mean in means)  # type: ignore[return-value]


def _worst(scores: tuple[np.ndarray, np.ndarray], eps: float) -> float:
    """The largest P(guess | with) − e^ε · P(guess | without) over all thresholds and both ways round."""
    found = 0.0
    for one, other in (scores, scores[::-1], (-scores[0], -scores[1]), (-scores[1], -scores[0])):
        for threshold in np.quantile(np.concatenate(scores), np.linspace(0.01, 0.99, 99)):
            found = max(found, float((one >= threshold).mean() - math.exp(eps) * (other >= threshold).mean()))
    return found


def test_an_attacker_tells_two_rows_apart_without_noise_and_no_better_than_allowed_with_it() -> None:
    """A real step of a cohort of one with a batch of two, its other row known: the hardest case for the noise."""
    config = private(batch_size=2, sampled_clients=1, privacy__noise=1.0)
    one = first_mean(quiet(small.built(config).federation))
    client = small.built(config).federation.server.cohort(0)[0]
    batch = small.built(config).federation.client(client).party.feed.data.batch(0)
    source = small.built(config).federation.client(client).party.feed.data
    place = source.rows.tolist().index(int(batch.sample_ids[0]))
    two = first_mean(quiet(with_other_rows(small.built(config).federation, client, {place: -2.0})))
    side = small.built(config).federation.server.private
    assert side is not None
    trials, sensitivity = 4000, side.rules.sensitivity
    assert float((one - two).norm()) > 0.3 * sensitivity  # the clip cuts, so the pair is near the worst one

    still = _told_apart((one, two), lambda mean: mean.numpy(), 2)
    assert still[0].max() < 0 < still[1].min()  # without noise it is always right

    margin = 5 / math.sqrt(trials)
    cohort = small.built(config).federation.server.party.cohort

    def released(mean: Tensor) -> np.ndarray:
        said = {client: Slopes(0, mean.float())}
        return side.noisy(said, cohort)[client].values.double().numpy()  # type: ignore[attr-defined,no-any-return]

    side.begin(Round(0, 1, 0), {client: 0})
    side.spend({client: Slopes(0, one.float())}, cohort)
    scores = _told_apart((one, two), released, trials)
    for delta in (0.01, 0.05, 0.2):
        assert _worst(scores, epsilon(1, 1.0, delta)) <= delta + margin
    ranks = (scores[1][:, None] > scores[0][None, :1000]).mean()
    assert ranks <= norm.cdf(1 / math.sqrt(2)) + margin  # the AUC of two normal laws that are σ apart

    # The test would see too little noise: with a quarter of it the worst pair breaks the bound.
    apart = torch.zeros(P, dtype=torch.float64)
    apart[0] = sensitivity
    draw, quarter = np.random.default_rng(0), 0.25 * sensitivity
    weak = _told_apart((0 * apart, apart), lambda mean: mean.numpy() + quarter * draw.standard_normal(P), trials)
    assert _worst(weak, epsilon(1, 1.0, 0.05)) > 0.05 + margin


# Runs in folders.


def quick(**changes: Any) -> configuration.RunConfig:
    return private(steps=6, eval_every=6, checkpoint_every=100, checkpoint_seconds=1000, **changes)


def test_a_run_says_what_it_came_to(tmp_path: Path) -> None:
    config = quick(privacy__noise=None, privacy__epsilon=3.0, batch_size=16)
    execution.begin(config, tmp_path / "run", Caller())
    spent = read_summary(tmp_path / "run")["privacy"]
    assert spent["epsilon"] == pytest.approx(3.0)
    assert (spent["unit"], spent["where"], spent["delta"]) == ("sample", "central", 1e-5)
    assert epsilon(spent["releases"], spent["noise"], 1e-5) == pytest.approx(3.0)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3 at δ = 1e-05, each sample" in page
    assert "not the training losses that devices report" in page
    ((_, said),) = exporting_card._noise(tmp_path / "run")
    assert said.startswith("ε = 3 at δ = 1e-05 for each row: all that is said of θ")


def test_what_a_kill_took_back_is_counted_and_its_noise_is_another(tmp_path: Path) -> None:
    """The folder as `kill -9` behind step 4 leaves it: the checkpoint is that of step 0, and all is done once more."""
    killed, histories = tmp_path / "killed", []

    def copy(state: RunState) -> None:
        if state.step == 4:
            shutil.copytree(tmp_path / "run", killed)

    execution.begin(quick(), tmp_path / "run", Caller(on_round=copy))
    assert (killed / "releases.jsonl").read_text().count("\n") == 4
    execution.resume(killed, Caller())
    whole, again = (read_summary(tmp_path / name)["privacy"] for name in ("run", "killed"))
    assert (killed / "releases.jsonl").read_text().count("\n") == 4 + 6
    assert again["releases"] > whole["releases"]
    assert again["epsilon"] > whole["epsilon"]
    for folder in (tmp_path / "run", killed):
        found = checkpoint.load(folder / "checkpoint")
        assert found is not None
        histories.append(found[1]["history"])
    assert not torch.equal(histories[0][0], histories[1][0])  # one seed, and other noise


def test_a_budget_that_is_spent_ends_a_run_between_two_rounds(tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    def copy(state: RunState) -> None:
        if state.step == 4:
            shutil.copytree(tmp_path / "run", killed)

    execution.begin(quick(privacy__noise=None, privacy__epsilon=2.0), tmp_path / "run", Caller(on_round=copy))
    execution.resume(killed, Caller())
    summary = read_summary(killed)
    assert "privacy.epsilon=2 is used up" in summary["ended"]
    assert summary["steps"] < 6
    assert summary["privacy"]["epsilon"] <= 2.0 * (1 + 1e-9)
    assert read_summary(tmp_path / "run")["ended"] is None
    execution.resume(killed, Caller())  # it is over, and says so again
    assert read_summary(killed) == summary


def test_an_account_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    execution.begin(quick(), tmp_path / "run", Caller())
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "releases.jsonl").unlink()
    with pytest.raises(UserError, match="has 0 of the 6 steps that were released"):
        execution.resume(tmp_path / "run", Caller())


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ho_sfl", ROW),
        ("ho_sfl_pipelined", ROW | {"steps_per_round": 2}),
        ("decomfl", ALL_ROWS | {"steps_per_round": 2}),
        ("zo_sfl", ALL_ROWS | {"top__optimizer": "sgd"}),
        ("ho_sfl", ALL_ROWS | {"algorithm__exact_blocks": 1}),
    ],
)
def test_each_method_agrees_on_what_is_noisy_and_counts_it(algorithm: str, changes: dict[str, Any]) -> None:
    given = small.images(algorithm, algorithm__directions=P, privacy__noise=1.0, **changes)
    run, steps = small.built(given).federation, changes.get("steps_per_round", 1)
    plain = small.built(given.model_copy(update={"privacy": type(given.privacy)()})).federation
    small.run(run, 2, steps=steps)
    small.run(plain, 2, steps=steps)
    side = run.server.private
    assert side is not None
    assert side.spent.steps == 2 * steps
    for mine, other in zip(run.server.party.agreed.rows, plain.server.party.agreed.rows, strict=True):
        assert not torch.equal(mine, other)
