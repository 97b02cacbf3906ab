"""How much each client of a cohort counts in a mean: all alike, or by their training rows.

By rows is Federated Averaging's mean (McMahan et al., arXiv 1602.05629, algorithm 1): client k counts n_k / Σ n, over
the clients of the round. n_k is the number of rows that it trains on, not those of a batch: a batch stands for all of
its client's rows, and the last of an epoch is smaller by chance. Ours: the means that belong to a step (of slopes, and
of the top's gradients) go by the same shares as those of weights, so both parts descend on one objective.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["uniform", "rows"]


def mean(stacked: Tensor, shares: Sequence[float] | None) -> Tensor:
    """Along the first dimension, by the entries' `shares`, or alike without any; in the dtype of `stacked`."""
    if shares is None:
        return stacked.mean(dim=0)
    weights = torch.tensor(shares, dtype=torch.float64, device=stacked.device)
    return torch.tensordot(weights, stacked.double(), dims=1).to(stacked.dtype)
