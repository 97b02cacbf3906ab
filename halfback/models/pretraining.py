"""The server's own training of a whole model, before it is cut and handed out."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pretrain(model: nn.Module, batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], *, lr: float) -> None:
    """First-order classification training (AdamW, everything trainable) on (inputs, labels) batches, in place."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for inputs, labels in batches:
        output = model(**inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
