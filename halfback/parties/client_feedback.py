"""What a device learns of one batch: the gradient at its cut, whoever takes the loss, and its slopes from that.

Without a head, the server has the rest of the model and the labels come with the activations. In the U-shape (SplitCom,
arXiv 2602.10564) the device has the head too, and the labels stay:

1. device → server: z, lengths of the texts
2. server → device: z' = f_m(z), the middle's output, and the head's trainable tensors ω
3. device: ℓ = ℓ(f_h(z'; ω), y) → ∂ℓ/∂z', ℓ, ∂ℓ/∂ω
4. server → device: λ = ∂ℓ/∂z, by a backward pass through the middle

The graph of step 3 starts at what the server sent and ends at the loss; nothing of the bottom is in it.

Ours, because the paper leaves it open: the head's tensors are moved by the server, as the middle's are, on the mean of
the cohort's gradients, so a device keeps neither an optimiser nor weights of its own for them; a device takes the loss
of a few rows at a time, so that the logits of these alone are in its memory.
"""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from halfback.errors import Diverged
from halfback.models.checkpointing import checkpointed
from halfback.models.packing import parts, within
from halfback.parties.checks import all_finite, check_tensors
from halfback.parties.client import Client
from halfback.parties.client_exchange import cut_gradient, received, upload
from halfback.parties.holdings import Batch, Head, Round
from halfback.wire.messages import HeadGradient, Message, MiddleActivations
from halfback.zeroth.directions import Seeds
from halfback.zeroth.slopes import Cotangent, Probe, estimate_slopes

_ROWS = 8  # taken at once; one where each token has logits, which are then larger than all else of a row together


def feedback(client: Client, batch: Batch, hidden: Tensor) -> Generator[Message, Any, Tensor]:
    """λ = ∂ℓ/∂z for the activations `hidden`, in their shape and dtype.

    Raises:
        PeerError: something else came than was asked for.
        Diverged: what came is not finite.
    """
    return cut_gradient((yield from submit(client, batch, hidden)), hidden)


def submit(client: Client, batch: Batch, hidden: Tensor) -> Generator[Message, Any, Any]:
    """The server's last answer to a batch, as it came; raises as `feedback` does."""
    if client.head is None:
        return (yield upload(batch, hidden))
    wanted = hidden.new_empty(()).expand(len(hidden), *client.head.sizes)
    answer = received((yield upload(batch, hidden, labels=False)), MiddleActivations)
    del hidden  # a caller that has no more use of it wants its memory back
    check_tensors("MiddleActivations.hidden", (answer.hidden,), {"the second cut": wanted}, sender="server")
    check_tensors("MiddleActivations.head", answer.head, client.head.parameters, sender="server")
    if not all(all_finite(tensor) for tensor in (answer.hidden, *answer.head)):
        cure = "lower top.lr or clip the top (top.clip)"
        raise Diverged("MiddleActivations", "is not finite", cure, sender="server")
    said = head_gradient(client.head, batch, answer)
    del answer
    return (yield said)


def feedback_slopes(client: Client, batch: Batch, cotangent: Cotangent, seeds: Seeds, probe: Probe) -> Tensor:
    """How ⟨λ, z⟩ changes along each seed's direction, by forward passes: (seeds,) float32.

    A caller need not keep z while the device probes: the cotangent has what is needed of it.
    """
    measured = client.theta.measured
    run = lambda: client.forward(batch)  # noqa: E731
    return estimate_slopes(run, client.bottom, measured, cotangent, seeds, probe.settled(measured)).float()


def first_order_steps(client: Client, round: Round, *, checkpointing: bool = False) -> Generator[Message, Any, None]:
    """The batches of a round: z → λ from the server → a step on ∂⟨λ, z⟩/∂θ.

    `checkpointing`: the client stores only what enters each block and computes the rest again in its backward pass.
    Raises as `feedback` does.
    """
    for place, batch in enumerate(client.feed.batches(round)):
        with checkpointed(client.bottom, checkpointing):
            hidden = client.bottom(batch.inputs)
        gradient = yield from feedback(client, batch, hidden)
        with client.first_order.last_pass(round.first + place):
            hidden.backward(gradient)
        del hidden, gradient  # the device needs their memory for what follows
        client.descend(round.first + place)


def head_gradient(head: Head, batch: Batch, answer: MiddleActivations) -> HeadGradient:
    """The loss of a batch and its gradients, with the graph of a few rows at a time.

    Their mean counts as often as it has terms, so the sum is the batch's mean up to the order of summation; the
    gradients of ω are added up in float32.
    """
    names, weights = list(head.parameters), [tensor.requires_grad_() for tensor in answer.head]
    lengths, total = batch.inputs.get("lengths"), max(head.terms(batch.labels), 1)
    gradient, losses = torch.empty_like(answer.hidden), []
    sums = [torch.zeros_like(weight, dtype=torch.float32, requires_grad=False) for weight in weights]
    samples = parts(gradient, lengths)
    at_once = _ROWS if batch.scored is None else 1
    for first in range(0, len(samples), at_once):
        own = slice(first, first + at_once)
        rows = slice(samples[own][0].start, samples[own][-1].stop)
        hidden = answer.hidden[rows].detach().requires_grad_()
        labels = batch.labels[own if batch.scored is None else rows].long()
        arguments = (hidden, None if lengths is None else lengths[own], within(batch.scored, rows))
        # Its logits are never given a name here: they would live on beside their gradient.
        loss = head.loss(functional_call(head.module, dict(zip(names, weights, strict=True)), arguments), labels)
        loss = loss * (head.terms(labels) / total)
        gradient[rows], *slopes = torch.autograd.grad(loss, [hidden, *weights], materialize_grads=True)
        for mine, slope in zip(sums, slopes, strict=True):
            mine += slope
        losses.append(loss.detach())
    of_head = tuple(mine.to(weight.dtype) for mine, weight in zip(sums, weights, strict=True))
    return HeadGradient(gradient, torch.stack(losses).sum().reshape(1), of_head)
