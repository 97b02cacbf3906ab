"""The compiled kernel has the bits of the tensor operations, zeros' signs included.

Where it was not built, these tests are skipped, and all others of this folder hold the tensor operations alone.
"""

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from halfback.zeroth import native
from halfback.zeroth.directions import (
    PACK_WIDTH,
    Directions,
    Law,
    Pack,
    Segment,
    direction_of,
    direction_rows,
    seed_for,
)
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import perturbed
from halfback.zeroth.update import UpdateRule

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(not native.serves(CPU), reason="no kernel: `pip install .` found no compiler, or was not run"),
    pytest.mark.parametrize("law", ["rademacher", "gaussian"]),
]
# Sizes around those of a block, a tile and a pack; "matrix" is longer than a pack and begins in the middle of one.
SHAPES = {"one": (1,), "none": (0,), "odd": (127,), "tile": (2049,), "bias": (7,), "matrix": (301, 500), "tail": (129,)}
assert PACK_WIDTH < 301 * 500


def by_tensors(make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives without the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_kernel", None)
        return make()


def assert_bits(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert one.dtype == other.dtype == torch.float32
    assert torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


@pytest.mark.parametrize("scales", [None, [1.0, -0.3, 0.0, 1e-42]])
def test_directions_of_a_pack(law: Law, scales: list[float] | None) -> None:
    """The gaps too: a pack's segments begin far inside of their parameters, above 2^32 blocks, and end anywhere."""
    segments = (
        Segment("far", 2**45 + 128 * 7, 2**45 + 128 * 7 + 5000, 0),
        Segment("near", 0, 3, 5120),
        Segment("carry", 128 * (2**32 - 5), 128 * (2**32 + 30), 5248),  # the block number's low word overflows
    )
    pack = Pack(segments, 5248 + 128 * 35)
    seeds = [0, 2**32 - 1, 2**63 + 5, 2**64 - 1]

    def made() -> Tensor:
        return pack.directions(seeds, law=law, device=CPU, scales=scales)

    assert_bits(made(), by_tensors(made))


@pytest.mark.parametrize("width", [1, 6, 127, 128, 2049, 5000])
def test_rows_of_a_direction(law: Law, width: int) -> None:
    """Rows begin anywhere in a block."""

    def made() -> Tensor:
        return direction_rows(seed_for(1), "table", torch.tensor([0, 3, 4, 11, 2**40 + 1]), width, law=law)

    assert_bits(made(), by_tensors(made))


@pytest.mark.parametrize("radius", [1e-3, -0.3, 0.0])
def test_a_moved_copy(law: Law, radius: float) -> None:
    """Of zeros of both signs too, and of a parameter whose values don't lie in order."""
    layers = nn.ModuleList(nn.Linear(*shape) for shape in ((3, 5), (127, 1), (500, 301)))
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[0.0, -0.0, 1e-40]] * 5))
        layers[1].weight = nn.Parameter(torch.randn(127, 2).t()[:1])
        layers[2].weight = nn.Parameter(torch.randn(500, 301).t())
    seen: list[Tensor] = []

    def kept(layer: nn.Linear) -> Callable[[], None]:
        return lambda: seen.extend(value.detach().flatten().clone() for value in layer._parameters.values())

    for layer in layers:
        layer.forward = kept(layer)

    def made() -> Tensor:
        seen.clear()
        with torch.no_grad(), perturbed(layers, dict(layers.named_parameters()), seed_for(2), radius, law=law):
            for layer in layers:
                layer()
        return torch.cat(seen)

    assert_bits(made(), by_tensors(made))


def replayed(
    rule: UpdateRule, law: Law, rows: Tensor, *, at_once: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Parameters and moments after `rows`, one after another in one tensor."""
    generator = torch.Generator().manual_seed(0)
    held = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    replica = Replica(
        held, rule, Directions(lambda row, p: seed_for(5, row, p), law), schedule=lambda step: 1 / (step + 1)
    )
    for piece in rows.split(len(rows) if at_once else 1):
        replica.replay(replica.position, piece)
    states: list[Mapping[str, Tensor]] = [replica.parameters, *replica.moments.values()]
    return torch.cat([tensor.flatten().float() for state in states for tensor in state.values()])


CHANGES = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "normalize": {"normalize": True, "weight_decay": 0.1},
    "clip": {"clip": 5.0},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("optimizer", ["sgd", "sign", "momentum", "adamw"])
def test_replay(law: Law, optimizer: str, change: str) -> None:
    """At once, one at a time and by tensor operations; also a row of zeros, whose estimate is zeros of both signs."""
    rule = dataclasses.replace(UpdateRule(optimizer, lr=1e-2), **CHANGES[change])  # type: ignore[arg-type]
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    rows[2] = 0
    wanted = by_tensors(lambda: replayed(rule, law, rows))
    assert_bits(replayed(rule, law, rows), wanted)
    assert_bits(replayed(rule, law, rows, at_once=False), wanted)


@pytest.mark.parametrize("directions", [1, native.DIRECTIONS_AT_ONCE // 2 - 1, native.DIRECTIONS_AT_ONCE + 1])
def test_more_directions_than_a_call_is_handed(law: Law, directions: int) -> None:
    rule = UpdateRule("momentum", lr=1e-2)
    held = {"w": torch.linspace(-1, 1, 300)}
    rows = torch.randn(5 if directions > 1 else 1100, directions, generator=torch.Generator().manual_seed(1))

    def moved() -> Tensor:
        own = {name: tensor.clone() for name, tensor in held.items()}
        Replica(own, rule, Directions(lambda row, p: 2**40 * row + p, law)).replay(0, rows)
        return own["w"]

    assert_bits(moved(), by_tensors(moved))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replay_of_half_precision(law: Law, optimizer: str) -> None:
    """Its estimates are the kernel's; a step is rounded to the parameters' dtype, which tensor operations do."""
    rule = UpdateRule(optimizer, lr=1e-2)  # type: ignore[arg-type]
    rows = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    wanted = by_tensors(lambda: replayed(rule, law, rows, dtype=torch.bfloat16))
    assert_bits(replayed(rule, law, rows, dtype=torch.bfloat16), wanted)


def test_another_default_device_is_not_the_kernels(law: Law) -> None:
    """What it writes to is on the CPU, where its addresses are."""
    parameter = torch.linspace(-1, 1, 300)
    wanted, rows = direction_of(1, "w", parameter, law=law), torch.tensor([1, 3])
    of_rows = direction_rows(1, "w", rows, 20, law=law)
    with torch.device("meta"):
        assert_bits(direction_of(1, "w", parameter, law=law), wanted)
        assert_bits(direction_rows(1, "w", rows, 20, law=law), of_rows)
