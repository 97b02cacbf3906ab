"""Slopes against autograd, errors that fall at the right rate, and never a graph."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
import torch
from probed_models import NAMES, Run, build, transformer, with_lora
from torch import Tensor, nn

from halfback.zeroth.directions import Law, Seeds, direction_of, seed_for
from halfback.zeroth.radius import default_radius
from halfback.zeroth.slopes import (
    Cotangent,
    Estimator,
    Probe,
    estimate_slopes,
    inner,
    perturbed,
)

NO_BASE = torch.zeros(1)  # where it does not matter
SEEDS = [seed_for(5, "direction", 0, p) for p in range(4)]
LAWS: tuple[Law, ...] = ("rademacher", "gaussian")
ESTIMATORS = ("forward", "central", "forward_ad")
Parameters = dict[str, nn.Parameter]


def slopes_of(
    run: Run,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    cotangent: Tensor,
    base: Tensor,
    seeds: Sequence[int],
    *,
    radius: float,
    estimator: Estimator = "forward",
    law: Law = "rademacher",
    clip: float | None = None,
) -> Tensor:
    probe = Probe(len(seeds), radius, estimator, clip)
    return estimate_slopes(run, model, parameters, Cotangent(cotangent, base), Seeds(tuple(seeds), law), probe)


def cotangent_of(result: Tensor) -> Tensor:
    return torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(result.dtype)


def true_slopes(run: Run, model: nn.Module, parameters: Parameters, law: Law = "rademacher") -> tuple[Tensor, Tensor]:
    """⟨∇⟨λ, z⟩, u⟩ for each of SEEDS by reverse mode, and λ."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    padding = [table.padding_idx for table in tables]
    for table in tables:
        table.padding_idx = None  # autograd leaves the padding row out of the gradient, though the result depends on it
    result = run()
    cotangent = cotangent_of(result.detach())
    gradients = torch.autograd.grad((result * cotangent).sum(), list(parameters.values()))
    for table, index in zip(tables, padding, strict=True):
        table.padding_idx = index
    slopes = [
        sum(
            (gradient.double() * direction_of(seed, name, gradient, law=law).double()).sum().item()
            for name, gradient in zip(parameters, gradients, strict=True)
        )
        for seed in SEEDS
    ]
    return torch.tensor(slopes, dtype=torch.float64), cotangent


@pytest.fixture
def smooth() -> tuple[nn.Module, Run, Parameters]:
    """GPT-2 in float64: embeddings, tied weights, attention, and no kinks."""
    model, run = transformer("gpt2", torch.float64)
    return model, run, dict(model.named_parameters())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "vit"])
def test_forward_mode_is_exact(name: str, law: Law) -> None:
    model, run = transformer(name, torch.float64)
    parameters = dict(model.named_parameters())
    wanted, cotangent = true_slopes(run, model, parameters, law)
    got = slopes_of(run, model, parameters, cotangent, NO_BASE, SEEDS, radius=math.nan, estimator="forward_ad", law=law)
    # No truncation; what is left is the rounding of thousands of float64 operations.
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(("name", "targets"), [("gpt2", ["c_attn"]), ("opt", ["q_proj", "embed_tokens"])])
def test_forward_mode_of_adapters(name: str, targets: list[str]) -> None:
    model, run = transformer(name, torch.float64)
    adapters = with_lora(model, targets)
    wanted, cotangent = true_slopes(run, model, adapters)
    got = slopes_of(run, model, adapters, cotangent, NO_BASE, SEEDS, radius=1.0, estimator="forward_ad")
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)  # as above
    central = slopes_of(run, model, adapters, cotangent, NO_BASE, SEEDS, radius=1e-5, estimator="central")
    assert (central - wanted).norm() < 1e-5 * wanted.norm()  # μ² times a third derivative, some 1e4 here


