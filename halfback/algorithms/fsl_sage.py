"""FSL-SAGE: federated split learning with estimated cut gradients (ICML 2025, arXiv 2505.23182).

A device backpropagates λ̂ = ∂ℓ(a_m(z), y)/∂z, the estimate that its auxiliary head a_m makes of the cut gradient, which
never comes down. The server keeps each client's head honest by aligning it with true cut gradients:
1. server, in the first of m's rounds from each l-th on: for the set S_m, λ = ∂ℓ/∂z through the top as it is now; then
   epochs over S_m of steps of a_m on ‖λ̂ − λ‖² / ‖λ‖² of each batch
2. server → client: the averaged bottom θ, and the client's own head a_m
3. client, for each of the round's batches: a step of θ_m on ∂⟨λ̂, f_b(x; θ_m)⟩/∂θ_m; a_m stays as it is
4. client, every h-th batch → server: z_m = f_b(x; θ_m), labels; server: a step of its top, client after client; S_m
   takes the rows of z_m in, and keeps the newest of all from round to round
5. client → server: θ_m, a_m; server: the mean of θ_m over m
Heads, sets, epochs and the size of set and batches are as in the authors' code, where every client is in every round.
Ours: a newcomer begins with the mean of the last round's heads, and who was away at an alignment is aligned when back;
the mismatch is divided by ‖λ‖²; Adam starts anew each time; a batch has rows of one length, as they came.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from halfback.parties.by_weights import ByWeights
from halfback.parties.client import Client
from halfback.parties.client_exchange import upload
from halfback.parties.client_local import descend_local
from halfback.parties.cohort import Aggregation
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs, check_count
from halfback.parties.server import Server, TensorsByClient
from halfback.parties.server_top import loss_of, step_top_by_client
from halfback.wire.messages import Activations, Join, Message, Nothing, Weights

HEAD = "head."  # how the names of the head's parameters begin in θ
BATCH = 100  # rows of one step of an alignment


@dataclass(frozen=True)
class FslSage:
    """Options of FSL-SAGE.

    Attributes:
        every: h, batches from one upload of activations to the next.
        align_every: l, rounds from one alignment of the heads to the next.
        alignment_epochs, alignment_lr: of an alignment; alignment_rows: kept of each client, also in checkpoints.
        aggregation: of weights: `uniform` (the paper's), or by `rows`.
    """

    every: int = 1
    align_every: int = 1
    alignment_epochs: int = 5
    alignment_lr: float = 1e-3
    alignment_rows: int = 1000
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        for option in ("every", "align_every", "alignment_epochs", "alignment_rows"):
            check_count(option, getattr(self, option))

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(ByWeights(self.aggregation), holds="auxiliary", backpropagates=True, lasting=TensorsByClient)

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes through bottom and auxiliary head."""
        yield from self.needs.agreement.join(client)
        for step, batch in enumerate(client.feed.batches(round), round.first):
            hidden = descend_local(client, batch, step, frozen=HEAD)
            if step % self.every == 0:
                yield upload(batch, hidden)
        yield from self.needs.agreement.close(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return {m: self._weights_for(server, m) for m in messages}
            case Activations():
                step_top_by_client(server, messages, every=self.every)
                for m, message in messages.items():
                    self._keep(_held(server, m), message)
                return dict.fromkeys(messages, Nothing())
            case _:
                return self.needs.agreement.answer(server, messages)

    def _weights_for(self, server: Server, m: int) -> Weights:
        held, due = _held(server, m), server.round.number // self.align_every
        if held["aligned"] < due and _uploads(held):
            self._align(server, m, held)
        held["aligned"] = torch.tensor(due)
        return Weights(tuple(held.get(name, p) for name, p in server.agreed.replica.parameters.items()))

    def _align(self, server: Server, m: int, held: dict[str, Tensor]) -> None:
        assert server.auxiliary is not None, "where devices hold an auxiliary head the server has it too"
        own = {n.removeprefix(HEAD): t.clone().requires_grad_() for n, t in held.items() if n.startswith(HEAD)}
        refreshed = []
        for hidden, mask, labels in _batches(held):
            (true,) = torch.autograd.grad(loss_of(server, m, hidden.requires_grad_(), mask, labels), hidden)
            refreshed.append((hidden, mask, labels, true))
        optimizer = torch.optim.Adam(own.values(), lr=self.alignment_lr)
        for hidden, mask, labels, true in refreshed * self.alignment_epochs:
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels can't be differentiated twice
                loss = server.top.loss(functional_call(server.auxiliary, own, (hidden, mask)), labels.long())
                (estimate,) = torch.autograd.grad(loss, hidden, create_graph=True)
                size = true.square().sum().clamp(min=torch.finfo(true.dtype).tiny)
                ((estimate - true).square().sum() / size).backward(inputs=list(own.values()))
            optimizer.step()
            optimizer.zero_grad()
        held |= {HEAD + name: tensor.detach() for name, tensor in own.items()}

    def _keep(self, held: dict[str, Tensor], message: Activations) -> None:
        first, rows = int(held["rows"]), {"z": message.hidden, "mask": message.mask, "labels": message.labels}
        held |= {f"{field}.{first}": tensor for field, tensor in rows.items() if tensor is not None}
        held["rows"] = torch.tensor(first + len(message.hidden))
        oldest = int(held["rows"]) - self.alignment_rows
        for start in [start for start in _uploads(held) if start < oldest]:
            for field in rows:
                tensor = held.pop(f"{field}.{start}", None)
                if tensor is not None and len(tensor) > oldest - start:
                    held[f"{field}.{oldest}"] = tensor[oldest - start :].clone()  # a view would keep all of it


def _held(server: Server, m: int) -> dict[str, Tensor]:
    """What lasts of client m: its head, when that was `aligned`, and its set: uploads by the number of a first row."""
    held = server.recall(TensorsByClient).of
    if m not in held:
        heads = ((n, p) for n, p in server.agreed.replica.parameters.items() if n.startswith(HEAD))
        held[m] = {n: p.detach().clone() for n, p in heads} | {k: torch.tensor(0) for k in ("aligned", "rows")}
    return held[m]


def _uploads(held: Mapping[str, Tensor]) -> list[int]:
    """The numbers of the uploads in a client's set, the oldest first."""
    return sorted(int(name.removeprefix("z.")) for name in held if name.startswith("z."))


def _batches(held: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """A client's set in batches of rows of one length: activations, mask and labels."""
    alike: dict[torch.Size, list[int]] = {}
    for number in _uploads(held):
        alike.setdefault(held[f"z.{number}"].shape[1:], []).append(number)
    for numbers in alike.values():
        hidden, labels = (torch.cat([held[f"{field}.{n}"] for n in numbers]) for field in ("z", "labels"))
        mask = torch.cat([held[f"mask.{n}"] for n in numbers]) if f"mask.{numbers[0]}" in held else None
        for part in (slice(at, at + BATCH) for at in range(0, len(hidden), BATCH)):
            yield hidden[part], None if mask is None else mask[part], labels[part]
