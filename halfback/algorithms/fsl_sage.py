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
the mismatch is divided by ‖λ‖²; Adam starts anew each time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from halfback.models.objectives import scored
from halfback.models.packing import parts
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
FIELDS = ("z", "lengths", "labels")  # of a row in a set


@dataclass(frozen=True)
class FslSage:
    """Options of FSL-SAGE.

    Attributes:
        every: h, batches from one upload of activations to the next.
        align_every: l, rounds from one alignment of the heads to the next.
        alignment_epochs, alignment_lr: of an alignment.
        alignment_rows: kept of each client, also in checkpoints.
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
        if held["aligned"] < due and held["rows"] > 0:
            self._align(server, m, held)
        held["aligned"] = torch.tensor(due)
        return Weights(tuple(held.get(name, p) for name, p in server.agreed.replica.parameters.items()))

    def _align(self, server: Server, m: int, held: dict[str, Tensor]) -> None:
        assert server.auxiliary is not None, "where devices hold an auxiliary head the server has it too"
        own = {n.removeprefix(HEAD): t.clone().requires_grad_() for n, t in held.items() if n.startswith(HEAD)}
        refreshed = []
        for hidden, lengths, labels in _batches(held):
            (true,) = torch.autograd.grad(loss_of(server, m, hidden.requires_grad_(), lengths, labels), hidden)
            refreshed.append((hidden, lengths, labels, true))
        optimizer = torch.optim.Adam(own.values(), lr=self.alignment_lr)
        for hidden, lengths, labels, true in refreshed * self.alignment_epochs:
            of_tokens = scored(labels) if server.top.scores_tokens else None
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels can't be differentiated twice
                logits = functional_call(server.auxiliary, own, (hidden, lengths, of_tokens))
                loss = server.top.loss(logits, labels.long())
                (estimate,) = torch.autograd.grad(loss, hidden, create_graph=True)
                size = true.square().sum().clamp(min=torch.finfo(true.dtype).tiny)
                ((estimate - true).square().sum() / size).backward(inputs=list(own.values()))
            optimizer.step()
            optimizer.zero_grad()
        held |= {HEAD + name: tensor.detach() for name, tensor in own.items()}

    def _keep(self, held: dict[str, Tensor], message: Activations) -> None:
        hidden, lengths, labels = message.hidden, message.lengths, cast(Tensor, message.labels)
        for place, part in enumerate(parts(hidden, lengths)):
            number, own = int(held["rows"]), slice(place, place + 1)
            held[f"z.{number}"] = hidden[part].clone()  # a view would keep all of it
            held[f"labels.{number}"] = labels[part if len(labels) == len(hidden) else own].clone()
            if lengths is not None:
                held[f"lengths.{number}"] = lengths[own].clone()
            held["rows"] = held["rows"] + 1
            for field in FIELDS:
                held.pop(f"{field}.{number - self.alignment_rows}", None)


def _held(server: Server, m: int) -> dict[str, Tensor]:
    """What lasts of client m: its head, when that was `aligned`, and its set: each row by its number."""
    held = server.recall(TensorsByClient).of
    if m not in held:
        heads = ((n, p) for n, p in server.agreed.replica.parameters.items() if n.startswith(HEAD))
        held[m] = {n: p.detach().clone() for n, p in heads} | {k: torch.tensor(0) for k in ("aligned", "rows")}
    return held[m]


def _batches(held: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """A client's set in batches: activations, lengths of texts and labels."""
    numbers = sorted(int(name.removeprefix("z.")) for name in held if name.startswith("z."))
    for own in (numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH)):
        rows = {f: torch.cat([held[f"{f}.{n}"] for n in own]) for f in FIELDS if f"{f}.{own[0]}" in held}
        yield rows["z"], rows.get("lengths"), rows["labels"]