def test_forward_mode_of_a_result_that_no_parameter_reaches() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    ones = torch.ones(1, 2)
    got = slopes_of(
        lambda: model[0](ones), model[1], dict(model[1].named_parameters()), ones, NO_BASE, SEEDS, radius=1.0,
        estimator="forward_ad",
    )  # fmt: skip
    assert got.tolist() == [0.0] * 4


@pytest.mark.parametrize("name", NAMES)
def test_difference_quotients_are_what_the_text_says(name: str) -> None:
    """Bit-equal to the formulas, computed from perturbed passes and float64 sums here."""
    model, run = build(name)
    parameters = dict(model.named_parameters())
    radius, results = 1e-3, []
    with torch.no_grad():
        base = run()
        cotangent = cotangent_of(base)
        for signed in (radius, -radius):
            with perturbed(model, parameters, SEEDS[0], signed):
                results.append(run())
    ahead, behind = (inner(cotangent, result) for result in results)
    forward = (ahead - inner(cotangent, base)) / radius
    central = (ahead - behind) / (2 * radius)
    for estimator, wanted in (("forward", forward), ("central", central)):
        got = slopes_of(
            run, model, parameters, cotangent, inner(cotangent, base), SEEDS[:1], radius=radius, estimator=estimator
        )
        assert got.dtype == torch.float64
        assert got.tolist() == [wanted.sum().item()]


@pytest.mark.parametrize(
    ("estimator", "radii", "power"),
    [
        # Truncation must rule: above, the next order of the series shows; below, rounding (1e-16 / μ).
        ("forward", [1e-7, 3e-7, 1e-6, 3e-6, 1e-5], 1),
        ("central", [3e-5, 6e-5, 1e-4, 2e-4, 4e-4], 2),
    ],
)
def test_error_falls_with_the_radius(
    smooth: tuple[nn.Module, Run, Parameters], estimator: str, radii: list[float], power: int
) -> None:
    model, run, parameters = smooth
    wanted, cotangent = true_slopes(run, model, parameters)
    with torch.no_grad():
        base = inner(cotangent, run())
    errors = []
    for radius in radii:
        got = slopes_of(run, model, parameters, cotangent, base, SEEDS, radius=radius, estimator=estimator)
        errors.append((got - wanted).norm().item())
    logs = torch.tensor([radii, errors], dtype=torch.float64).log()
    centred = logs - logs.mean(dim=1, keepdim=True)
    fitted = (centred[0] @ centred[1]) / (centred[0] @ centred[0])
    assert abs(fitted.item() - power) < 0.05  # the next order of the series adds a per cent or two here
    assert errors[-1] < 0.02 * wanted.norm()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_slopes_times_directions_are_the_gradient_on_average(estimator: str, law: Law) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs, parameters = torch.randn(5, 2, dtype=torch.float64), dict(model.named_parameters())
    result = model(inputs)
    cotangent = cotangent_of(result.detach())
    gradients = torch.autograd.grad((result * cotangent).sum(), list(parameters.values()))
    truth = torch.cat([gradient.flatten() for gradient in gradients])
    seeds = [seed_for("mean", i) for i in range(500)]
    slopes = slopes_of(
        lambda: model(inputs), model, parameters, cotangent, inner(cotangent, result), seeds,
        radius=1e-6, estimator=estimator, law=law,
    )  # fmt: skip
    directions = torch.stack(
        [torch.cat([direction_of(s, n, p, law=law).detach().flatten() for n, p in parameters.items()]) for s in seeds]
    )
    samples = slopes.unsqueeze(1) * directions
    errors = samples.std(dim=0) / len(seeds) ** 0.5
    assert ((samples.mean(dim=0) - truth).abs() < 4 * errors).all()
    # The test can fail: the standard errors are small beside the gradient that they judge.
    assert errors.norm() < 0.25 * truth.norm()


class GraphBuilt(AssertionError):
    pass


