"""Membership: whether a row was trained on, by its loss through the final model, which is smaller where it was.

The threshold on the loss is the simplest such attack (Yeom et al., arXiv 1709.01604). TPR at 1 % FPR is beside the area
under the curve because an attack that is right about a few rows for sure is worse than one that guesses a little about
all (Carlini et al., arXiv 2112.03570).
"""

import copy

import torch
from torch import Tensor

from halfback.auditing.apart import first_rows, halves
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, auc, auc_margin, true_positives
from halfback.auditing.seat import Seat
from halfback.data.batches import Split
from halfback.models.objectives import loss_of

_ROWS = 500  # of each kind; a language model's are run one by one
_TOKEN_ROWS = 100
_PLANTED_ROWS, _PLANTED_STEPS = 32, 60
_FOUND = 0.75  # of the planted area: an overfitted model's


def membership(seat: Seat, clock: Clock) -> tuple[list[Finding], list[str]]:
    """Tells training rows from validation rows; says so where nothing was trained yet."""
    if not seat.is_trained:
        return [], ["Membership: a recipe has trained on nobody's rows yet; audit a run's folder for it."]
    rows = _ROWS if seat.built.task.objective == "classification" else _TOKEN_ROWS
    seat.tell("membership: losses of rows that were trained on, and of others")
    inside = seat.losses(first_rows(seat.rows.victims, rows))
    outside = seat.losses(first_rows(seat.rows.own, rows))
    seat.tell("membership: a planted leak, an overfitted copy")
    planted = _overfitted(seat, clock)
    drawn = torch.rand(len(inside) + len(outside), generator=seat.generator)
    finding = Finding(
        about="membership",
        how="threshold on the loss",
        measure="AUC",
        value=auc(-inside, -outside),
        chance=0.5,
        margin=auc_margin(len(inside), len(outside)),
        planted=planted,
        needed=_FOUND,
        control=auc(drawn[: len(inside)], drawn[len(inside) :]),
        rows=len(inside) + len(outside),
        quality=None,
        beside={"TPR at 1 % FPR": true_positives(-inside, -outside, 0.01)},
    )
    return [finding], []


@torch.enable_grad()
def _overfitted(seat: Seat, clock: Clock) -> float:
    """The area of the same attack on a copy of the top that was trained, all of it, on a few of the attacker's rows."""
    inside, outside = halves(first_rows(seat.rows.own, 2 * _PLANTED_ROWS))
    built, task = seat.built, seat.built.task
    top, bottom = copy.deepcopy(built.model.top), built.model.bottom
    head = copy.deepcopy(built.model.head)
    modules = [top] if head is None else [top, head]
    parameters = [p.requires_grad_() for module in modules for p in module.parameters() if p.is_floating_point()]
    optimizer, mean = torch.optim.Adam(parameters, lr=1e-3), loss_of(task.objective, task.own_loss)

    def loss(split: Split) -> Tensor:
        batch = split.batch(range(len(split))).to(built.ground.device)
        with torch.no_grad():
            hidden = bottom(batch.inputs)
        lengths = batch.inputs.get("lengths")
        hidden = hidden if head is None else top(hidden, lengths)
        return mean((head or top)(hidden, lengths, batch.scored), batch.labels)

    for _ in range(_PLANTED_STEPS):
        optimizer.zero_grad(set_to_none=True)
        now = loss(inside)
        now.backward()
        optimizer.step()
        if float(now.detach()) < 0.01 or not clock.left:
            break
    with torch.no_grad():
        scores = [[-loss(split.take([row])) for row in range(len(split))] for split in (inside, outside)]
    return auc(*(torch.stack(each).double().cpu() for each in scores))
