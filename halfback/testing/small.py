"""Small real runs: a second or less from the data to a trained step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from halfback import config as configuration
from halfback.assembly import Built, build, build_client
from halfback.assembly.sources import Seat
from halfback.config import RunConfig
from halfback.engine.client_side import ClientSide
from halfback.engine.federation import Federation
from halfback.parties.holdings import BatchSource, Round

SMALL: dict[str, Any] = {
    "device": "cpu",
    "clients": 4,
    "sampled_clients": 2,
    "batch_size": 8,
    "steps": 60,  # more than any check takes
    "bottom.optimizer": "sgd",
    "bottom.lr": 1e-2,
}


def images(algorithm: str, **changes: Any) -> RunConfig:
    """A ResNet-8 cut after its first block, everything trainable, on 120 digits; changes as `key__path=value`."""
    task = {"name": "digits", "train_rows": 120, "validation_rows": 60}
    return _config(algorithm, task, "resnet8", "full", changes)


def texts(algorithm: str, model: Path, sentences: Path, **changes: Any) -> RunConfig:
    """A tiny text model cut after its first block, with LoRA on both parts, on the film sentences."""
    return _config(algorithm, {"name": "csv", "train": str(sentences)}, str(model), "lora", changes)


def _config(algorithm: str, task: dict[str, Any], model: str, trained: str, changes: dict[str, Any]) -> RunConfig:
    tree = {"algorithm": {"name": algorithm}, "task": task, "model": {"name": model, "cut": 1}}
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return configuration.from_tree(tree, {"bottom.train": trained, "top.train": trained, **SMALL, **given})


def built(config: RunConfig) -> Built:
    torch.seed()  # whatever is drawn from the global generator differs between two builds
    return build(config)


def alone(config: RunConfig, number: int) -> ClientSide:
    """Client `number` with nothing else of the run, as on a machine of its own."""
    torch.seed()
    return build_client(config, Seat(number, False, ())).side


def sources(run: Built) -> list[BatchSource]:
    """The clients' data, by number."""
    federation = run.federation
    return [federation.client(number).party.feed.data for number in range(federation.server.sampling.clients)]


def run(simulation: Federation, rounds: int, *, first: int = 0, steps: int = 1, measure: bool = False) -> list[float]:
    """The training loss of each round."""
    return [
        simulation.run_round(Round(n, steps, n * steps), measure_memory=measure) for n in range(first, first + rounds)
    ]


@dataclass(frozen=True)
class Chosen:
    """A sampler whose cohorts a test has chosen, each by the number of its round."""

    cohorts: Callable[[int], list[int]]
    seed: int
    clients: int
    sampled: int

    def draw(self, round_number: int, probabilities: Sequence[float] | None) -> list[int]:
        """What was chosen, whoever is as likely as the others."""
        return self.cohorts(round_number)


def among(federation: Federation, cohorts: Callable[[int], list[int]]) -> Federation:
    """The same federation with other cohorts, by the number of the round."""
    drawn = federation.server.sampling
    federation.server.sampling = Chosen(cohorts, drawn.seed, drawn.clients, drawn.sampled)
    return federation


def assert_equal_states(one: Federation, other: Federation, *, but: tuple[str, ...] = ()) -> None:
    """Every bit that a checkpoint holds: parameters, optimisers, history, positions, bytes, counts; not the seconds.

    `but` names values that may differ; with "clients", the clients' tensors may too.
    """
    for simulation in (one, other):
        simulation.server.agreed_bottom()
    (tensors, values), (other_tensors, other_values) = one.state(), other.state()
    if "clients" in but:
        tensors, other_tensors = (
            {name: tensor for name, tensor in each.items() if not name.startswith("client.")}
            for each in (tensors, other_tensors)
        )
    assert tensors.keys() == other_tensors.keys()
    differ = [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])]
    assert not differ
    left_out = dict.fromkeys(("seconds", *but))
    assert values | left_out == other_values | left_out
