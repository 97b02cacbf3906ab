"""Catching up against drawing from PyTorch's generator, and a probe against a bare forward pass: ratios of seconds.

    python benchmarks/direction_speed.py [--rows 200] [--directions 10] [--rounds 3]

One process and one thread, whose own seconds are counted. A round measures each of a group once, in turn, so that a
slow minute of the machine meets all of them; a ratio is one of medians over rounds. *Tensors* is the same code with the
compiled kernel put aside: what another device has, or an installation without a compiler.

Catch-up: all of ResNet-20's parameters, `--rows` missed rows, SGD, against the plainest replay from a generator: each
direction is one draw of `torch.randn` (or of `torch.randint`, for signs) from a generator with the direction's seed.
A probe: a forward pass while the weights are moved, of ResNet-20 (16 images, all parameters), or of three blocks of
MiniLM (8 × 32 tokens, LoRA), where its weights are there.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from parts import make_batch, make_bottom
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.adapters import trainable
from halfback.models.resnet import ResNet, ResNetConfig
from halfback.zeroth import native
from halfback.zeroth.directions import Directions, Law, seed_for
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import perturbed
from halfback.zeroth.update import UpdateRule

LR = 1e-4
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not native.serves(torch.device("cpu")):
        raise SystemExit("no kernel was built here: `pip install -e .`, or `python setup.py build_ext --inplace`")
    with torch.no_grad():
        print("| law | optimiser | ÷ torch.randn: tensors | kernel | ÷ torch.randint, signs: tensors | kernel |")
        print("|" + " --- |" * 6)
        slopes = torch.randn(arguments.rows, arguments.directions, generator=torch.Generator().manual_seed(0))
        for law in ("rademacher", "gaussian"):
            for optimizer in ("sgd", "adamw"):
                print(catch_up(law, optimizer, slopes, arguments.rounds), flush=True)
        print("\n| probed | law | ÷ bare forward pass: tensors | kernel |")
        print("|" + " --- |" * 4)
        for name, module, parameters, run in probed():
            for law in ("rademacher", "gaussian"):
                print(probe(name, module, parameters, run, law, 40 * arguments.rounds), flush=True)


def catch_up(law: Law, optimizer: str, slopes: Tensor, rounds: int) -> str:
    network = resnet20()
    flat = torch.cat([parameter.flatten() for parameter in network.parameters()])

    def replay() -> None:
        directions = Directions(lambda row, p: seed_for(0, "direction", row, p), law)
        rule = UpdateRule(optimizer, lr=LR)  # type: ignore[arg-type]
        Replica(dict(network.named_parameters()), rule, directions).replay(0, slopes)

    def drawn(draw: Callable[[torch.Generator], Tensor]) -> None:
        generator, gradient = torch.Generator(), torch.empty_like(flat)
        for row, of_row in enumerate(slopes.tolist()):
            gradient.zero_()
            for p, slope in enumerate(of_row):
                generator.manual_seed(seed_for(0, "direction", row, p))
                gradient.add_(draw(generator), alpha=slope / len(of_row))
            flat.sub_(gradient, alpha=LR)

    def signs(generator: torch.Generator) -> Tensor:
        return torch.randint(0, 2, flat.shape, generator=generator, dtype=torch.float32).mul_(2).sub_(1)

    normal, of_signs, tensors, kernel = in_turn(
        [
            lambda: drawn(lambda generator: torch.randn(flat.shape, generator=generator)),
            lambda: drawn(signs),
            lambda: by_tensors(replay),
            replay,
        ],
        rounds,
    )
    against = f"{ratio(tensors, of_signs)} | {ratio(kernel, of_signs)}" if law == "rademacher" else "– | –"
    return f"| {law} | {optimizer} | {ratio(tensors, normal)} | {ratio(kernel, normal)} | {against} |"


def probe(name: str, module: nn.Module, parameters: dict[str, Tensor], run: Work, law: Law, rounds: int) -> str:
    def moved() -> None:
        with perturbed(module, parameters, seed_for(0), 1e-4, law=law):
            run()

    bare, tensors, kernel = in_turn([run, lambda: by_tensors(moved), moved], rounds)
    return f"| {name} | {law} | {ratio(tensors, bare)} | {ratio(kernel, bare)} |"


def resnet20() -> ResNet:
    return ResNet(ResNetConfig("resnet20", num_labels=10, in_channels=3)).eval()


def probed() -> Iterator[tuple[str, nn.Module, dict[str, Tensor], Work]]:
    network, images = resnet20(), torch.randn(16, 3, 32, 32)
    yield "resnet20, all parameters", network, dict(network.named_parameters()), lambda: network(images)
    try:
        bottom, vocabulary = make_bottom("minilm", "lora")
    except UserError:
        return
    inputs = make_batch(vocabulary, 8, 32).inputs
    yield "minilm, lora", bottom, trainable(bottom), lambda: bottom(inputs)


def by_tensors(work: Work) -> None:
    with kernel_aside():
        work()


@contextmanager
def kernel_aside() -> Iterator[None]:
    kept, native._kernel = native._kernel, None
    yield
    native._kernel = kept


def in_turn(works: list[Work], rounds: int) -> list[list[float]]:
    """Seconds of each in each round, after one that doesn't count. Another one comes first in each round."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for turn in range(len(works)):
            own = (number + turn) % len(works)
            start = time.thread_time()
            works[own]()
            if number:
                taken[own].append(time.thread_time() - start)
    return taken


def ratio(seconds: list[float], of: list[float]) -> str:
    return f"{statistics.median(seconds) / statistics.median(of):.2f}"


if __name__ == "__main__":
    main()
