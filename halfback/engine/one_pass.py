"""The clients of a cohort that share θ go through the bottom as one batch, where one process plays all of them.

The first of them to call its bottom has it run for those who speak after it too, on the batches that these will be at,
and each of these finds its part ready when its own turn comes to the same call. What a client will ask for is a guess,
and where it is wrong it costs time alone: a part is handed out to a client that has the very tensors it was made from,
while θ is as it was, and with the same in place of the weights. Whatever doesn't fit runs for its client alone.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast, final

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from halfback.engine.client_side import ClientSide
from halfback.models.running import rows_of
from halfback.parties.client import Client
from halfback.parties.holdings import Batch
from halfback.zeroth.substitution import in_force

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """What the bottom made of one client's batch among others.

    Attributes:
        made_of: the batch's tensors. A part is found by their `id`, which is nobody else's as long as they are here.
        hidden: the activations; tangent: of them, where a tangent was asked for and there is one.
        passes: the forward passes that the client is charged for.
    """

    made_of: tuple[Tensor, ...]
    hidden: Tensor
    tangent: Tensor | None
    passes: int

    def value(self) -> Tensor:
        """As the bottom would have returned it."""
        return self.hidden if self.tangent is None else forward_ad.make_dual(self.hidden, self.tangent)


@final
class OnePass:
    """What runs the bottom for several clients, within one round."""

    def __init__(self, sides: Sequence[ClientSide]) -> None:
        self._sides = {side.party.id: side for side in sides}
        self._speaking: list[ClientSide] = []
        self._at: dict[int, Batch] = {}  # by client, the batch that it ran last
        self._ready: dict[int, dict[Hashable, _Part]] = {}

    def exchange(self, numbers: Sequence[int]) -> None:
        """These clients speak next, in this order."""
        if self._ready:  # somebody didn't come for its part
            self._leave_off()
        self._speaking = [self._sides[number] for number in numbers if number in self._sides]

    def run(self, side: ClientSide, batch: Batch) -> Tensor:
        """What the bottom makes of a client's batch."""
        client, ready = side.party, self._ready.pop(side.party.id, {})
        part = ready.pop(_key(client, batch.inputs), None)
        if ready:
            self._ready[client.id] = ready
        if part is None and ready:  # it doesn't do what the one before it did
            self._leave_off()
        if part is None:
            found = self._run_for_all(side, batch)
        else:
            side.meters.forward_passes += part.passes
            found = part.value()
        self._at[client.id] = batch
        return found

    def _leave_off(self) -> None:
        """From here on each client of the round runs alone: what was made ahead was not wanted."""
        self._sides, self._speaking, self._ready = {}, [], {}

    def _run_for_all(self, side: ClientSide, batch: Batch) -> Tensor:
        """What the bottom makes of this batch; that of those who come later is kept for them."""
        client, batches = side.party, [batch, *(later := self._later(side, batch)).values()]
        if len(batches) == 1:
            return cast(Tensor, client.bottom(batch.inputs))
        counter = side.counter()
        try:
            joined = forward_ad.unpack_dual(client.bottom(_joined([each.inputs for each in batches])))
        finally:
            counter.remove()
        if not all(bool(torch.isfinite(each).all()) for each in joined if each is not None):
            # A value that is not finite may have reached its neighbours in a row, so who has it shows alone.
            self._leave_off()
            side.meters.forward_passes -= counter.count
            return cast(Tensor, client.bottom(batch.inputs))
        sizes = [rows_of(each.inputs) for each in batches]
        hiddens = joined.primal.split(sizes)
        tangents = [None] * len(sizes) if joined.tangent is None else joined.tangent.split(sizes)
        parts = [
            _Part(tuple(each.inputs.values()), hidden, tangent, counter.count)
            for each, hidden, tangent in zip(batches, hiddens, tangents, strict=True)
        ]
        for number, part, each in zip(later, parts[1:], batches[1:], strict=True):
            other = self._sides[number].party
            self._ready.setdefault(number, {})[_key(other, each.inputs)] = part
        return parts[0].value()

    def _later(self, side: ClientSide, batch: Batch) -> dict[int, Batch]:
        """Those who speak after this client and have its θ and bottom, with the batches that they will be at.

        A client that runs the batch of before once more probes it, and so will the others.
        """
        if side not in self._speaking:
            return {}
        client, again = side.party, self._at.get(side.party.id) is batch
        found = {}
        for later in self._speaking[self._speaking.index(side) + 1 :]:
            other = later.party
            alike = other.bottom is client.bottom and other.theta.replica is client.theta.replica
            if alike and other.theta.groups == client.theta.groups:
                theirs = self._at.get(other.id) if again else other.feed.next()
                if theirs is not None and _form(theirs) == _form(batch):
                    found[other.id] = theirs
        return found


@contextmanager
def one_pass(sides: Sequence[ClientSide]) -> Iterator[OnePass]:
    """While this context is open, these clients' bottoms run for several at once; for none of them, nothing changes."""
    together = OnePass(sides)
    try:
        for side in sides:
            side.party.beside = partial(together.run, side)
        yield together
    finally:
        for side in sides:
            side.party.beside = side.party.feed.ahead = None


def _key(client: Client, inputs: Inputs) -> Hashable:
    """All that what the bottom makes of these inputs depends on; a tensor's version counts its changes in place."""
    replica = client.theta.replica
    theta = tuple((id(parameter), parameter._version) for parameter in replica.parameters.values())
    of_batch = tuple((name, id(tensor), tensor._version) for name, tensor in inputs.items())
    return (client.bottom, id(replica), replica.position, theta, in_force(), of_batch)


def _form(batch: Batch) -> Hashable:
    """What batches that become one have in common."""
    return tuple((name, tensor.dtype, tensor.shape[1:]) for name, tensor in batch.inputs.items())


def _joined(inputs: Sequence[Inputs]) -> dict[str, Tensor]:
    """One batch of several: of texts their tokens, of images the rows, one behind the other."""
    return {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