@contextmanager
def no_graph() -> Iterator[None]:
    """Saving a tensor for a backward pass is an error."""

    def refuse(tensor: Tensor) -> Tensor:
        raise GraphBuilt

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda tensor: tensor):
        yield


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
def test_no_graph_is_built(name: str, estimator: str) -> None:
    model, run = build(name)
    parameters = dict(model.named_parameters())
    assert all(parameter.requires_grad for parameter in parameters.values())
    results: list[Tensor] = []

    def watched() -> Tensor:
        results.append(run())
        return results[-1]

    cotangent = cotangent_of(run().detach())
    with no_graph():
        with pytest.raises(GraphBuilt):
            run()  # the trap works
        with torch.enable_grad():
            slopes_of(watched, model, parameters, cotangent, NO_BASE, SEEDS[:2], radius=1e-3, estimator=estimator)
    assert len(results) == (4 if estimator == "central" else 2)
    assert not any(result.requires_grad for result in results)
    assert all(parameter.grad is None for parameter in parameters.values())


def test_inner_is_summed_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (0, 1, 1000, 100_003):
        a, b = (torch.randn(size, generator=generator) for _ in range(2))
        exact = math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
        # Products of float32 are exact in float64; what is left is the sum's rounding: n · 2^-53 at the very most.
        assert abs(inner(a[None], b[None]).item() - exact) <= size * 2**-53 * (a * b).abs().sum().item()
    matrix = torch.randn(7, 11, generator=generator)
    assert inner(matrix.T, matrix.T).sum().item() == pytest.approx(matrix.double().square().sum().item(), rel=1e-14)
    assert inner(matrix.bfloat16(), matrix.bfloat16()).sum().item() == pytest.approx(
        matrix.bfloat16().double().square().sum().item(), rel=1e-14
    )
    torch.testing.assert_close(inner(matrix, matrix), matrix.double().square().sum(dim=1), rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match="zip"):
        inner(torch.ones(1, 1 << 16), torch.ones(1, 1 << 15))


def weights(size: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"w": 0.02 * torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)}


def test_default_radius() -> None:
    for size in (0, 1, 1000, 10**6, 10**7):
        parameters = {"w": torch.empty(size, device="meta")}
        single, brain, half, double = (
            default_radius(parameters, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        )
        assert 0 < single == double < half < brain < 0.1
    assert default_radius({}, torch.float32) > 0
    # More parameters never make it larger.
    radii = [default_radius({"w": torch.empty(10**k, device="meta")}, torch.float32) for k in range(10)]
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] < radii[0]


@pytest.mark.parametrize("estimator", ["forward", "central", "forward_ad"])
def test_each_row_s_slope_is_clipped_before_the_mean(estimator: Estimator) -> None:
    """Against slopes of each row's own loss, by autograd in float64."""
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3).double(), torch.randn(8, 5, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    cotangent = torch.full((8,), 1 / 8, dtype=torch.float64)

    def run() -> Tensor:
        return model(inputs).square().sum(dim=1)

    exact = []
    for seed in SEEDS[:2]:
        directions = [direction_of(seed, name, p) for name, p in parameters.items()]
        rows = [torch.autograd.grad(run()[row], list(parameters.values())) for row in range(8)]
        exact.append(torch.stack([sum((g * u).sum() for g, u in zip(row, directions, strict=True)) for row in rows]))  # type: ignore[misc]
    bound = float(torch.stack(exact).abs().median())  # half of the slopes are beyond it
    wanted = torch.stack([rows.clamp(-bound, bound).mean() for rows in exact])
    with torch.no_grad():
        base = inner(cotangent, run())
    got = slopes_of(run, model, parameters, cotangent, base, SEEDS[:2], radius=1e-6, estimator=estimator, clip=bound)
    # The forward difference of a square is off by μ·u'Hu/2: 1e-6 times some tens.
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(got, torch.stack([rows.mean() for rows in exact]), rtol=0, atol=1e-2)
