"""What devices with a loss of their own do alike: slopes of it, and steps on its gradient."""

import torch
from torch import Tensor

from halfback.parties.client import Client
from halfback.parties.client_descent import descend
from halfback.parties.holdings import Batch, Local
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import Estimator, default_radius, estimate_slopes, inner


@torch.no_grad()
def local_slopes(
    client: Client,
    batch: Batch,
    *,
    directions: int,
    radius: float | None,
    estimator: Estimator,
    clip_samples: float | None = None,
) -> Tensor:
    """Slopes of the device's own loss along the seeded directions of its replica's next step: (P,) float32.

    The loss of the first pass is entered in `client.losses`: at θ itself, or with `central` at its first probe.
    """
    local, replica = own_model(client), client.replica
    taken: list[Tensor] = []

    def run() -> Tensor:
        rows = row_losses(local, batch)
        taken.append(rows.detach().mean())
        return rows

    cotangent = torch.full((len(batch.labels),), 1 / len(batch.labels), device=batch.labels.device)
    slopes = estimate_slopes(
        run,
        local.device,
        client.measured,
        cotangent=cotangent,
        base=inner(cotangent, run()) if estimator == "forward" else cotangent,
        seeds=replica.seeds(directions),
        radius=radius or default_radius(client.measured, client.hidden_dtype),
        estimator=estimator,
        law=replica.law,
        clip=clip_samples,
    )
    client.losses.append(taken[0].item())
    return slopes.to(torch.float32)


def row_losses(local: Local, batch: Batch) -> Tensor:
    """The part of each row in the mean loss of a batch, times their number: (B,), whose mean is that loss."""
    logits, labels = local.device(batch.inputs), batch.labels.long()
    total = max(local.terms(labels), 1)
    losses = [
        local.loss(logits[i : i + 1], labels[i : i + 1]) * (local.terms(labels[i : i + 1]) * len(labels) / total)
        for i in range(len(labels))
    ]
    return torch.stack(losses)


def descend_local(client: Client, batch: Batch, step: int, *, frozen: str | None = None) -> Tensor:
    """A step of the client's optimiser on the gradient of its own loss; returns the activations at the cut, detached.

    Parameters whose names begin with `frozen` get no gradient and stay.
    """
    local, kept = own_model(client), []
    hook = local.device.bottom.register_forward_hook(lambda _module, _args, hidden: kept.append(hidden.detach()))
    try:
        loss = local.of(batch)
    finally:
        hook.remove()
    moving = [p for name, p in client.replica.parameters.items() if frozen is None or not name.startswith(frozen)]
    loss.backward(inputs=moving)
    client.losses.append(loss.item())
    descend(client, step)
    return kept[0]


def hybrid_step(
    client: Client,
    batch: Batch,
    below: Replica,
    step: int,
    *,
    directions: int,
    radius: float | None,
    estimator: Estimator,
    clip_samples: float | None,
) -> Tensor:
    """A step on the device's own loss: zeroth order below the boundary, backpropagation above it.

    The graph starts at the activations at the boundary, so nothing of what lies below is in it.

    Args:
        below: the parameters below the boundary; moved by their slopes.
        step: of the run, from which the schedules take the learning rates.
    Returns:
        The slopes of ⟨λ, z⟩, with λ the gradient at the boundary: (P,) float32.
    """
    local = own_model(client)
    bottom, head = local.device.bottom, local.device.head
    with torch.no_grad():
        hidden = bottom(batch.inputs)
    loss = local.loss(head(hidden.requires_grad_(), batch.inputs.get("attention_mask")), batch.labels.long())
    loss.backward()
    client.losses.append(loss.item())
    cotangent = hidden.grad
    assert cotangent is not None
    base = inner(cotangent, hidden)
    del loss, hidden  # the device needs their memory for what follows
    descend(client, step)
    slopes = estimate_slopes(
        lambda: bottom(batch.inputs),
        bottom,
        below.parameters,
        cotangent=cotangent,
        base=base,
        seeds=below.seeds(directions),
        radius=radius or default_radius(below.parameters, cotangent.dtype),
        estimator=estimator,
        law=below.law,
        clip=clip_samples,
    ).to(torch.float32)
    below.replay(below.position, slopes.unsqueeze(0), [step])
    return slopes


def own_model(client: Client) -> Local:
    """The device's own model."""
    assert client.local is not None, "an algorithm whose device holds more than the bottom gets a model of its own"
    return client.local
