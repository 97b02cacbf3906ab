"""Membership: whether a row was trained on, by its loss through the final model, which is smaller where it was.

The threshold on the loss is the simplest such attack (Yeom et al., arXiv 1709.01604). TPR at 1 % FPR is beside the area
under the curve because an attack that is right about a few rows for sure is worse than one that guesses a little about
all (Carlini et al., arXiv 2112.03570).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from halfback.assembly import Built
from halfback.auditing.apart import drawn, first_rows, pooled
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, auc, auc_margin, true_positives
from halfback.auditing.seat import Seat
from halfback.data.batches import Split

_ROWS = 500  # of each kind, at most
_PLANTED_ROWS, _FEATURES = 32, 1024
_FOUND = 0.9  # of the planted area: a model's that knows its rows by heart
_FEWEST = 32  # rows that no batch had, for them to stand against those that one had
_OTHER_SOURCE = (
    "Membership: every training row was in a batch, so validation rows stood against them; where these are of another "
    "source than training rows, the attack may tell the sources apart."
)
_SURE, _CLASSES = 10.0, 32  # of its logits; and so many that hardly another row is right by luck


def membership(seat: Seat, clock: Clock) -> tuple[list[Finding], list[str]]:
    """Tells training rows from validation rows; says so where nothing was trained yet."""
    if not seat.is_trained:
        return [], ["Membership: a recipe has trained on nobody's rows yet; audit a run's folder for it."]
    seat.tell("membership: losses of rows that were trained on, and of others")
    members, others, against = _sides(seat)
    inside, outside = (seat.losses(seat.affordable(split, 0.4 * clock.seconds, _ROWS)) for split in (members, others))
    by_heart = _by_heart(seat)
    drawn = torch.rand(len(inside) + len(outside), generator=seat.generator)
    finding = Finding(
        about="membership",
        how=f"threshold on the loss, against {against}",
        measure="AUC",
        value=auc(-inside, -outside),
        chance=0.5,
        margin=auc_margin(len(inside), len(outside)),
        planted=auc(-by_heart[0], -by_heart[1]),
        needed=_FOUND,
        control=auc(drawn[: len(inside)], drawn[len(inside) :]),
        rows=len(inside) + len(outside),
        beside={"TPR at 1 % FPR": true_positives(-inside, -outside, 0.01)},
    )
    return [finding], [] if others is not seat.rows.own else [_OTHER_SOURCE]


def _sides(seat: Seat) -> tuple[Split, Split, str]:
    """Training rows that batches had, and rows that none had: of the same source where enough are left."""
    train, generator = seat.built.task.train, seat.generator
    reached = _reached(seat.built)
    held = {int(row) for source in seat.built.clients.sources.values() for row in source.rows}
    left = sorted(held - reached)
    if len(left) < _FEWEST or len(reached) < _FEWEST:
        return seat.rows.victims, seat.rows.own, "validation rows"
    return (
        train.take(drawn(sorted(reached), _ROWS, generator)),
        train.take(drawn(left, _ROWS, generator)),
        "training rows that no batch had yet",
    )


def _reached(built: Built) -> set[int]:
    """The training rows that were in a batch of a client, as far as this process knows of it."""
    found: set[int] = set()
    for number, side in built.federation.clients.items():
        source, cursor = built.clients.sources[number], side.party.feed.cursor
        rows = source.rows.tolist()
        batches = -(-len(rows) // len(source.batch(0).sample_ids))
        if cursor < batches:
            rows = [row for batch in range(cursor) for row in source.batch(batch).sample_ids.tolist()]
        found.update(rows)
    return found


@torch.no_grad()
def _by_heart(seat: Seat) -> tuple[Tensor, Tensor]:
    """Losses of a model that is overfitted, of rows that it was fitted to and of others: the planted leak.

    More random features of the activations than rows, fitted by least squares to labels that were drawn: there is
    nothing in them to learn but the rows themselves.
    """
    built, split = seat.built, first_rows(seat.rows.own, 2 * _PLANTED_ROWS)
    hidden = seat.hidden(built.model, split)
    rows = pooled(hidden, split.batch(range(len(split))).inputs.get("lengths")).double().cpu()
    rows = (rows - rows.mean(dim=0)) / (rows.std(dim=0) + 1e-9)
    generator = seat.generator
    mixed = torch.randn(rows.shape[1], _FEATURES, generator=generator, dtype=torch.float64) / rows.shape[1] ** 0.5
    features = (rows @ mixed).relu()
    labels = torch.randint(_CLASSES, (len(rows),), generator=generator)
    half = len(rows) // 2
    wanted = _SURE * F.one_hot(labels[:half], _CLASSES).double()
    fitted = torch.linalg.lstsq(features[:half], wanted, driver="gelsd").solution
    losses = F.cross_entropy(features @ fitted, labels, reduction="none")
    return losses[:half], losses[half:]
