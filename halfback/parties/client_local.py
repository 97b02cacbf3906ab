"""What devices with a loss of their own do alike: slopes of it, and steps on its gradient."""

import torch
from torch import Tensor

from halfback.models.packing import parts
from halfback.parties.client import Client
from halfback.parties.holdings import Batch, Local
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import Cotangent, Probe, estimate_slopes


@torch.no_grad()
def local_slopes(client: Client, batch: Batch, probe: Probe) -> Tensor:
    """Slopes of the device's own loss along the seeded directions of its replica's next step: (P,) float32.

    The loss of the first pass is entered in `client.losses`: at θ itself, or with `central` at its first probe.
    """
    local, measured = client.own, client.theta.measured
    taken: list[Tensor] = []

    def run() -> Tensor:
        rows = row_losses(local, batch)
        taken.append(rows.detach().mean())
        return rows

    of = torch.full_like(batch.sample_ids, 1 / len(batch.sample_ids), dtype=torch.float32)
    seeds = client.theta.seeds(probe.directions)
    slopes = estimate_slopes(run, local.model, measured, Cotangent(of), seeds, probe.settled(measured))
    client.losses.append(taken[0].item())
    return slopes.to(torch.float32)


def row_losses(local: Local, batch: Batch) -> Tensor:
    """The part of each row in the mean loss of a batch, times their number: (B,), whose mean is that loss."""
    labels, losses = batch.labels.long(), list[Tensor]()
    total, samples = max(local.terms(labels), 1), len(batch.sample_ids)
    rows = parts(labels, None if batch.scored is None else batch.inputs["lengths"])
    sizes = [1 if batch.scored is None else local.terms(labels[row]) for row in rows]  # how many logits a row has
    for logits in local.model.pieces(batch.inputs, batch.scored):
        begin = 0
        for row, size in zip(rows[len(losses) :], sizes[len(losses) :], strict=True):
            if begin + size > len(logits):
                break
            loss = local.loss(logits[begin : begin + size], labels[row])
            losses.append(loss * (local.terms(labels[row]) * samples / total))
            begin += size
        del logits  # before the next ones are computed
    return torch.stack(losses)


def descend_local(client: Client, batch: Batch, step: int, *, frozen: str | None = None) -> Tensor:
    """A step of the client's optimiser on the gradient of its own loss; returns the activations at the cut, detached.

    Parameters whose names begin with `frozen` get no gradient and stay.
    """
    local, kept = client.own, []
    hook = local.model.bottom.register_forward_hook(lambda _module, _args, hidden: kept.append(hidden.detach()))
    try:
        loss = local.of(batch)
    finally:
        hook.remove()
    moving = [p for name, p in client.theta.trained.items() if frozen is None or not name.startswith(frozen)]
    with client.first_order.last_pass(step):
        loss.backward(inputs=moving)
    client.losses.append(loss.item())
    client.descend(step)
    return kept[0]


def hybrid_step(client: Client, batch: Batch, below: Replica, step: int, probe: Probe) -> Tensor:
    """A step on the device's own loss: zeroth order below the boundary, backpropagation above it.

    The graph starts at the activations at the boundary, so nothing of what lies below is in it.

    Args:
        client: the device, whose own model is cut at its boundary.
        batch: that the loss is of.
        below: the parameters below the boundary; moved by their slopes.
        step: of the run, from which the schedules take the learning rates.
        probe: how the slopes are taken.

    Returns:
        The slopes of ⟨λ, z⟩, with λ the gradient at the boundary: (P,) float32.
    """
    local = client.own
    bottom, head = local.model.bottom, local.model.head
    with torch.no_grad():
        hidden = bottom(batch.inputs)
    loss = local.loss(head(hidden.requires_grad_(), batch.inputs.get("lengths"), batch.scored), batch.labels.long())
    with client.first_order.last_pass(step):
        loss.backward()
    client.losses.append(loss.item())
    assert hidden.grad is not None
    cotangent = Cotangent.at(hidden.grad, hidden, batch.inputs.get("lengths"))
    del loss, hidden  # the device needs their memory for what follows
    client.descend(step)
    run = lambda: bottom(batch.inputs)  # noqa: E731
    seeds, settled = below.seeds(probe.directions), probe.settled(below.parameters)
    slopes = estimate_slopes(run, bottom, below.parameters, cotangent, seeds, settled).to(torch.float32)
    below.replay(below.position, slopes.unsqueeze(0), [step])
    return slopes
