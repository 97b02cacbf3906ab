"""Measured bytes against bytes worked out by hand; every number here is four bytes a float32 element."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from halfback.telemetry.meters import ForwardCounter, MemoryMeter, Stopwatch, inference_peak_bytes

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
WIDTHS = (8, 32, 64, 4)
BATCH = 16


def mlp(device: str = "cpu") -> nn.Sequential:
    layers = [nn.Linear(n, m) for n, m in pairwise(WIDTHS)]
    return nn.Sequential(*layers).to(device)


def weight_bytes(module: nn.Module) -> int:
    return sum(4 * parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_a_forward_without_a_graph_holds_the_weights_and_two_neighbouring_activations(device: str) -> None:
    module, batch = mlp(device), torch.randn(BATCH, WIDTHS[0], device=device)
    # The batch was made outside, so it is counted only where it is named as resident.
    activations = [0, *(4 * BATCH * width for width in WIDTHS[1:])]
    highest = max(a + b for a, b in pairwise(activations))
    assert inference_peak_bytes(module, lambda: module(batch), []) == weight_bytes(module) + highest
    assert inference_peak_bytes(module, lambda: module(batch), [batch]) == (
        weight_bytes(module) + highest + 4 * batch.numel()
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_backward_adds_the_gradients_and_the_saved_activations(device: str) -> None:
    """y = relu(x W); the loss is y's sum: in the backward the engine's own temporaries are counted too."""
    x, weight = torch.randn(BATCH, 8, device=device), torch.randn(8, 32, device=device, requires_grad=True)
    meter = MemoryMeter([x, weight])
    resident, act, scalar, gradient = 4 * (BATCH * 8 + 8 * 32), 4 * BATCH * 32, 4, 4 * 8 * 32
    with meter.running():
        loss = (x @ weight).relu_().sum()
        assert meter.live_bytes == resident + act + scalar  # relu in place keeps its one result for the backward
        loss.backward()
    # The end of the backward: the gradient at relu's input and the weight's; relu's result has been let go by then.
    during_relu = resident + act + 2 * scalar + act
    during_weight = resident + 2 * scalar + act + gradient
    assert meter.peak_bytes == max(during_relu, during_weight)
    del loss
    assert meter.live_bytes == resident + gradient
    weight.grad = None
    assert meter.live_bytes == resident


def test_views_and_changes_in_place_create_nothing() -> None:
    mine, foreign = torch.zeros(100), torch.zeros(50)
    meter = MemoryMeter([mine, mine[:10], mine.view(10, 10)])
    assert meter.live_bytes == 400
    with meter.running():
        views = [mine[1:], mine.view(4, 25).t(), foreign[2:], foreign.detach(), *mine.split(10)]
        mine.add_(1).relu_()
        torch.add(mine, 1, out=mine)
        foreign.mul_(2)
        torch._foreach_add_([mine, foreign], 1)
    assert len(views) == 14
    assert (meter.live_bytes, meter.peak_bytes) == (400, 400)


def test_a_view_keeps_its_storage_alive_and_the_last_one_lets_it_go() -> None:
    meter = MemoryMeter([])
    with meter.running():
        whole = torch.zeros(100)
        part = whole[:1]
        del whole
        assert meter.live_bytes == 400
        del part
        assert meter.live_bytes == 0
    assert meter.peak_bytes == 400


def test_freed_memory_is_gone_at_once_and_reset_starts_from_what_lives() -> None:
    meter = MemoryMeter([])
    with meter.running():
        kept = torch.zeros(10)
        for _ in range(5):
            big = torch.zeros(1000)
            del big
    assert (meter.peak_bytes, meter.live_bytes) == (4040, 40)
    meter.reset()
    assert meter.peak_bytes == 40
    del kept
    assert (meter.peak_bytes, meter.live_bytes) == (40, 0)


def test_a_suspended_party_keeps_its_own_and_is_not_charged_for_the_others() -> None:
    def party():
        mine = torch.ones(100)
        feedback = yield mine
        yield mine * feedback

    client, server = MemoryMeter([]), MemoryMeter([])
    conversation = party()
    with client.running():
        sent = next(conversation)
    with server.running():
        answer = sent.repeat(10).view(10, 100).sum(0)
    assert client.peak_bytes == client.live_bytes == 400
    assert (server.peak_bytes, server.live_bytes) == (4400, 400)
    with client.running():
        result = conversation.send(answer)
    assert client.live_bytes == 800
    client.receive([answer, answer[:5]])
    assert (client.live_bytes, client.peak_bytes) == (1200, 1200)
    del answer, result, sent
    conversation.close()
    assert client.live_bytes == server.live_bytes == 0


def test_received_bytes_count_until_they_die() -> None:
    packed = bytearray(400)
    meter = MemoryMeter([])
    field = torch.frombuffer(packed, dtype=torch.float32, count=50, offset=100)
    array = torch.from_numpy(np.zeros(10, dtype=np.float64))
    meter.receive([field, array])
    assert meter.live_bytes == 200 + 80
    del field
    assert meter.live_bytes == 80


def test_tensors_from_numbers_and_arrays_are_new() -> None:
    meter = MemoryMeter([])
    with meter.running():
        kept = [torch.tensor([1.0, 2.0]), torch.from_numpy(np.zeros(3)), torch.as_tensor([1, 2, 3])]
    assert meter.live_bytes == 8 + 24 + 24
    del kept
    assert meter.live_bytes == 0


def test_a_resized_storage_counts_as_it_is_now() -> None:
    meter = MemoryMeter([])
    with meter.running():
        grown = torch.zeros(10)
        grown.resize_(100)
        assert meter.live_bytes == 400
        grown.set_(torch.zeros(7))
    assert meter.live_bytes == 28
    assert meter.peak_bytes == 428


def test_sections_of_one_meter_nest_and_count_once() -> None:
    meter = MemoryMeter([])
    with meter.running(), meter.running():
        kept = torch.zeros(10)
    assert meter.live_bytes == 4 * kept.numel()
    outside = torch.zeros(10)
    assert meter.live_bytes == 4 * outside.numel()


def test_a_section_ends_with_the_error_it_raised() -> None:
    meter = MemoryMeter([])
    with pytest.raises(ZeroDivisionError), meter.running():
        raise ZeroDivisionError
    outside = torch.zeros(10)
    assert meter.live_bytes == 0
    with meter.running():
        assert (outside + 1).numel() == 10
    assert meter.peak_bytes == 40


def test_optimiser_state_made_late_is_counted() -> None:
    weight = nn.Parameter(torch.zeros(1000))
    optimiser = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    meter = MemoryMeter([weight])
    with meter.running():
        weight.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert meter.live_bytes == 2 * 4000  # the weight and its momentum


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_peaks_lower_than_plain_training(device: str, reentrant: bool) -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16)) for _ in range(6)]).to(
        device
    )

    def peak(recompute: bool) -> int:
        blocks.zero_grad()
        meter = MemoryMeter(blocks.parameters())
        with meter.running():
            x = torch.ones(512, 16, device=device, requires_grad=True)
            for block in blocks:
                x = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
            x.sum().backward()
        return meter.peak_bytes

    plain, lean = peak(False), peak(True)
    saved = 6 * 4 * 512 * (64 + 16)  # what plain training keeps at the end of its forward, at the least
    assert plain >= weight_bytes(blocks) + saved
    assert lean < plain - 3 * 4 * 512 * 64


@pytest.mark.parametrize("device", DEVICES)
def test_tangents_count_and_symbolic_zeros_do_not(device: str) -> None:
    x, weight = torch.randn(BATCH, 8, device=device), torch.randn(8, 32, device=device)
    tangent = torch.randn(BATCH, 8, device=device)
    meter = MemoryMeter([x, weight, tangent])
    resident, out = 4 * (2 * BATCH * 8 + 8 * 32), 4 * BATCH * 32
    with meter.running(), forward_ad.dual_level(), torch.no_grad():
        result = forward_ad.make_dual(x, tangent) @ weight
        assert meter.live_bytes == resident + 2 * out  # the value and its tangent
        del result
    assert meter.live_bytes == resident
    # While the tangent is made: the value, x'W, x·0 from a scalar zero, and their sum.
    assert meter.peak_bytes <= resident + 4 * out + 4


def test_batched_directions_count_as_many_times() -> None:
    x, weight = torch.randn(BATCH, 8), torch.randn(8, 32)
    meter = MemoryMeter([x, weight])
    with meter.running():
        directions = torch.ones(5, BATCH, 8)
        tangents = torch.func.vmap(lambda v: torch.func.jvp(lambda t: t @ weight, (x,), (v,))[1])(directions)
    assert meter.live_bytes == 4 * (BATCH * 8 + 8 * 32 + 5 * BATCH * 8) + 4 * tangents.numel()


def test_sparse_gradients_count_by_their_parts() -> None:
    table = nn.Embedding(100, 4, sparse=True)
    meter = MemoryMeter(table.parameters())
    with meter.running():
        table(torch.tensor([1, 2])).sum().backward()
    assert meter.live_bytes == 4 * 400 + 2 * 8 + 4 * 2 * 4  # the table, two int64 indices, two rows


def test_shared_weights_count_once_on_the_meta_device_too() -> None:
    one = nn.Linear(1000, 1000, bias=False, device="meta")
    tied = nn.Sequential(one, one)
    assert MemoryMeter(tied[0].parameters()).live_bytes == 4_000_000
    assert MemoryMeter([*one.parameters(), *tied.parameters(), one.weight.t()]).live_bytes == 4_000_000


def test_plain_inference_changes_nothing_of_the_module() -> None:
    module = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seen = []
    inference_peak_bytes(module, lambda: seen.append(module(torch.ones(3, 8)).requires_grad), [])
    assert seen == [False]
    assert [part.training for part in module] == [True, False, True]
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_measuring_changes_no_bit_of_a_result() -> None:
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    batch = torch.randn(2, 5, 16)

    def gradients() -> list[torch.Tensor]:
        module.zero_grad()
        module(batch).square().sum().backward()
        return [parameter.grad.clone() for parameter in module.parameters()]

    plain = gradients()
    with MemoryMeter(module.parameters()).running():
        measured = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))


def test_a_stopwatch_adds_its_sections_also_when_one_raises() -> None:
    watch = Stopwatch()
    with watch.running():
        time.sleep(0.01)
    first = watch.seconds
    assert 0.01 <= first < 1
    with pytest.raises(ZeroDivisionError), watch.running():
        raise ZeroDivisionError
    assert watch.seconds > first


def test_a_counter_counts_calls_recomputation_included_until_removed() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    counter = ForwardCounter(block)
    x = torch.ones(2, 4, requires_grad=True)
    block(x)
    torch.func.functional_call(block, dict(block.named_parameters()), (x,))
    assert counter.count == 2
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert counter.count == 4
    counter.remove()
    block(x)
    assert counter.count == 4
