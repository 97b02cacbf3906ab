"""How wrong a measured slope is: RMSE over rms against float64 forward-mode differentiation, by radius and estimator.

    python benchmarks/slope_error.py

The default radius (`halfback.zeroth.slopes.default_radius`) was chosen from this table.
"""

import argparse
import copy

import torch
from parts import make_batch, make_bottom

from halfback.models.adapters import trainable
from halfback.zeroth.directions import Seeds, seed_for
from halfback.zeroth.slopes import Cotangent, Probe, default_radius, estimate_slopes

RADII = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--directions", type=int, default=20)
    arguments = parser.parse_args()
    print("| bottom | trained | dtype | parameters | estimator | " + " | ".join(f"μ={r:g}" for r in RADII), end="")
    print(" | default μ | error there |\n|" + " --- |" * (len(RADII) + 7))
    seeds = Seeds(tuple(seed_for("slope error", p) for p in range(arguments.directions)))
    for name in ("minilm", "opt"):
        for train in ("lora", "full"):
            bottom, vocabulary = make_bottom(name, train)
            batch = make_batch(vocabulary, arguments.rows, arguments.length)
            exact, gradient = reference(bottom, batch.inputs, seeds)
            for dtype in (torch.float32, torch.bfloat16):
                measured = bottom if dtype == torch.float32 else make_bottom(name, train, dtype)[0]
                size = sum(p.numel() for p in trainable(measured).values())
                for estimator in ("forward", "central"):
                    radius = default_radius(trainable(measured), dtype)
                    errors = [error(measured, batch.inputs, seeds, exact, gradient, estimator, r) for r in RADII]
                    chosen = error(measured, batch.inputs, seeds, exact, gradient, estimator, radius)
                    cells = " | ".join(f"{value:.3f}" for value in errors)
                    print(
                        f"| {name} | {train} | {str(dtype)[6:]} | {size:,} | {estimator} | {cells} | {radius:.2g} | "
                        f"{chosen:.3f} |",
                        flush=True,
                    )


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


def error(bottom, inputs, seeds, exact, gradient, estimator, radius) -> float:  # type: ignore[no-untyped-def]
    """RMSE of the measured slopes over the rms of the exact ones."""
    with torch.no_grad():
        hidden = bottom(inputs)
    cotangent = gradient.to(hidden.dtype)
    slopes = estimate_slopes(
        lambda: bottom(inputs),
        bottom,
        trainable(bottom),
        Cotangent.at(cotangent, hidden),
        seeds,
        Probe(len(seeds), radius, estimator),
    )
    return float(((slopes - exact).square().mean() / exact.square().mean()).sqrt())


if __name__ == "__main__":
    main()
