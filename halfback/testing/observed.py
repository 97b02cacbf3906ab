"""The run of a row that several checks ask about: it is made once, and what they need to know is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from halfback import config as configuration
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.engine.federation import Simulation
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.formulas import Work

ROUNDS, STEPS = 4, 2
Arrived = list[tuple[int, str, bytes]]  # client, direction, message


@dataclass(frozen=True)
class Observed:
    """`ROUNDS` rounds of `STEPS` steps, which no check continues or changes.

    losses: of each round. before: the bottom's tensors at the start. arrived: what reached either end of every link.
    work: by round what each client of the cohort was about to do, in the order of their turns.
    """

    built: Built
    losses: list[float]
    before: Mapping[str, Tensor]
    arrived: Arrived
    work: list[list[Work]]

    @property
    def simulation(self) -> Simulation:
        """The parties after the last round."""
        return self.built.simulation


_latest: dict[str, Observed] = {}  # one: the checks of a row follow one another


def observe(config: RunConfig) -> Observed:
    """The run of this configuration, if it isn't the one that was asked for before."""
    key = configuration.dump(config)
    if key not in _latest:
        _latest.clear()
        _latest[key] = _run(small.built(config))
    return _latest[key]


def _run(built: Built) -> Observed:
    simulation = built.simulation
    before = {name: tensor.clone() for name, tensor in built.model.bottom.state_dict().items()}
    arrived, losses, work = tapped(simulation), list[float](), list[list[Work]]()
    for number in range(ROUNDS):
        cohort, turns = simulation.cohort(number), simulation.algorithm.traits.one_by_one
        work.append([_work(simulation, m, number, STEPS * place * turns) for place, m in enumerate(cohort)])
        losses += small.run(simulation, 1, first=number, steps=STEPS)
    return Observed(built, losses, before, arrived, work)


def tapped(simulation: Simulation) -> Arrived:
    """What reaches either end of every link, from now on."""
    arrived: Arrived = []
    for client in range(len(simulation.sources)):
        for end, direction in zip(simulation.link.of(client), ("down", "up"), strict=True):
            end.receive = partial(_tap, end.receive, arrived, client, direction)  # type: ignore[method-assign]
    return arrived


def _tap(receive: Any, arrived: Arrived, client: int, direction: str, data: bytes) -> Any:
    arrived.append((client, direction, data))
    return receive(data)


def _work(simulation: Simulation, number: int, round_number: int, taken: int) -> Work:
    client, server = simulation.client(number), simulation.server
    batches, second = [], []
    for place in range(client.cursor, client.cursor + 2):
        inputs = client.data.batch(place).inputs
        mask = inputs.get("attention_mask")
        hidden = (len(inputs["pixel_values"]), *server.hidden_shape) if mask is None else (*mask.shape, 16)
        batches.append((hidden, None if mask is None else tuple(mask.shape)))
        if client.head is not None:  # after the second of three blocks of a ResNet-8, or after the third
            sizes = (32, 8, 8) if len(client.head.module.state_dict()) > 2 else (64, 4, 4)
            second.append(hidden if mask is not None else (hidden[0], *sizes))
    rows, cohort = range(client.position, len(server.history) + taken), simulation.sampled_clients
    return Work(
        first=2 * round_number,
        batches=batches,
        missed=len(rows),
        turns=simulation.algorithm.traits.one_by_one and any(r // (2 * cohort) * 2 + r % 2 != r for r in rows),
        ever=bool(server.history) or taken > 0,
        directions=getattr(simulation.algorithm, "directions", 0),
        exact=server.replica.width(0),
        state=[tuple(tensor.shape) for tensor in server.replica.exact_state().values()],
        weights=[tuple(parameter.shape) for parameter in server.replica.parameters.values()],
        groups=len(server.replica.groups),
        above=_above(server, number),
        second=second,
        head=[tuple(parameter.shape) for parameter in (server.head or {}).values()],
    )


def _above(server: Server, client: int) -> list[tuple[int, ...]]:
    below = server.boundaries[client].below if server.boundaries else ()
    return [tuple(p.shape) for name, p in server.replica.parameters.items() if name not in below]
