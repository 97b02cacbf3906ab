"""How wrong a measured slope is: RMSE over rms against float64 forward-mode differentiation.

    python benchmarks/slope_error.py [--dtypes float32 bfloat16 float16]

For float32 by radius: the default (`halfback.zeroth.radius.default_radius`) was chosen from this table. For half
precision at the default, against float64 at the same rounded weights, which is the estimator's error alone, and at the
float32 weights that they were rounded from.
"""

import argparse
import copy

import torch
from parts import FixedBatch, make_batch, make_bottom

from halfback.models.adapters import trainable
from halfback.models.cut import Bottom
from halfback.zeroth.directions import Seeds, seed_for
from halfback.zeroth.radius import default_radius
from halfback.zeroth.slopes import Cotangent, Estimator, Probe, estimate_slopes

RADII = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5)
ESTIMATORS: tuple[Estimator, ...] = ("forward", "central", "forward_ad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    seeds = Seeds(tuple(seed_for("slope error", p) for p in range(arguments.directions)))
    halves = [getattr(torch, name) for name in arguments.dtypes if name != "float32"]
    bottoms = [(name, train) for name in ("minilm", "opt") for train in ("lora", "full")]

    def batch_of(vocabulary: int) -> FixedBatch:
        return make_batch(vocabulary, arguments.rows, arguments.length)

    if "float32" in arguments.dtypes:
        print("| bottom | trained | parameters | estimator | " + " | ".join(f"μ={r:g}" for r in RADII), end="")
        print(" | default μ | error there |\n|" + " --- |" * (len(RADII) + 6))
        for name, train in bottoms:
            by_radius(name, train, batch_of, seeds)
    if halves:
        print("| bottom | trained | dtype | estimator | error, same weights | error, weights before rounding |")
        print("|" + " --- |" * 6)
        for name, train in bottoms:
            for dtype in halves:
                in_half(name, train, dtype, batch_of, seeds)


def by_radius(name, train, batch_of, seeds) -> None:  # type: ignore[no-untyped-def]
    """The rows of one bottom in float32."""
    bottom, vocabulary = make_bottom(name, train)
    batch, parameters = batch_of(vocabulary), trainable(bottom)
    exact, gradient = reference(bottom, batch.inputs, seeds)
    radius, size = default_radius(parameters), sum(p.numel() for p in parameters.values())
    for estimator in ("forward", "central"):
        errors = [
            error(measured(bottom, batch.inputs, seeds, gradient, estimator, each), exact) for each in (*RADII, radius)
        ]
        cells = " | ".join(f"{value:.3f}" for value in errors[:-1])
        print(f"| {name} | {train} | {size:,} | {estimator} | {cells} | {radius:.2g} | {errors[-1]:.3f} |", flush=True)


def in_half(name, train, dtype, batch_of, seeds) -> None:  # type: ignore[no-untyped-def]
    """The rows of one bottom in half precision."""
    fine, vocabulary = make_bottom(name, train)
    bottom, batch = make_bottom(name, train, dtype)[0], batch_of(vocabulary)
    before, gradient = reference(fine, batch.inputs, seeds)
    same, _ = reference(bottom, batch.inputs, seeds)
    for estimator in ESTIMATORS:
        slopes = measured(bottom, batch.inputs, seeds, gradient, estimator, default_radius(trainable(bottom)))
        cells = f"{error(slopes, same):.3f} | {error(slopes, before):.3f}"
        print(f"| {name} | {train} | {str(dtype)[6:]} | {estimator} | {cells} |", flush=True)


def reference(bottom, inputs, seeds):  # type: ignore[no-untyped-def]
    """Exact slopes in float64 along the seeds, and the random λ that they are for."""
    wide = copy.deepcopy(bottom).double()
    with torch.no_grad():
        hidden = wide(inputs)
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(hidden.shape, generator=generator, dtype=torch.float64) / hidden.numel()
    slopes = estimate_slopes(
        lambda: wide(inputs),
        wide,
        trainable(wide),
        Cotangent.at(gradient, hidden),
        seeds,
        Probe(len(seeds), 1.0, "forward_ad"),
    )
    return slopes, gradient


@torch.no_grad()
def measured(bottom: Bottom, inputs, seeds, gradient, estimator, radius):  # type: ignore[no-untyped-def]
    """The slopes as a device measures them, with λ in the dtype of its activations."""
    hidden = bottom(inputs)
    cotangent = Cotangent.at(gradient.to(hidden.dtype), hidden)
    probe = Probe(len(seeds), radius, estimator)
    return estimate_slopes(lambda: bottom(inputs), bottom, trainable(bottom), cotangent, seeds, probe)


def error(slopes: torch.Tensor, exact: torch.Tensor) -> float:
    """RMSE over the rms of the exact ones."""
    return float(((slopes - exact).square().mean() / exact.square().mean()).sqrt())


if __name__ == "__main__":
    main()
