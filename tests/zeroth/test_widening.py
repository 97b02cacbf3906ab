"""Over weights of half precision: the bits of the model in float32, right slopes, untouched weights, little memory."""

import copy
from collections.abc import Callable
from typing import Literal, get_args

import pytest
import torch
from probed_models import NAMES, Run, build, transformer, with_lora
from torch import Tensor, nn

from halfback.telemetry.meters import MemoryMeter
from halfback.zeroth.directions import Seeds, seed_for
from halfback.zeroth.slopes import Cotangent, Estimator, Probe, estimate_slopes
from halfback.zeroth.widening import has_half, in_float32

HALF = [torch.bfloat16, torch.float16]
SEEDS = Seeds(tuple(seed_for("half", p) for p in range(6)))


def relative(got: Tensor, wanted: Tensor) -> float:
    """RMSE over rms."""
    return float(((got - wanted).square().mean() / wanted.square().mean()).sqrt())


def as_float(model: nn.Module, dtype: torch.dtype, run: Run) -> Tensor:
    """What `run` gives with the model in another dtype, which holds its values exactly; then it is as it was."""
    before = {id(tensor): tensor.data for tensor in [*model.parameters(), *model.buffers()]}
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    result = run()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = before[id(tensor)]
    return result


def mixed_layers(dtype: torch.dtype) -> tuple[nn.Module, Run]:
    """Convolutions with a bias and batch norms, then attention, which uses a weight of another module than its own."""
    torch.manual_seed(0)
    first, norm, attention = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.TransformerEncoderLayer(8, 2, 16, 0.0)
    second = nn.Conv2d(8, 8, 3)
    model = nn.Sequential(first, norm, second, nn.Flatten(2), attention).eval().to(dtype)
    norm.running_mean.normal_()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    attention.self_attn.batch_first = True
    return model, lambda: attention(second(norm(first(images))).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", [*(name for name in NAMES if name != "conv"), "mixed"])
def test_the_bits_of_the_model_in_float32(name: str, dtype: torch.dtype) -> None:
    model, run = mixed_layers(dtype) if name == "mixed" else build(name, dtype)
    with torch.no_grad():
        wanted = as_float(model, torch.float32, run)
    got = in_float32(run)()
    assert got.dtype == torch.float32
    # PyTorch's own attention is one kernel only where nothing watches it: the order of its float32 sums differs.
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 if name == "mixed" else 0)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    ("name", "targets", "dtype"),
    [
        ("opt", [], torch.bfloat16),
        ("opt", ["q_proj", "v_proj"], torch.float16),
        ("bert", ["query", "value"], torch.bfloat16),
        ("bert", [], torch.float16),
    ],
)
def test_a_slope_is_right(name: str, targets: list[str], dtype: torch.dtype) -> None:
    """Against float64 forward mode at the same weights; rounding passes to half precision is wrong by 0.08 and more."""
    model, run = transformer(name, dtype)
    if targets:
        with_lora(model, targets)
        for parameter in model.parameters():  # as adapters are
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    parameters = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        result = run()
    of = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype) / result.numel()

    def slopes(estimator: Estimator, of: Tensor) -> Tensor:
        probe = Probe(len(SEEDS), estimator=estimator).settled(parameters)
        return estimate_slopes(run, model, parameters, Cotangent.at(of, result.to(of.dtype)), SEEDS, probe)

    exact = as_float(model, torch.float64, lambda: slopes("forward_ad", of.double()))
    for estimator in get_args(Estimator):
        assert relative(slopes(estimator, of), exact) <= 0.05, estimator  # the goal


class Broken(Exception):
    pass


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_a_probe_that_raises_leaves_nothing_behind(estimator: Estimator) -> None:
    model, run = transformer("gpt2", torch.bfloat16)
    parameters, calls = dict(model.named_parameters()), []
    before = {key: (id(parameter), parameter.clone()) for key, parameter in parameters.items()}

    def breaks() -> Tensor:
        result = run()
        calls.append(result.dtype)
        if len(calls) == 2:
            raise Broken
        return result

    of = torch.ones_like(run())
    with pytest.raises(Broken):
        estimate_slopes(breaks, model, parameters, Cotangent(of), SEEDS, Probe(len(SEEDS), 1e-4, estimator))
    assert calls == [torch.float32] * 2
    for key, parameter in model.named_parameters():
        assert id(parameter) == before[key][0]
        assert torch.equal(parameter, before[key][1])
    assert run().dtype == (torch.ones(1).bfloat16() + 1).dtype == torch.bfloat16  # passes are their own again


def test_one_weight_at_a_time_is_in_float32() -> None:
    """Of six layers, probed and not, one has a copy at any time."""
    width, count = 768, 6
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count))).bfloat16()
    inputs = torch.randn(2, width, dtype=torch.bfloat16)
    weight = width * width * 4  # bytes of one in float32
    for probed in (count, 1):
        parameters = dict(list(model.named_parameters())[:probed])
        meter = MemoryMeter([*model.parameters(), inputs])
        resident = meter.live_bytes
        with meter.running():
            cotangent = Cotangent(torch.ones(2, width, dtype=torch.bfloat16))
            seeds = Seeds(SEEDS.numbers[:2])
            estimate_slopes(lambda: model(inputs), model, parameters, cotangent, seeds, Probe(2, 1e-4))
        # The copy, and what making a stretch of a direction takes, as with weights in float32.
        assert weight < meter.peak_bytes - resident < 1.7 * weight


def test_only_half_precision_is_widened() -> None:
    linear = nn.Linear(2, 2)
    assert not has_half(linear)
    assert not has_half(copy.deepcopy(linear).double())
    assert all(has_half(nn.Sequential(linear, nn.Linear(2, 2, dtype=dtype))) for dtype in HALF)
    tensors: dict[Literal["double", "int"], Callable[[], Tensor]] = {
        "double": lambda: torch.ones(2, dtype=torch.float64) * 2,
        "int": lambda: torch.arange(3) + 1,
    }
    assert [in_float32(make)().dtype for make in tensors.values()] == [torch.float64, torch.int64]
