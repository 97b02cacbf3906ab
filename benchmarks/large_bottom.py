"""What a large bottom costs a client, by method: gigabytes at its peak and milliseconds a step, on a GPU or a CPU.

    python benchmarks/large_bottom.py [--rows 16] [--length 512] [--blocks 12] [--dtype bfloat16]

The first blocks of a model of OPT-1.3B's size with random weights, LoRA on them. Peaks are the meter's, beside plain
inference of the same batch; milliseconds are medians of a client's whole step, without the server's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from client_cost import converse, first_order_step
from parts import FixedBatch, OneBatch, make_batch
from transformers import OPTConfig, OPTForCausalLM

from halfback.algorithms.ho_sfl import HoSfl
from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.cut import cut
from halfback.models.running import Bottom
from halfback.parties.client import Client, Feed, Theta
from halfback.parties.holdings import Descent, Round
from halfback.telemetry.meters import MemoryMeter, inference_peak_bytes
from halfback.wire.messages import Both, CutGradient, History, Slopes, Weights
from halfback.zeroth.directions import Directions, seed_for
from halfback.zeroth.replay import Replica, RowForm
from halfback.zeroth.update import UpdateRule

SIZE = {"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "num_attention_heads": 32}  # OPT-1.3B
DIRECTIONS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12, help="on the device, of 24")
    parser.add_argument("--exact", type=int, default=2, help="of them the last, for exact gradients")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    torch.manual_seed(0)
    whole = OPTForCausalLM(OPTConfig(**SIZE, num_hidden_layers=chosen.blocks + 1))
    model = cut(whole.to(device, getattr(torch, chosen.dtype)), chosen.blocks)
    set_trainable(model, bottom="lora", top="none", lora=Lora(), seed=0)
    found = make_batch(whole.config.vocab_size, chosen.rows, chosen.length)
    batch = FixedBatch({key: each.to(device) for key, each in found.inputs.items()}, found.labels, found.sample_ids)
    plain = inference_peak_bytes(model.bottom, lambda: model.bottom(batch.inputs), batch.inputs.values())
    print(f"{name}; {chosen.dtype}, batch {chosen.rows} × {chosen.length}, {chosen.blocks} blocks, P={DIRECTIONS}")
    print("| method | client peak, GB | over inference | ms a step |\n| --- | --- | --- | --- |")
    steps: dict[str, Callable[[MemoryMeter | None], None]] = {
        "HO-SFL": partial(_ho_sfl, model.bottom, batch, 0),
        f"HO-SFL, {chosen.exact} exact blocks": partial(_ho_sfl, model.bottom, batch, chosen.exact),
        "first order, checkpointed": partial(_first_order, model.bottom, batch, True),
        "first order": partial(_first_order, model.bottom, batch, False),
    }
    for method, step in steps.items():
        step(None)  # warms up
        times = [_seconds(step) for _ in range(chosen.repeats)]
        meter = MemoryMeter([*model.bottom.parameters(), *model.bottom.buffers(), *batch.inputs.values()])
        step(meter)
        peak = f"{meter.peak_bytes / 1e9:.2f} | {meter.peak_bytes / plain:.2f}"
        print(f"| {method} | {peak} | {1000 * statistics.median(times):.0f} |", flush=True)


def _client(bottom: Bottom, batch: FixedBatch, exact: int = 0) -> Client:
    theta = trainable(bottom)
    inside = {id(p) for block in bottom.blocks[len(bottom.blocks) - exact :] for p in block.parameters()}
    form = RowForm(exact=[name for name, parameter in theta.items() if id(parameter) in inside])
    directions = Directions(lambda step, p: seed_for(0, "direction", step, p))
    replica = Replica(theta, UpdateRule(lr=1e-4), directions, form=form)
    descent = Descent(list(theta.values()), partial(torch.optim.SGD, lr=1e-6))
    return Client(0, bottom, Theta(replica), Feed(OneBatch(batch)), descent=descent)


def _ho_sfl(bottom: Bottom, batch: FixedBatch, exact: int, meter: MemoryMeter | None) -> None:
    client = _client(bottom, batch, exact)
    missed = History(0, torch.zeros(0, DIRECTIONS))
    replies = [
        None,
        lambda _: Both(missed, Weights(())) if exact else missed,
        lambda sent: CutGradient(torch.randn_like(sent.hidden) * 1e-3),
        lambda sent: Slopes(sent.step, sent.values),
    ]
    converse(HoSfl(directions=DIRECTIONS, exact_blocks=exact).client_round(client, Round(0, 1, 0)), replies, meter)


def _first_order(bottom: Bottom, batch: FixedBatch, checkpointing: bool, meter: MemoryMeter | None) -> None:
    first_order_step(_client(bottom, batch), checkpointing, meter)


def _seconds(step: Callable[[MemoryMeter | None], None]) -> float:
    start = time.perf_counter()
    step(None)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
