"""What both ends know of what a link carries, and how much of it a message may hold: all of it from the recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfback_device.codecs.protocol import Receiver
from halfback_device.messages import Array, Role
from halfback_device.replay import Replica
from halfback_device.wire import Most


@dataclass(frozen=True)
class HiddenForm:
    """Hidden states of samples, float32.

    `shape`: of one sample's; of a text, whose tokens are among those of its batch, (the most tokens, features).
    """

    shape: tuple[int, ...]
    has_texts: bool

    @property
    def rows(self) -> int:
        """Rows of the matrix that codecs take, a sample: channels of an image, one of a vector; of texts at most."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def width(self) -> int:
        """Values in such a row: of a token, of an image's channel, or of a vector."""
        return math.prod(self.shape) // self.rows

    def matrix(self, hidden: Array) -> Array:
        """Hidden states as codecs take them, (rows, width)."""
        return hidden.reshape(-1, self.width)

    def tensor(self, matrix: Array) -> Array:
        """Hidden states from their matrix."""
        return matrix if self.has_texts else matrix.reshape(-1, *self.shape)

    def most(self, rows: int) -> Most:
        """Of a batch of so many samples, without a codec."""
        shape = (rows * self.shape[0], *self.shape[1:]) if self.has_texts else (rows, *self.shape)
        return Most(4 * math.prod(shape), shape=shape)


@dataclass(frozen=True)
class VectorForm:
    """A vector that belongs to no samples: `length` float32 values.

    Codecs take it in rows of `width` values, the last one filled up with zeros. What they make of several such vectors
    may come one behind the other.
    """

    width: ClassVar[int] = 256

    length: int

    @property
    def rows(self) -> int:
        """Of the matrix that codecs take, a vector."""
        return -(-self.length // self.width)

    def matrix(self, vector: Array) -> Array:
        """The vector as codecs take it, (rows, width)."""
        matrix = np.zeros((self.rows, self.width), dtype=np.float32)
        matrix.reshape(-1)[: self.length] = vector
        return matrix

    def tensor(self, matrix: Array) -> Array:
        """The vector from its matrix, or several one behind the other from theirs."""
        return matrix.reshape(-1, self.rows * self.width)[:, : self.length].reshape(-1)


LinkForm = HiddenForm | VectorForm


@dataclass(frozen=True)
class Bounds:
    """What the server's messages may hold.

    Attributes:
        rows: of a batch; steps: of the run.
        slopes: values of all slopes in one message.
        exact: values of the exact gradients of a step; state: bytes of what all of them together move.
        weights: what one message may hold of the model.
        masks: bytes of what a secure sum's messages may hold; 0 where there is none.
    """

    rows: int
    steps: int
    slopes: int
    exact: int
    state: int
    weights: Most
    masks: int = 0

    def receiving(self, forms: Mapping[str, LinkForm], receivers: Mapping[str, Receiver]) -> dict[Role, Most]:
        """The most that the fields of a message to the device may hold, by role; lengths and the like never come."""
        exact = Most(4 * self.exact)
        if "slopes_down" in receivers:
            exact = Most(*receivers["slopes_down"].most(forms["slopes_down"].rows, 1))
        most: dict[Role, Most] = {
            "slopes": Most(max(4 * self.slopes, self._kept(exact.bytes) * exact.bytes), exact.tensors),
            "losses": Most(4),
            "steps": Most(4 * self.steps),  # a number for each, where a message has them as a tensor
            "caches": Most(8 * len(forms)),
            "thresholds": Most(4 * len(forms)),
            "weights": self.weights,
            "masks": Most(self.masks),
        }
        roles: tuple[Role, ...] = ("activations", "gradient")
        for role in roles:
            link = f"{role}_down"
            form = forms.get(link)
            if isinstance(form, HiddenForm):
                most[role] = (
                    Most(*receivers[link].most(self.rows * form.rows, self.rows))
                    if link in receivers
                    else form.most(self.rows)
                )
        return most

    def _kept(self, row: int) -> int:
        """Of how many steps exact gradients may come at once, each of so many bytes (docs/protocol.md)."""
        return max(min((self.state - 1) // row, max(1 << 20, self.state // 4) // self.exact), 1) if row else 0


def bounds_of(
    replica: Replica, head: Mapping[str, Array], *, directions: int, rows: int, steps: int, masks: int = 0
) -> Bounds:
    """The bounds of a run with batches of so many rows and with so many steps of P `directions`.

    `head`: the trained tensors of the device's head, in the U-shape; `masks`: as in `Bounds`.
    """
    own = [list(head.values()), list(replica.exact_state().values())]
    sizes = [sum(array.nbytes for array in arrays) for arrays in own]
    return Bounds(
        rows=rows,
        steps=steps,
        slopes=steps * directions * len(replica.groups),
        exact=replica.width(0),
        state=sizes[1],
        weights=Most(max(sizes), tensors=max(len(arrays) for arrays in own)),
        masks=masks,
    )
