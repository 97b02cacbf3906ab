"""Every algorithm × its learning rates: their factor is that of the run's step, whoever moves, whenever it joined."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from halfback.algorithms import algorithms
from halfback.assembly import motion
from halfback.engine.federation import Federation
from halfback.engine.tensors import trained_above
from halfback.testing import small
from halfback.testing.table import Row

STEPS, ROUNDS = 2, 4  # of a round, and in the run


@pytest.mark.rows(lambda row: not row.brief and not row.reuses)
def test_rates_follow_the_runs_step(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the clients are in a round, each takes two steps, and the only step with a rate is one of round 2.

    Devices upload with every second batch alone, and tops take three moves in a step, where a method has that. So a
    schedule that counts anything else (a client's own rounds, uploads, several moves of the top in one step, the
    turns of a cohort) moves something in another round, or nothing in that one.
    """
    asked: dict[str, list[int]] = {"linear": [], "cosine": []}  # of the bottom, and of the top

    def schedule(shape: str, *, total: int, **_: object) -> Callable[[int], float]:
        assert total == ROUNDS * STEPS, "the length of the run in its own steps"

        def factor(step: int) -> float:
            asked[shape].append(step)
            return float(step == 2 * STEPS)

        return factor

    monkeypatch.setattr(motion, "schedule", schedule)
    shapes = {"bottom__schedule": "linear", "top__schedule": "cosine", "steps": ROUNDS * STEPS}
    options = {"every": 2, "server_steps": 3}
    has = {f"algorithm__{option}": n for option, n in options.items() if hasattr(algorithms()[row.name], option)}
    simulation = small.built(small.images(row.name, **(row.changes() | shapes | has))).federation
    for number in range(ROUNDS):
        before = _trained(simulation, row)
        small.run(simulation, 1, first=number, steps=STEPS)
        after = _trained(simulation, row)
        of_round = {number * STEPS + place for place in range(STEPS)}
        for part, shape in (("bottom", "linear"), ("top", "cosine")):
            moved = any(not torch.equal(before[part][name], tensor) for name, tensor in after[part].items())
            rated = set(asked[shape])
            if (part, row.needs.agreement.name) == ("bottom", "frozen") or (part, row.needs.top) == ("top", "none"):
                assert not moved
                assert not rated
                continue
            assert moved is (number == 2), f"{part} in round {number}"
            every = has.get("algorithm__every", 1) if part == "top" else 1
            assert rated == {step for step in of_round if step % every == 0}, f"{part} in round {number}"
            asked[shape].clear()


def _trained(simulation: Federation, row: Row) -> dict[str, dict[str, Tensor]]:
    """Copies of what has a learning rate of the recipe's, by part."""
    simulation.server.party.agreed.catch_up()
    theta, top = simulation.server.party.agreed.replica.parameters, trained_above(simulation.server.party)
    own = row.server_moves  # at a rate of its own
    return {
        "bottom": {n: p.detach().clone() for n, p in theta.items() if own is None or not n.startswith(own)},
        "top": {n: p.detach().clone() for n, p in top.items()},
    }
