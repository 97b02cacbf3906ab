"""FSL-SAGE: federated split learning with estimated cut gradients (ICML 2025, arXiv 2505.23182).

A device backpropagates λ̂ = ∂ℓ(a(z), y)/∂z, the estimate that an auxiliary head a makes of the cut gradient, which never
comes down. The server keeps the head honest by aligning it with true cut gradients.

1. server → client: the averaged bottom θ and the head a
2. client, for each of the round's batches: a step of θ_m on ∂⟨λ̂, f_b(x; θ_m)⟩/∂θ_m; a stays as it is
3. client, every h-th batch → server: z_m = f_b(x; θ_m), labels; server: a step of its top, client after client, and
   λ_m = ∂ℓ/∂z_m, which it keeps
4. client → server: θ_m, a; server: their means over m
5. server, every l-th round: steps of a on the mean over m of ‖λ̂_m − λ_m‖² / ‖λ_m‖²

Ours: one head for all clients; the alignment divides by ‖λ_m‖² and takes `alignment_steps` steps of Adam on the uploads
of its own round alone, so the server stores no activations beyond it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from halfback.algorithms.client import Client
from halfback.algorithms.exchange import unexpected, upload
from halfback.algorithms.holdings import Round
from halfback.algorithms.local import descend_local
from halfback.algorithms.options import check_count
from halfback.algorithms.protocol import Conversation, Traits
from halfback.algorithms.server import Server
from halfback.algorithms.shares import Aggregation
from halfback.algorithms.top import step_top_by_client
from halfback.algorithms.weights import agreed_weights, average_weights, take_weights, weights_of
from halfback.wire.messages import Activations, Join, Message, Nothing, Weights

HEAD = "head."  # how the names of the head's parameters begin in θ


@dataclass(frozen=True)
class FslSage:
    """Options of FSL-SAGE.

    Attributes:
        every: h, batches from one upload of activations to the next.
        align_every: l, rounds from one alignment of the head to the next.
        alignment_steps, alignment_lr: of an alignment.
        aggregation: of weights: `uniform` (the paper's), or by `rows`.
    """

    traits: ClassVar[Traits] = Traits(agreement="weights", device="auxiliary", backpropagates=True)

    every: int = 1
    align_every: int = 1
    alignment_steps: int = 5
    alignment_lr: float = 1e-3
    aggregation: Aggregation = "uniform"

    def __post_init__(self) -> None:
        for option in ("every", "align_every", "alignment_steps"):
            check_count(option, getattr(self, option))

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: forward and backward passes through bottom and auxiliary head."""
        take_weights(client, (yield Join(client.position)))
        for step, batch in enumerate(client.batches(round), round.first):
            hidden = descend_local(client, batch, step, frozen=HEAD)
            if step % self.every == 0:
                yield upload(batch, hidden)
        yield weights_of(client)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Join():
                return agreed_weights(server, messages)
            case Activations():
                gradients = step_top_by_client(server, messages, every=self.every)
                server.kept = {m: (message, gradients[m]) for m, message in messages.items()}
                return {m: Nothing() for m in messages}
            case Weights():
                answers = average_weights(server, messages)
                if server.round.number % self.align_every == 0:
                    self._align(server)
                server.kept = {}
                return answers
            case _:
                raise unexpected(messages)

    def _align(self, server: Server) -> None:
        auxiliary, agreed = server.auxiliary, server.replica.parameters
        assert auxiliary is not None, "an algorithm whose devices hold an auxiliary head has it on the server too"
        own = {name.removeprefix(HEAD): p for name, p in agreed.items() if name.startswith(HEAD)}
        optimizer = torch.optim.Adam(own.values(), lr=self.alignment_lr)

        def mismatch(message: Activations, true: Tensor) -> Tensor:
            assert message.labels is not None, "the top refuses activations without labels"
            hidden = message.hidden.detach().requires_grad_()
            loss = server.loss(functional_call(auxiliary, own, (hidden, message.mask)), message.labels.long())
            (estimate,) = torch.autograd.grad(loss, hidden, create_graph=True)
            return (estimate - true).square().sum() / true.square().sum().clamp(min=torch.finfo(true.dtype).tiny)

        for _ in range(self.alignment_steps if server.kept else 0):
            optimizer.zero_grad()
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels can't be differentiated twice
                torch.stack([mismatch(*kept) for kept in server.kept.values()]).mean().backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
