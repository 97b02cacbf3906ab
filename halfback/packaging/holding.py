"""A package held against the reference: the device's own runtime on rows of the recipe, beside PyTorch."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.cut import install
from halfback.packaging.writing import Parts, Source
from halfback.parties.client_feedback import head_gradient
from halfback.parties.holdings import Batch
from halfback.wire.messages import HeadGradient, MiddleActivations

ALLOWED = {"activations": 1e-4, "exact gradients": 1e-3, "the head's loss": 1e-4, "the head's gradients": 1e-3}
"""The largest error that is let pass, relative to the largest value: float32 sums in another order, through all blocks,
come to some 1e-6, and a wrong operator to far more."""


def held_against_reference(source: Source, folder: Path) -> dict[str, float]:
    """What the package gives on a batch of its client's rows, at parameters beside those of the beginning.

    Returns:
        The largest error of each thing, relative to its largest value.

    Raises:
        UserError: a device can't work with the package, or an error is too large.
    """
    from halfback_device.errors import DeviceError  # an import is not needed to ask whether a recipe can be packaged
    from halfback_device.package import Package
    from halfback_device.runtime import Bottom, Head
    from halfback_device.session import rehearsed

    parts = source.parts
    theta = _moved(parts.theta, source.built.config.seed)
    batch = source.side.party.feed.data.batch(0)
    inputs = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
    arrays = {name: tensor.detach().numpy() for name, tensor in theta.items()}
    with _installed(parts, theta):
        reference = parts.bottom(batch.inputs)
        gradient = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
        exact = [theta[name] for name in parts.exact]
        wanted = torch.autograd.grad((reference * gradient).sum(), exact) if exact else ()
    of_head = _head_of(source, batch, reference.detach())
    try:
        package = Package.open(folder)
        with tempfile.TemporaryDirectory() as scratch:
            rehearsed(package, Path(scratch) / "caches")
        device = Bottom(package)
        found, noted = device.noting(inputs, arrays.__getitem__, parts.exact_blocks)
        slopes = device.exact(noted, gradient.numpy(), arrays.__getitem__) if exact else {}
        given = None if of_head is None else Head(package).loss(*(_arrays(value) for value in of_head[0]))
    except DeviceError as refusal:
        raise UserError(f"the package can't be used on a device: {refusal}") from None
    errors = {"activations": _error([torch.from_numpy(found)], [reference])}
    if wanted:
        errors["exact gradients"] = _error([torch.from_numpy(slopes[name]) for name in parts.exact], wanted)
    if of_head is not None and given is not None:
        found, loss, tensors = given
        said = of_head[1]
        errors["the head's loss"] = _error([torch.tensor([loss])], [said.loss])
        own = [torch.from_numpy(array) for array in (found, *tensors)]
        errors["the head's gradients"] = _error(own, [said.gradient, *said.head])
    for what, error in errors.items():
        if not error <= ALLOWED[what]:
            raise UserError(
                f"{what} of the package are off by {error:.1e} of the largest; {ALLOWED[what]:g} is allowed"
            )
    return errors


def _head_of(source: Source, batch: Batch, hidden: Tensor) -> tuple[tuple[Any, ...], HeadGradient] | None:
    """What a head is given on a batch whose activations are `hidden`, and what the reference says of it."""
    head, middle = source.parts.head, source.built.ground.level(source.client or 0).top
    if head is None:
        return None
    lengths, tensors = batch.inputs.get("lengths"), tuple(p.detach().clone() for p in head.parameters.values())
    with torch.no_grad():
        passed = middle(hidden, lengths)
    said = head_gradient(head, batch, MiddleActivations(passed, tensors))
    return (passed, [tensor.detach() for tensor in tensors], lengths, batch.labels, batch.scored), said


def _arrays(value: Any) -> Any:
    """Tensors as arrays; a list of them as a list; None as it is."""
    if isinstance(value, list):
        return [tensor.numpy() for tensor in value]
    return None if value is None else value.numpy()


def _moved(theta: Mapping[str, Tensor], seed: int) -> dict[str, nn.Parameter]:
    """θ a little beside its beginning, where some gradients are zero: an adapter's, of which one factor is."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(parameter.detach() + 0.02 * torch.randn(parameter.shape, generator=generator))
        for name, parameter in theta.items()
    }


@contextmanager
def _installed(parts: Parts, theta: Mapping[str, Tensor]) -> Iterator[None]:
    """While this context is open, the bottom has these parameters."""
    own = parts.theta
    install(parts.bottom, theta)
    try:
        yield
    finally:
        install(parts.bottom, own)


def _error(found: list[Tensor], wanted: Any) -> float:
    """The largest difference of all, relative to the largest value."""
    largest = max(float(tensor.detach().abs().max()) for tensor in wanted)
    off = max(float((one - other.detach().cpu()).abs().max()) for one, other in zip(found, wanted, strict=True))
    return off / max(largest, 1e-30)
