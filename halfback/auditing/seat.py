"""What an attacker on the server's seat has: the run as the server knows it, rows of its own, and some time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from halfback.assembly import Built
from halfback.auditing.apart import Apart, first_rows
from halfback.data.batches import Split
from halfback.models.cut import CutModel
from halfback.models.objectives import evaluate, loss_of
from halfback.models.running import Top

_AT_ONCE = 32  # rows of a forward pass
_TIMED, _FEWEST = 4, 16  # rows that tell how long one takes; and that are taken however long it does


@dataclass(frozen=True)
class Seat:
    """What all attacks have in common.

    Attributes:
        built: the run, with the weights that are attacked.
        rows: set apart.
        is_trained: whether these are a run's weights, and not those that it would begin with.
        tell: is told where an attack stands.
        generator: of whatever is drawn.
    """

    built: Built
    rows: Apart
    is_trained: bool
    tell: Callable[[str], None]
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @torch.no_grad()
    def hidden(self, level: CutModel, split: Split) -> Tensor:
        """The activations of some rows at a cut."""
        device = self.built.ground.device
        parts = torch.arange(len(split)).split(_AT_ONCE)
        return torch.cat([level.bottom(split.batch(part).to(device).inputs) for part in parts])

    @torch.no_grad()
    def quality(self, level: CutModel, split: Split, hidden: Tensor) -> float | None:
        """The metric of what follows the cut on activations as they arrived; None where nothing was trained."""
        if not self.is_trained:
            return None
        batch, task = split.batch(range(len(split))).to(self.built.ground.device), self.built.task
        lengths = batch.inputs.get("lengths")
        hidden = hidden.to(self.built.ground.form.dtype)
        if isinstance(level.top, Top):
            logits = level.top(hidden, lengths, batch.scored)
        else:
            assert level.head is not None, "behind a middle comes a head"
            logits = level.head(level.top(hidden, lengths), lengths, batch.scored)
        found = evaluate(task.objective, [(logits, batch.labels)], task.own_loss, task.own_metric).metric
        return found if math.isfinite(found) else None

    def affordable(self, split: Split, seconds: float, most: int) -> Split:
        """The first rows, as many as the whole model takes the losses of in so much time, but no fewer than a few."""
        some = first_rows(split, _TIMED)
        begun = time.perf_counter()
        self.losses(some)
        each = (time.perf_counter() - begun) / len(some)
        return first_rows(split, max(_FEWEST, min(most, int(seconds / each))))

    @torch.no_grad()
    def losses(self, split: Split) -> Tensor:
        """The loss of each row, (B,), by the whole model."""
        task, device = self.built.task, self.built.ground.device
        mean, scores_rows = loss_of(task.objective, task.own_loss), task.objective == "classification"
        found: list[Tensor] = []
        for part in torch.arange(len(split)).split(_AT_ONCE if scores_rows else 1):
            batch = split.batch(part).to(device)
            logits = self.built.model.logits(batch.inputs, batch.scored)
            if not scores_rows:
                found.append(mean(logits, batch.labels).reshape(1))
            elif task.own_loss is None:
                found.append(F.cross_entropy(logits.float(), batch.labels, reduction="none"))
            else:
                found += [mean(logits[i : i + 1], batch.labels[i : i + 1]).reshape(1) for i in range(len(part))]
        return torch.cat(found).double().cpu()
