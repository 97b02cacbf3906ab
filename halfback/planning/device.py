"""What a device holds of a configuration: its part of the model, what is trained of it, and its batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from halfback.assembly.motion import make_descent, update_rule
from halfback.config import RunConfig
from halfback.models.adapters import hidden_matrices, trainable
from halfback.models.exact import last
from halfback.models.normalising import statistics
from halfback.models.running import Bottom
from halfback.optimizers.table import form
from halfback.parties.holdings import Batch, Descent
from halfback.parties.protocol import Needs
from halfback.planning.shapes import Adapted, Lower
from halfback.planning.tracing import Call, How, bytes_of


@dataclass(frozen=True)
class Device:
    """A device's part, on the meta device.

    Attributes:
        adapted: the model that it is of.
        at: blocks before the cut.
        needs: of the method.
        head: in the U-shape, the model's last part. tail: what stands behind the bottom for a loss of the device's own.
        one: a single row.
    """

    config: RunConfig
    needs: Needs
    adapted: Adapted
    at: int
    head: nn.Module | None
    tail: nn.Module | None
    one: Mapping[str, Tensor]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Of the activations of a token, or of an image, at the cut."""
        return self.sizes_behind(self.at)

    @cached_property
    def second_sizes(self) -> tuple[int, ...]:
        """The same at the second cut of the U-shape."""
        return self.sizes_behind(self.adapted.blocks - (self.config.model.head or 0))

    def sizes_behind(self, blocks: int) -> tuple[int, ...]:
        """Of the activations behind so many blocks."""
        sizes = self.adapted.around(self.one).results[blocks - 1]
        return sizes[-1:] if "lengths" in self.one else sizes[1:]

    @property
    def item(self) -> int:
        """Bytes of a value of activations."""
        return self.lower.dtype.itemsize

    @cached_property
    def lower(self) -> Lower:
        """What stands before the cut."""
        return self.adapted.lower(self.at)

    @property
    def bottom(self) -> Bottom:
        """The same, as a module."""
        return self.lower.bottom

    @cached_property
    def theta(self) -> dict[str, nn.Parameter]:
        """What the device trains, by name in its part."""
        of_tail = {} if self.tail is None else {f"head.{name}": p for name, p in trainable(self.tail).items()}
        return self.lower.theta | of_tail

    @cached_property
    def exact(self) -> list[nn.Parameter]:
        """Whose gradient it takes exactly."""
        inside = {id(p) for block in last(self.bottom, self.needs.agreement.exact_blocks) for p in block.parameters()}
        return [parameter for parameter in self.theta.values() if id(parameter) in inside]

    @cached_property
    def sent_head(self) -> dict[str, nn.Parameter]:
        """In the U-shape, what comes down of the head with each batch."""
        return {} if self.head is None else trainable(self.head)

    @cached_property
    def parameter_bytes(self) -> int:
        """Weights and buffers of the part, trained ones among them; a head's that come anew are none."""
        parts = [part for part in (self.tail, self.head) if part is not None]
        if not parts:
            return self.lower.weights
        # What is above a cut is of another copy of the model: of weights tied to the embedding it has this one's.
        apart = {id(p) for p in (*self.sent_head.values(), *self.adapted.high.bottom.parameters())}
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers()) if id(t) not in apart]
        return self.lower.weights + bytes_of(tensors)

    @cached_property
    def state_bytes(self) -> int:
        """What moves θ: moments of replay, or the state of an optimiser."""
        values = sum(parameter.numel() for parameter in self.theta.values())
        if self.needs.replays:
            return 4 * values * (self.states - 1)
        if not self.needs.backpropagates:
            return 0
        optimizer = self.descent.optimizer
        return sum(bytes_of(form(optimizer, parameter).values()) for parameter in self.theta.values())

    @cached_property
    def descent(self) -> Descent:
        """Of a device that backpropagates."""
        hidden = hidden_matrices(self.bottom)
        if self.tail is not None:
            hidden |= {f"head.{name}" for name in hidden_matrices(self.tail)}
        return make_descent(self.config, "bottom", self.theta, hidden)

    @property
    def states(self) -> int:
        """Tensors that replay moves for each of θ's: itself, and its moments."""
        return 1 + len(update_rule(self.config, self.config.bottom).moments()) if self.needs.replays else 1

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of θ, and of running statistics that go with it."""
        sides = ((self.config.bottom.batch_norm, self.bottom), (self.config.top.batch_norm, self.tail))
        normed = [part for how, part in sides if how == "train" and part is not None]
        running = [tensor for part in normed for tensor in statistics(part).values()]
        return [tuple(tensor.shape) for tensor in (*self.theta.values(), *running)]

    @property
    def blocks(self) -> list[nn.Module]:
        """Of the bottom."""
        return self.lower.blocks

    def groups(self, rows: Batch) -> list[Mapping[str, Tensor]]:
        """The rows that go through at a time."""
        self.bottom.rows_at_once = self.config.client.rows_at_once
        groups = self.bottom.groups(rows.inputs)
        self.bottom.rows_at_once = None
        return groups

    def call(self, block: int, inputs: Mapping[str, Tensor], how: How) -> Call:
        """What a block of the bottom takes where these rows go through together."""
        around = self.adapted.around(inputs)
        if (block, how) not in around.calls:
            entry = around.entries[block]
            around.calls[block, how] = self.adapted.tracer.call(self.blocks[block], entry.args, entry.kwargs, how)
        return around.calls[block, how]


class Tail(nn.Module):
    """What stands behind a cut, on activations of rows of these lengths, to the loss of zeros for labels.

    Attributes:
        inner: a top, a head, or an auxiliary head.
        lengths: (B,) of the texts, with values; None for images.
        scored: of a language model, how many tokens' logits are wanted; None where it has logits of samples.
    """

    def __init__(self, inner: nn.Module, lengths: Tensor | None, scored: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["lengths"], self.__dict__["scored"] = lengths, scored

    def extra_repr(self) -> str:
        """Two that run alike are written alike."""
        return f"{self.lengths}, {self.scored}"

    def forward(self, hidden: Tensor) -> Tensor:
        """The mean loss, a scalar."""
        count: Any = self.scored
        of_tokens = None if count is None else torch.zeros(count, dtype=torch.int64, device=hidden.device)
        logits = self.inner(hidden, self.lengths, of_tokens)
        labels = torch.zeros(len(logits), dtype=torch.int64, device=hidden.device)
        return nn.functional.cross_entropy(logits.float(), labels)


def rows_bytes(rows: Batch) -> int:
    """A batch, as it is in memory."""
    tensors = [*rows.inputs.values(), rows.labels, rows.sample_ids, *([] if rows.scored is None else [rows.scored])]
    return bytes_of(tensors)


def part_of_lengths(inputs: Mapping[str, Tensor], rows: slice) -> Tensor | None:
    """The lengths of some of the rows; None for images."""
    lengths: Any = inputs.get("lengths")
    return None if lengths is None else lengths[rows]
