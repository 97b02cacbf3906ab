"""HOSL: hybrid-order split learning of one client and one server (arXiv 2601.10940).

No gradient comes down: the device differences the true loss, which the server takes through its top. One step:

1. client: z = f_b(x; θ) → z, labels; the server keeps them
2. client, for q = 1, …, Q: z± = f_b(x; θ ± μu_q) → each; server, without a graph: ℓ± = ℓ(f_t(z±), y) → one scalar each
3. server: a first-order step of its top on ℓ(f_t(z), y)
4. client: θ moves by the optimiser on (1/Q) Σ_q v_q u_q with v_q = (ℓ⁺ − ℓ⁻) / 2μ

Traffic a step: 2Q + 1 activations up, 2Q scalars down. Ours: z goes first, where the paper sends it last, so labels and
lengths travel once; the server steps on it after the last probe, as in the paper, so all losses are of one top. Several
clients take turns, and replay the steps of the others, whose slopes the server has from its own losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from halfback.parties.by_slopes import BySlopes
from halfback.parties.client import Client
from halfback.parties.client_exchange import upload
from halfback.parties.client_probing import difference, probe_slopes
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation, Needs
from halfback.parties.server import Server
from halfback.parties.server_probing import keep_batches, kept_of, probe_loss
from halfback.parties.server_top import backpropagate_top, step_top
from halfback.wire.messages import Activations, Losses, Message
from halfback.zeroth.slopes import Probe


@dataclass(frozen=True)
class Hosl:
    """Options of HOSL.

    Attributes:
        directions: Q, seeded directions a step.
        radius: μ, the probe radius; None takes the measured default for the parameters' number and dtype.
    """

    directions: int = 10
    radius: float | None = None

    def __post_init__(self) -> None:
        self._probe.check()

    @property
    def needs(self) -> Needs:
        """What must be prepared."""
        return Needs(BySlopes(self.directions), turns="one_by_one", probe=self._probe, cut_gradient=False)

    @property
    def _probe(self) -> Probe:
        return Probe(self.directions, self.radius, "central")

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The device's side: 1 + 2Q forward passes a step."""
        yield from self.needs.agreement.join(client)
        for step, batch in enumerate(client.feed.batches(round), round.first):
            hidden = client.forward(batch)
            sent = hidden.dtype
            probe = self._probe.settled(client.theta.parameters, sent)
            yield upload(batch, hidden)
            del hidden
            slopes = yield from probe_slopes(client, batch, probe, sent)
            client.theta.replay(client.theta.position, slopes.unsqueeze(0), [step])

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange."""
        match next(iter(messages.values())):
            case Activations(labels=None):
                ((client, message),) = messages.items()  # they take turns
                loss = probe_loss(server, client, message)
                losses = kept_of(server)[client].losses
                losses.append(loss.item())
                if len(losses) == 2 * self.directions:
                    self._step(server, client, losses)
                return {client: Losses(loss.reshape(1))}
            case Activations():
                return keep_batches(server, messages)
            case _:
                return self.needs.agreement.answer(server, messages)

    def _step(self, server: Server, client: int, losses: list[float]) -> None:
        backpropagate_top(server, {client: kept_of(server).pop(client).batch})
        step_top(server, [client])
        probe = self._probe.settled(server.agreed.replica.parameters, server.top.form.dtype)
        slopes = [difference(losses[place : place + 2], probe) for place in range(0, len(losses), 2)]
        server.agreed.append(torch.tensor(slopes, dtype=torch.float32))
