"""The run of a row that several checks ask about: it is made once, and what they need to know is kept."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from halfback import config as configuration
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.engine.federation import Federation
from halfback.parties.server import Server
from halfback.planning.traffic import Talk
from halfback.testing import small

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
    work: list[list[Talk]]

    @property
    def federation(self) -> Federation:
        """The parties after the last round."""
        return self.built.federation


_latest: dict[str, Observed] = {}  # one: the checks of a row follow one another


def observe(config: RunConfig) -> Observed:
    """The run of this configuration, if it isn't the one that was asked for before."""
    key = configuration.dump(config)
    if key not in _latest:
        _latest.clear()
        _latest[key] = _run(small.built(config))
    return _latest[key]


def _run(built: Built) -> Observed:
    simulation = built.federation
    before = {name: tensor.clone() for name, tensor in built.model.bottom.state_dict().items()}
    arrived, losses, work = tapped(simulation), list[float](), list[list[Talk]]()
    for number in range(ROUNDS):
        cohort, turns = simulation.server.cohort(number), simulation.server.algorithm.needs.turns == "one_by_one"
        work.append([_work(simulation, m, number, STEPS * place * turns) for place, m in enumerate(cohort)])
        losses += small.run(simulation, 1, first=number, steps=STEPS)
    return Observed(built, losses, before, arrived, work)


def tapped(federation: Federation) -> Arrived:
    """What reaches either end of every link, from now on."""
    arrived: Arrived = []
    federation.tap = lambda client, direction, data: arrived.append((client, direction, data))
    return arrived


def _work(simulation: Federation, number: int, round_number: int, taken: int) -> Talk:
    client, server = simulation.client(number).party, simulation.server.party
    batches, second = [], []
    for place in range(client.feed.cursor, client.feed.cursor + 2):
        inputs = client.feed.data.batch(place).inputs
        texts = len(inputs["lengths"]) if "lengths" in inputs else None
        images = (len(inputs["pixel_values"]), *server.top.form.shape) if texts is None else ()
        hidden = images or (len(inputs["input_ids"]), 16)
        batches.append((hidden, texts))
        if client.head is not None:  # after the second of three blocks of a ResNet-8, or after the third
            sizes = (32, 8, 8) if len(client.head.module.state_dict()) > 2 else (64, 4, 4)
            second.append((hidden[0], *sizes) if texts is None else hidden)
    rows, cohort = range(client.theta.position, len(server.agreed.rows) + taken), simulation.server.sampling.sampled
    return Talk(
        first=2 * round_number,
        batches=batches,
        missed=len(rows),
        turns=simulation.server.algorithm.needs.turns == "one_by_one"
        and any(r // (2 * cohort) * 2 + r % 2 != r for r in rows),
        ever=bool(server.agreed.rows) or taken > 0,
        directions=simulation.server.algorithm.needs.directions,
        exact=server.agreed.replica.width(0),
        state=[tuple(tensor.shape) for tensor in server.agreed.replica.exact_state().values()],
        weights=[tuple(parameter.shape) for parameter in server.agreed.replica.parameters.values()],
        groups=len(server.agreed.replica.groups),
        above=_above(server, number),
        second=second,
        head=[tuple(parameter.shape) for parameter in (server.top.head or {}).values()],
    )


def _above(server: Server, client: int) -> list[tuple[int, ...]]:
    below = server.cohort.boundaries[client].below if server.cohort.boundaries else ()
    return [tuple(p.shape) for name, p in server.agreed.replica.parameters.items() if name not in below]
