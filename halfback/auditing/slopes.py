"""Rows from slopes alone: a game in which a device's step was taken on a batch that holds one of two known rows.

The attacker knows both candidates, the weights, the directions (they follow from a seed that it has) and how other
rows' slopes are spread, and of the device the P slopes of one step. It doesn't know the other rows of the batch. Its
guess is the likelier candidate, if slopes of rows are Gaussian. A half of the trials is right by chance.
"""

import torch
from torch import Tensor

from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, auc, auc_margin
from halfback.auditing.seat import Seat
from halfback.data.batches import Split
from halfback.parties.client import Client
from halfback.zeroth.slopes import Probe, perturbed

_ROWS = 128  # that stand for all
_TRIALS = 4000
_FOUND = 0.95  # of the planted game: the row is alone in its batch


def slopes(seat: Seat, clock: Clock) -> tuple[list[Finding], list[str]]:
    """Plays the game with the recipe's directions and batch; says so where no slopes are sent."""
    built = seat.built
    needs = built.ground.algorithm.needs
    probe = needs.probe
    if probe is None or not probe.directions or not needs.replays:
        return [], ["Slopes: this method sends none."]
    client = built.clients.side(0).party
    split = seat.affordable(seat.rows.own, clock.seconds / (2 * probe.directions + 1), _ROWS)
    seat.tell(f"slopes: of {len(split)} rows along {probe.directions} directions")
    table = of_rows(seat, client, split, probe)
    size = built.config.batch_size
    found = []
    planted = play(table, 1, seat.generator)
    control = play(torch.randn(table.shape, generator=seat.generator), size, seat.generator, others_only=True)
    for many in (size, 1):
        found.append(
            Finding(
                about="rows by slopes",
                how=f"which of 2 rows is in a batch of {many}, by {probe.directions} slopes",
                measure="AUC",
                value=play(table, many, seat.generator),
                chance=0.5,
                margin=auc_margin(_TRIALS // 2, _TRIALS // 2),
                planted=planted,
                needed=_FOUND,
                control=control,
                rows=_TRIALS,
                row_bytes=4 * probe.directions / many,
                beside={"rows of the batch": float(many), "directions": float(probe.directions)},
            )
        )
    hidden = built.config.privacy.unit is not None
    return found, ["Slopes: as without the noise of privacy.unit, whose ε bounds any attack."] if hidden else []


@torch.no_grad()
def of_rows(seat: Seat, client: Client, split: Split, probe: Probe) -> Tensor:
    """The slope of each row's loss along each direction of the next step, by central differences: (B, P)."""
    part, measured = seat.built.ground.part, client.theta.measured
    settled, seeds = probe.settled(measured), client.theta.seeds(probe.directions)
    columns = []
    for seed in seeds.numbers:
        sides = []
        for side in (settled.moved, -settled.moved):
            with perturbed(part, measured, seed, side, law=seeds.law):
                sides.append(seat.losses(split))
        columns.append((sides[0] - sides[1]) / (2 * settled.moved))
    return torch.stack(columns, dim=1)


def play(table: Tensor, size: int, generator: torch.Generator, *, others_only: bool = False) -> float:
    """The area under the curve of the guess over many trials.

    Args:
        table: slopes (B, P) of single rows.
        size: rows of a batch, its candidate among them.
        generator: of the trials.
        others_only: neither candidate is in the batch, so there is nothing to find.
    """
    table = table.double()
    scale = table.std(dim=0).clamp_min(1e-300)
    table = (table - table.mean(dim=0)) / scale
    spread = torch.cov(table.T).reshape(table.shape[1], -1)
    precision = torch.linalg.pinv(spread + 1e-6 * torch.eye(len(spread), dtype=torch.float64))
    first = torch.randint(len(table), (_TRIALS,), generator=generator)
    second = (first + 1 + torch.randint(len(table) - 1, (_TRIALS,), generator=generator)) % len(table)
    # With replacement: few rows stand for many, and must not give each other away by being left.
    others = table[torch.randint(len(table), (_TRIALS, size), generator=generator)]
    is_first = torch.arange(_TRIALS) % 2 == 0
    if not others_only:
        others[:, 0] = table[torch.where(is_first, first, second)]
    apart, middle = table[first] - table[second], (table[first] + table[second]) / (2 * size)
    scores = torch.einsum("tp,pq,tq->t", apart, precision, others.mean(dim=1) - middle)
    return auc(scores[is_first], scores[~is_first])
