"""An inverter that is trained: from what arrives of a token back to the token's embedding, and by it to the token.

A linear map in closed form (ridge regression), to which a layer of hidden units is added that starts at zero and is
trained for a bounded time; kept is what reads most of a tenth of the attacker's tokens that it is not trained on.
It looks at one token's activations at a time, so a deeper attack that looks at a whole text may read more.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfback.auditing.clock import Clock

_SCALE = 20.0  # of cosines, as logits
_BATCH, _OTHERS = 256, 1024  # tokens of a step, and wrong tokens drawn beside those of the batch
_HELD, _MOST_HELD = 10, 128  # every tenth token is held out, this many at most
_LEGS = 3  # times that it is looked at on these


@dataclass(frozen=True)
class Trained:
    """An inverter, and what it is.

    Attributes:
        module: activations (N, H) → directions in the space of embeddings (N, E).
        table: (V, E), the embeddings, centred and of length one.
        values: how many are fitted.
        steps: of training beside the closed form, that were kept.
    """

    module: nn.Module
    table: Tensor
    values: int
    steps: int

    @torch.no_grad()
    def read(self, hidden: Tensor) -> Tensor:
        """The token that each activation is nearest to, (N,)."""
        found = F.normalize(self.module(hidden), dim=1)
        return torch.cat([(part @ self.table.T).argmax(dim=1) for part in found.split(256)])


class _Inverter(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, linear: Tensor) -> None:
        super().__init__()
        width, out = linear.shape
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = nn.Parameter(linear)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Parameter(torch.zeros(2 * width, out))

    def forward(self, hidden: Tensor) -> Tensor:
        centred = (hidden - self.mean) / self.scale
        return centred @ self.linear + F.gelu(self.inner(centred)) @ self.outer


def trained(hidden: Tensor, tokens: Tensor, table: Tensor, clock: Clock, generator: torch.Generator) -> Trained:
    """Fits an inverter on the attacker's own tokens.

    Args:
        hidden: what arrives of them, (N, H) float32.
        tokens: their numbers, (N,).
        table: the embedding of each token there is, (V, E).
        clock: how long it may be trained beside the closed form.
        generator: of what is drawn.
    """
    table = F.normalize(table - table.mean(dim=0), dim=1)
    held = torch.arange(len(tokens)) % _HELD == 0
    judged = held.nonzero().squeeze(1)[:_MOST_HELD]
    own, targets = hidden[~held], tokens[~held]
    module = _fitted(own, table[targets], generator)
    values = sum(parameter.numel() for parameter in module.parameters())

    def right() -> int:
        return int((Trained(module, table, 0, 0).read(hidden[judged]) == tokens[judged]).sum())

    best, kept, steps = right(), {k: v.clone() for k, v in module.state_dict().items()}, 0
    kept_steps = 0
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for leg in range(1, _LEGS + 1):
        if best == len(judged):
            break  # nothing is left to learn
        while clock.spent < clock.seconds * leg / _LEGS:
            _step(module, optimizer, own, targets, table, generator)
            steps += 1
        if steps and (now := right()) > best:
            best, kept, kept_steps = now, {k: v.clone() for k, v in module.state_dict().items()}, steps
    module.load_state_dict(kept)
    return Trained(module, table, values, kept_steps)


@torch.no_grad()
def _fitted(hidden: Tensor, wanted: Tensor, generator: torch.Generator) -> _Inverter:
    """The closed form: least squares with a penalty of a thousandth of a feature's own size."""
    mean, scale = hidden.mean(dim=0), hidden.std(dim=0) + 1e-6
    centred = ((hidden - mean) / scale).double()
    gram = centred.T @ centred
    gram += 1e-3 * len(hidden) * torch.eye(len(gram), dtype=torch.float64)
    linear = torch.linalg.solve(gram, centred.T @ wanted.double()).float()
    module = _Inverter(mean, scale, linear)
    bound = hidden.shape[1] ** -0.5
    for parameter in module.inner.parameters():
        parameter.uniform_(-bound, bound, generator=generator)
    return module


def _step(
    module: _Inverter,
    optimizer: torch.optim.Optimizer,
    hidden: Tensor,
    targets: Tensor,
    table: Tensor,
    generator: torch.Generator,
) -> None:
    """Cross-entropy of a batch's tokens among themselves and others that are drawn."""
    rows = torch.randint(len(hidden), (_BATCH,), generator=generator)
    others = torch.randint(len(table), (_OTHERS,), generator=generator)
    candidates, places = torch.unique(torch.cat([targets[rows], others]), return_inverse=True)
    with torch.enable_grad():
        logits = _SCALE * F.normalize(module(hidden[rows]), dim=1) @ table[candidates].T
        loss = F.cross_entropy(logits, places[:_BATCH])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
