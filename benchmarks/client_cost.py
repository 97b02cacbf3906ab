"""What a step costs a device: seconds over P + 1 plain forward passes, and peak memory over plain inference.

    python benchmarks/client_cost.py [--rows 16] [--length 128] [--blocks 3] [--repeats 7] [--dtype bfloat16]

Times are interleaved (one step, then its baseline, and so on) and the median of the ratios is printed: absolute seconds
on a shared machine mean nothing. Memory is the meter's high-water mark, which does not depend on the machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial

import torch
from parts import OneBatch, make_batch, make_bottom

from halfback.algorithms.ho_sfl import HoSfl
from halfback.algorithms.hosl import Hosl
from halfback.algorithms.split_lora import SplitLora
from halfback.models.adapters import trainable
from halfback.parties.client import Client, Feed, Theta
from halfback.parties.holdings import Descent, Round
from halfback.parties.protocol import Conversation
from halfback.telemetry.meters import MemoryMeter, inference_peak_bytes
from halfback.wire.messages import CutGradient, History, Losses, Nothing, Slopes, Weights
from halfback.zeroth.directions import Directions, seed_for
from halfback.zeroth.replay import Replica
from halfback.zeroth.update import UpdateRule


def ho_sfl_step(client: Client, directions: int, meter: MemoryMeter | None = None) -> None:
    """One whole client step: forward, probes, replay."""
    talk = HoSfl(directions=directions).client_round(client, Round(0, 1, 0))
    replies = [
        None,
        lambda _: History(client.theta.position, torch.zeros(0, directions)),
        lambda sent: CutGradient(torch.randn_like(sent.hidden) * 1e-3),
        lambda sent: Slopes(sent.step, sent.values),
    ]
    converse(talk, replies, meter)


def hosl_step(client: Client, directions: int, meter: MemoryMeter | None = None) -> None:
    """One whole client step: forward, the probes' forwards, replay."""
    talk = Hosl(directions=directions).client_round(client, Round(0, 1, 0))
    losses = [lambda _: Losses(torch.ones(1))] * (2 * directions)
    missed = History(client.theta.position, torch.zeros(0, directions))
    converse(talk, [None, lambda _: missed, lambda _: Nothing(), *losses], meter)


def first_order_step(client: Client, checkpointing: bool, meter: MemoryMeter | None = None) -> None:
    """One whole client step: forward with a graph, backward, optimiser."""
    talk = SplitLora(checkpointing=checkpointing).client_round(client, Round(0, 1, 0))
    tensors = tuple(parameter.detach() for parameter in client.theta.replica.parameters.values())
    replies = [None, lambda _: Weights(tensors), lambda sent: CutGradient(torch.randn_like(sent.hidden) * 1e-3)]
    converse(talk, replies, meter)


def converse(talk: Conversation, replies: list[Callable | None], meter: MemoryMeter | None) -> None:
    """Answers a client until it has said everything that is timed."""
    sent = None
    for make in replies:
        reply = None if make is None else make(sent)
        sent = None  # the client may need the memory
        with nullcontext() if meter is None else meter.running():
            if meter is not None and isinstance(reply, CutGradient):
                meter.receive([reply.gradient])
            with suppress(StopIteration):
                sent = talk.send(reply)
    talk.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=3, help="on the device")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--directions", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="of the weights, also of the plain passes beside it")
    arguments = parser.parse_args()
    size = f"{arguments.rows} × {arguments.length}"
    print(f"{arguments.dtype}, batch {size}, P={arguments.directions}, {torch.get_num_threads()} threads")
    peaks = "HO-SFL peak | HOSL peak | checkpointed first order | first order"
    print(f"| bottom | trained | step ÷ (P+1) forwards | {peaks} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("minilm", "opt"):
        for train in ("lora", "full"):
            print(row(name, train, arguments), flush=True)


def row(name: str, train: str, arguments: argparse.Namespace) -> str:
    """Measures one bottom; peaks are over the same client's inference peak, with SGD (no optimiser state)."""
    bottom, vocabulary = make_bottom(name, train, getattr(torch, arguments.dtype), blocks=arguments.blocks)
    batch = make_batch(vocabulary, arguments.rows, arguments.length)
    parameters = trainable(bottom)

    def seed_of(step: int, p: int) -> int:
        return seed_for(0, "direction", step, p)

    replica = Replica(parameters, UpdateRule(lr=1e-4, normalize=True), Directions(seed_of))
    descent = Descent(list(parameters.values()), partial(torch.optim.SGD, lr=1e-6))
    client = Client(0, bottom, Theta(replica), Feed(OneBatch(batch)), descent=descent)

    @torch.no_grad()
    def baseline() -> None:
        for _ in range(arguments.directions + 1):
            bottom(batch.inputs)

    ratios = []
    for repeat in range(arguments.repeats + 1):
        ours, plain = seconds(lambda: ho_sfl_step(client, arguments.directions)), seconds(baseline)
        if repeat:  # the first pair warms up
            ratios.append(ours / plain)
    resident = [*bottom.parameters(), *bottom.buffers(), *batch.inputs.values()]
    inference = inference_peak_bytes(bottom, lambda: bottom(batch.inputs), batch.inputs.values())
    peaks = []
    for step in (
        lambda meter: ho_sfl_step(client, arguments.directions, meter),
        lambda meter: hosl_step(client, arguments.directions, meter),
        lambda meter: first_order_step(client, True, meter),
        lambda meter: first_order_step(client, False, meter),
    ):
        meter = MemoryMeter(resident)
        step(meter)
        peaks.append(meter.peak_bytes / inference)
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
    return f"| {name} | {train} | {spread} | {' | '.join(f'{peak:.3f}' for peak in peaks)} |"


def seconds(work: Callable[[], None]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
