"""A probe runs with the bits of weights perturbed in place, and leaves no trace of itself."""

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from probed_models import NAMES, Run, build, conv_net, transformer, with_lora
from torch import Tensor, nn

from halfback.zeroth.directions import PACK_WIDTH, Law, direction_of, seed_for
from halfback.zeroth.slopes import perturbed
from halfback.zeroth.widening import in_float32

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SEED = seed_for(3, "direction", 0, 1)
RADIUS = 1e-2

Snapshot = tuple[dict[str, Tensor], dict[str, int], dict[str, int | None], dict[str, tuple[object, ...]]]


def snapshot(model: nn.Module) -> Snapshot:
    """Everything that a probe must leave alone: values, identities, padding rows, hooks, `forward`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: id(parameter) for name, parameter in parameters.items()},
        {name: module.padding_idx for name, module in modules.items() if isinstance(module, nn.Embedding)},
        {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), module.__dict__.get("forward"))
            for name, module in modules.items()
        },
    )


def assert_untouched(model: nn.Module, before: Snapshot) -> None:
    after = snapshot(model)
    assert list(after[0]) == list(before[0])
    for name, tensor in before[0].items():
        assert torch.equal(after[0][name], tensor), name
    assert after[1:] == before[1:]


@torch.no_grad()
def in_place(run: Run, parameters: Mapping[str, Tensor], radius: float, law: Law = "rademacher") -> Tensor:
    """What `run` gives with radius·u added to the live parameters, in float32 at least; then they are put back."""
    before = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
        parameter += radius * direction_of(SEED, name, parameter, law=law)
    result = run()
    for name, parameter in parameters.items():
        parameter.data = before[name]
    return result


@torch.no_grad()
def assert_as_in_place(model: nn.Module, run: Run, parameters: Mapping[str, Tensor], **law: Law) -> None:
    run = in_float32(run)  # where nothing is of half precision, it is what it was
    base, before = run(), snapshot(model)
    for radius in (RADIUS, -RADIUS, 0.3):
        wanted = in_place(run, parameters, radius, **law)
        with perturbed(model, parameters, SEED, radius, **law):
            assert torch.equal(run(), wanted)
            assert torch.equal(run(), wanted)  # a context may hold several passes
        assert_untouched(model, before)
        assert not torch.equal(wanted, base)
    assert torch.equal(run(), base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_full_parameters(name: str, dtype: torch.dtype) -> None:
    model, run = build(name, dtype)
    assert_as_in_place(model, run, dict(model.named_parameters()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_law(dtype: torch.dtype) -> None:
    model, run = transformer("opt", dtype)
    assert_as_in_place(model, run, dict(model.named_parameters()), law="gaussian")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_counts(name: str) -> None:
    """Each parameter alone: its probe is the in-place one, and moves the result if that one does."""
    model, run = build(name)
    with torch.no_grad():
        base = run()
        for key, parameter in model.named_parameters():
            wanted = in_place(run, {key: parameter}, 0.5)
            with perturbed(model, {key: parameter}, SEED, 0.5):
                assert torch.equal(run(), wanted), key
            # A bias of attention's keys shifts a row of scores alike, and softmax takes that away up to rounding.
            silent = not parameter.numel() or key.endswith(("k_proj.bias", "key.bias", "k.bias"))
            assert silent or not torch.equal(wanted, base), key


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ["q_proj", "v_proj", "down_proj"]),
        ("gpt2", ["c_attn"]),
        ("opt", ["embed_tokens", "fc1"]),  # PEFT's embedding keeps its matrices in a dictionary that never runs
        ("bert", ["query", "word_embeddings"]),
    ],
)
def test_lora(name: str, targets: list[str], dtype: torch.dtype) -> None:
    model, run = transformer(name, dtype)
    adapters = with_lora(model, targets)
    assert len(adapters) >= 4
    assert_as_in_place(model, run, adapters)
    run = in_float32(run)
    with torch.no_grad():
        base = run()
        for key, adapter in adapters.items():
            with perturbed(model, {key: adapter}, SEED, 0.5):
                assert not torch.equal(run(), base), key


def test_lora_beside_weights_of_another_dtype() -> None:
    model, run = transformer("llama", torch.bfloat16)
    adapters = with_lora(model, ["q_proj", "v_proj"])
    for adapter in adapters.values():
        adapter.data = adapter.data.float()
    assert_as_in_place(model, run, adapters)
    assert_as_in_place(model, run, dict(model.named_parameters()))  # both dtypes at once


def test_parameters_longer_than_a_pack() -> None:
    model = nn.Sequential(nn.Linear(300, 1001), nn.Linear(1001, 7), nn.Linear(7, 3, bias=False))
    inputs = torch.randn(2, 300)
    assert sum(parameter.numel() for parameter in model.parameters()) > 2 * PACK_WIDTH
    assert_as_in_place(model, lambda: model(inputs), dict(model.named_parameters()))


@pytest.mark.parametrize("order", [1, -1])
def test_order_of_parameters(order: int) -> None:
    """Modules may run in another order than their parameters are given in."""
    model = nn.Sequential(*(nn.Linear(400, 400) for _ in range(3)))
    inputs = torch.randn(1, 400)
    assert_as_in_place(model, lambda: model(inputs), dict(list(model.named_parameters())[::order]))


@pytest.mark.parametrize("width", [6, 128])
@pytest.mark.parametrize("padding_idx", [None, 0, 4])
def test_embedding(padding_idx: int | None, width: int) -> None:
    model = nn.Sequential(nn.Embedding(10, width, padding_idx=padding_idx), nn.Linear(width, 2))
    nn.init.normal_(model[0].weight)
    parameters = dict(model.named_parameters())
    for rows in ([[4, 0], [9, 4]], [0], 3, [[], []]):
        ids = torch.tensor(rows, dtype=torch.long)
        with torch.no_grad():
            wanted = in_place(lambda ids=ids: model(ids), parameters, RADIUS)
            before = snapshot(model)
            with perturbed(model, parameters, SEED, RADIUS):
                assert torch.equal(model(ids), wanted)
                assert torch.equal(model[1](model[0](input=ids)), wanted)  # by name: the whole table is perturbed
            assert_untouched(model, before)


def test_one_parameter_in_two_modules_and_twice_in_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 5)
            self.hidden = nn.Linear(5, 5)
            self.again = self.hidden
            self.out = nn.Linear(5, 9, bias=False)
            self.out.weight = self.table.weight
            self.gain = self.bias = nn.Parameter(torch.randn(5))

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.again(self.hidden(self.table(ids)) * self.gain) + self.bias)

    model, ids = Tied(), torch.tensor([1, 8, 1])
    parameters = dict(model.named_parameters())
    assert sorted(parameters) == ["gain", "hidden.bias", "hidden.weight", "table.weight"]
    assert_as_in_place(model, lambda: model(ids), parameters)


def test_other_modules_and_other_calls_see_the_live_weights() -> None:
    model, run = conv_net()
    chosen = {"head.weight": model.head.weight}
    seen = []
    model.head.register_forward_pre_hook(lambda module, _: seen.append(module.weight is chosen["head.weight"]))
    with torch.no_grad(), perturbed(model, chosen, SEED, RADIUS):
        model.norm.register_forward_hook(lambda *_: seen.append(model.head.weight is chosen["head.weight"]))
        run()
        assert model.head.weight is chosen["head.weight"]
    # The head's own hook ran before the swap; while the norm ran, the head had its live weight.
    assert seen == [True, True, True]


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_survive_an_error_in_the_middle(name: str, dtype: torch.dtype, error: type[BaseException]) -> None:
    """At a leaf, deep inside of other modules, while its own weights and those of the modules around are swapped."""
    model, run = build(name, dtype)
    run = in_float32(run)
    before, parameters = snapshot(model), dict(model.named_parameters())
    leaves = [m for m in model.modules() if not list(m.children()) and m._parameters]
    for leaf in (leaves[0], leaves[len(leaves) // 2], leaves[-1]):
        live = leaf._parameters.copy()
        swapped = []

        def fail(
            *_: object,
            leaf: nn.Module = leaf,
            live: Mapping[str, object] = live,
            swapped: list[bool] = swapped,
            **__: object,
        ) -> None:
            swapped.append(any(leaf._parameters[key] is not live[key] for key in live))
            raise error

        leaf.forward = fail
        with torch.no_grad(), pytest.raises(error), perturbed(model, parameters, SEED, RADIUS):
            run()
        assert leaf.__dict__.pop("forward") is fail
        assert swapped == [True]
        assert_untouched(model, before)
    with torch.no_grad():  # and the model still works
        with perturbed(model, parameters, SEED, RADIUS):
            probed = run()
        assert torch.equal(probed, in_place(run, parameters, RADIUS))


def test_an_error_inside_a_context_that_goes_on() -> None:
    """A failed pass is undone at once, not only when the context closes."""
    model, run = conv_net()
    before, parameters = snapshot(model), dict(model.named_parameters())
    with torch.no_grad():
        wanted = in_place(run, parameters, RADIUS)
        with perturbed(model, parameters, SEED, RADIUS):
            with pytest.raises(RuntimeError):
                model(torch.randn(2, 5, 8, 8))  # the first convolution refuses five channels
            for name, identity in before[1].items():
                assert id(model.get_parameter(name)) == identity
            assert torch.equal(run(), wanted)
    assert_untouched(model, before)


def test_a_thousand_probes_do_not_drift() -> None:
    model, run = conv_net(torch.bfloat16)
    before, parameters = snapshot(model), dict(model.named_parameters())
    head = in_float32(lambda: model.head(torch.ones(1, 8)))
    with torch.no_grad():
        for i in range(1000):
            with perturbed(model, parameters, i, RADIUS if i % 2 else -RADIUS):
                head()
        run()
    assert_untouched(model, before)


def test_probes_keep_no_second_model_alive() -> None:
    """One module's copy at a time: what a module used is gone when the next one runs."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    alive: list[int] = []
    parameters = dict(model.named_parameters())
    live = {parameter.data_ptr() for parameter in parameters.values()}

    def counting(inputs: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        alive.append(sum(p.data_ptr() not in live for m in model for p in m._parameters.values()))
        return forward(inputs)

    for layer in model:
        layer.forward = partial(counting, forward=layer.forward)
    with torch.no_grad(), perturbed(model, parameters, SEED, RADIUS):
        model(torch.ones(1, 64))
    assert alive == [2, 2, 2, 2]  # its weight and its bias
