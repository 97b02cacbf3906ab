"""A package held against the reference: the device's own runtime on rows of the recipe, beside PyTorch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.cut import install
from halfback.packaging.writing import Source
from halfback.zeroth.directions import seed_for

ALLOWED = {"activations": 1e-4, "exact gradients": 1e-3}
"""The largest error that is let pass, relative to the largest value: float32 sums in another order, through all blocks,
come to some 1e-6, and a wrong operator to far more."""


def held_against_reference(source: Source, folder: Path) -> dict[str, float]:
    """What the package gives on a batch of its client's rows, at parameters beside those of the beginning.

    Returns:
        The largest error of each thing, relative to its largest value.

    Raises:
        UserError: the device's package is not installed, it can't work with the package, or an error is too large.
    """
    try:
        from halfback_device.errors import DeviceError
        from halfback_device.package import Package
        from halfback_device.runtime import Bottom
    except ModuleNotFoundError:
        raise UserError("a package is checked with the device's own runtime: pip install halfback-device") from None
    theta, exact = _moved(source), list(source.side.party.theta.replica.exact)
    batch = source.side.party.feed.data.batch(0)
    inputs = {name: tensor.cpu().numpy() for name, tensor in batch.inputs.items()}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in theta.items()}
    with _installed(source, theta):
        bottom = source.side.party.bottom
        reference = bottom(batch.inputs)
        gradient = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
        exact = [name for name in exact if name in theta]
        wanted = torch.autograd.grad((reference * gradient).sum(), [theta[n] for n in exact]) if exact else ()
    blocks = _blocks_with(source, exact)
    try:
        device = Bottom(Package.open(folder))
        found, noted = device.noting(inputs, arrays.__getitem__, blocks)
        slopes = device.exact(noted, gradient.numpy(), arrays.__getitem__) if exact else {}
    except DeviceError as error:
        raise UserError(f"the package can't be used on a device: {error}") from None
    errors = {"activations": _error([torch.from_numpy(found)], [reference])}
    if exact:
        errors["exact gradients"] = _error([torch.from_numpy(slopes[name]) for name in exact], wanted)
    for what, error in errors.items():
        if not error <= ALLOWED[what]:
            raise UserError(
                f"{what} of the package are off by {error:.1e} of the largest; {ALLOWED[what]:g} is allowed"
            )
    return errors


def _moved(source: Source) -> dict[str, Tensor]:
    """θ a little beside its beginning, where some gradients are zero: an adapter's, of which one factor is."""
    generator = torch.Generator().manual_seed(seed_for(source.built.config.seed, "package") % (1 << 63))
    return {
        name: nn.Parameter(
            parameter.detach() + 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
        )
        for name, parameter in source.theta.items()
    }


@contextmanager
def _installed(source: Source, theta: Mapping[str, Tensor]) -> Iterator[None]:
    """While this context is open, the client's part has these parameters."""
    part, own = source.side.parts()[0], source.theta
    install(part, theta)
    try:
        yield
    finally:
        install(part, own)


def _blocks_with(source: Source, names: list[str]) -> int:
    """How many of the last blocks have these parameters of θ."""
    blocks, wanted = source.side.party.bottom.blocks, {id(source.theta[name]) for name in names}
    inside = [any(id(parameter) in wanted for parameter in block.parameters()) for block in blocks]
    return len(blocks) - inside.index(True) if any(inside) else 0


def _error(found: list[Tensor], wanted: Any) -> float:
    """The largest difference of all, relative to the largest value."""
    largest = max(float(tensor.detach().abs().max()) for tensor in wanted)
    off = max(float((one - other.detach().cpu()).abs().max()) for one, other in zip(found, wanted, strict=True))
    return off / max(largest, 1e-30)
