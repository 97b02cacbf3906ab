"""What a task asks of the top's logits: the training loss and the metric."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from halfback.errors import UserError

Objective = Literal["classification", "causal_lm", "generation"]
IGNORED = -100
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) → the mean loss of these rows, a scalar."""
Metric = Callable[[Tensor, Tensor], float]
"""(logits, labels) of all rows → what a model is scored by; more is better."""


def loss(objective: Objective, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy: of (B, C) logits on (B,) labels, or of tokens (N,) with the logits (S, V) of `scored`."""
    if objective == "classification":
        return F.cross_entropy(logits.float(), labels)
    following = _following(labels)
    total = F.cross_entropy(logits.float(), following, reduction="sum")
    return total / max(len(following), 1)  # texts of one token have nothing to predict


def scored(labels: Tensor) -> Tensor:
    """Where a language model's logits are asked for: the places of tokens behind which one comes that has a loss.

    Args:
        labels: (N,) of the tokens of texts behind one another; -100 for those without a loss, as each text's first.

    Returns:
        The places, (S,) int64 in rising order.
    """
    return (labels[1:] != IGNORED).nonzero().squeeze(1)


def _following(labels: Tensor) -> Tensor:
    """What the logits at `scored` places predict: (S,)."""
    return labels[1:][labels[1:] != IGNORED]


def loss_of(objective: Objective, own: Loss | None = None) -> Loss:
    """The mean loss of a batch by its logits and labels: somebody's own, else the objective's."""
    if own is None:
        return partial(loss, objective)
    return partial(_own_loss, own) if objective == "classification" else partial(_own_token_loss, own)


def _own_token_loss(own: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return _own_loss(own, logits, _following(labels))


def _own_loss(own: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    value = own(logits.float(), labels)
    if not isinstance(value, Tensor) or value.ndim:
        came = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"loss: the given loss returns {came}; a scalar tensor, the mean over the rows, is allowed")
    return value


def check_mean(own: Loss, logits: Tensor, labels: Tensor) -> None:
    """Refuses a loss that is no mean over rows, for methods that take the loss of a few rows at a time.

    Args:
        own: the loss.
        logits: (B, classes) of two rows or more.
        labels: (B,) of them.

    Raises:
        UserError: the loss of all rows is not the mean of the losses of each.
    """
    whole = float(_own_loss(own, logits, labels))
    mean = sum(float(_own_loss(own, logits[i : i + 1], labels[i : i + 1])) for i in range(len(labels))) / len(labels)
    if not math.isclose(whole, mean, rel_tol=1e-3, abs_tol=1e-5):
        raise UserError(
            f"loss: the given loss is {whole:g} for {len(labels)} rows together and {mean:g} as the mean of each; this "
            "method takes the loss of a few rows at a time, so a plain mean over rows is needed"
        )


def terms(objective: Objective, labels: Tensor) -> int:
    """How many rows or tokens the mean of `loss` is taken over; 0 where no token is counted."""
    return len(labels) if objective == "classification" else int((labels[1:] != IGNORED).sum())


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean cross-entropy a row or token; `metric`: accuracy in percent, or perplexity; or somebody's own."""

    loss: float
    metric: float


@torch.no_grad()
def evaluate(
    objective: Objective,
    logits_and_labels: Iterable[tuple[Tensor, Tensor]],
    own_loss: Loss | None = None,
    own_metric: Metric | None = None,
) -> Evaluation:
    """Loss and metric over batches of (logits, labels), each row or token counted once.

    `own_loss` and `own_metric` take the places of the objective's; a metric sees all rows at once, so it is for
    classification alone.
    """
    total, right, counted = 0.0, 0, 0
    mean_loss, kept = loss_of(objective, own_loss), []
    for logits, labels in logits_and_labels:
        size = terms(objective, labels)
        if objective == "classification":
            right += int((logits.argmax(dim=-1) == labels).sum())
        if own_metric is not None:
            kept.append((logits.float().cpu(), labels.cpu()))
        total += float(mean_loss(logits, labels)) * size
        counted += size
    mean = total / max(counted, 1)
    if own_metric is not None:
        return Evaluation(mean, _scored(own_metric, *(torch.cat(parts) for parts in zip(*kept, strict=True))))
    if objective == "classification":
        return Evaluation(mean, 100 * right / counted)
    return Evaluation(mean, math.exp(mean) if mean < 700 else math.inf)


def _scored(own: Metric, logits: Tensor, labels: Tensor) -> float:
    value = own(logits, labels)
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"metric: the given metric returns {value!r:.80}; a finite number is allowed")
    return found


def better(objective: Objective, candidate: float, incumbent: float) -> bool:
    """Whether a metric improved: accuracy, and what takes its place, rises; perplexity falls."""
    return candidate > incumbent if objective == "classification" else candidate < incumbent
