"""Means by rows: what each client counts, in every mean that a cohort comes to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from halfback import config
from halfback.algorithms import algorithms
from halfback.engine.remote.frames import MAX_ROWS, Frame, Ready, frame, read_reply
from halfback.engine.remote.presence import Terms
from halfback.engine.remote.server import RemoteServer
from halfback.errors import PeerError, UserError
from halfback.parties.cohort import Robust, mean
from halfback.testing import small
from halfback.testing.remote import PATIENCE, Sockets, deployed

AVERAGING = [name for name, kind in algorithms().items() if hasattr(kind, "aggregation")]
UNEVEN: dict[str, Any] = {"partition__name": "dirichlet", "partition__alpha": 0.3, "sampled_clients": 3}


def test_every_method_that_averages_has_the_choice() -> None:
    """Those without it take turns, or are one machine. By rows is the default where the paper has it."""
    without = {name for name, kind in algorithms().items() if name not in AVERAGING}
    assert without == {
        name
        for name, kind in algorithms().items()
        if kind().needs.turns == "one_by_one" or kind().needs.agreement.name == "alone"
    }
    by_rows = {name for name in AVERAGING if algorithms()[name]().aggregation == "rows"}  # type: ignore[attr-defined]
    assert by_rows == {"fedavg", "sfl_v1", "sfl_v2"}


def test_means() -> None:
    rows = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean(rows, None), rows.mean(dim=0))
    found = mean(rows.half(), [0.5, 0.25, 0.25])
    assert found.dtype == torch.float16
    torch.testing.assert_close(mean(rows, [0.5, 0.25, 0.25]), rows[0] / 2 + (rows[1] + rows[2]) / 4)
    assert torch.equal(Robust().agreed(rows[:, 0], [0.5, 0.25, 0.25]), mean(rows[:, 0], [0.5, 0.25, 0.25]))
    assert mean(torch.full((2, 3), 3e38), [0.75, 0.25]).isfinite().all()  # nothing overflows


@pytest.mark.parametrize("name", AVERAGING)
def test_equal_rows_have_the_bits_of_equal_clients(name: str) -> None:
    alike, by_rows = (
        small.built(small.images(name, sampled_clients=3, algorithm__aggregation=how)) for how in ("uniform", "rows")
    )
    assert {len(source) for source in small.sources(by_rows)} == {30}
    assert small.run(alike.federation, 2, steps=2) == small.run(by_rows.federation, 2, steps=2)
    small.assert_equal_states(alike.federation, by_rows.federation)


@pytest.mark.parametrize("name", [name for name in AVERAGING if name != "spry"])  # there a layer is one client's
def test_unequal_rows_count(name: str) -> None:
    alike, by_rows = (
        small.built(small.images(name, **UNEVEN, algorithm__aggregation=how)).federation for how in ("uniform", "rows")
    )
    states = []
    for simulation in (alike, by_rows):
        small.run(simulation, 2, steps=2)
        simulation.server.agreed_bottom()
        states.append(
            [
                *simulation.server.party.agreed.replica.parameters.values(),
                *simulation.server.party.top.module.parameters(),
            ]
        )
    assert any(not torch.equal(one, other) for one, other in zip(*states, strict=True))


@pytest.mark.parametrize("name", ["ho_sfl", "zo_sfl", "decomfl", "spry"])
def test_a_robust_mean_counts_clients_alike(name: str) -> None:
    chosen = ["sampled_clients=3", f"algorithm.name={name}", "robust.name=median", "algorithm.aggregation=rows"]
    with pytest.raises(UserError) as caught:
        config.resolve("quickstart", ["beside=[]", *chosen])
    assert str(caught.value) == (
        "algorithm.aggregation=rows: robust.name=median counts clients alike; use algorithm.aggregation=uniform, or "
        "robust.name=none"
    )


def test_another_word_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm.aggregation='row': .*'uniform' or 'rows'"):
        small.built(small.images("fedavg", algorithm__aggregation="row"))


class Claiming(Sockets):
    """Sockets to clients, one of which says that it has other rows than it has."""

    claims: dict[int, int]

    def ask(self, questions: Any, *bounds: Any) -> Any:
        for number, came in super().ask(questions, *bounds):
            if number in self.claims and isinstance(reply := read_reply(came.header), Ready):
                header = reply.model_dump_json().replace(f'"rows":{reply.rows}', f'"rows":{self.claims[number]}')
                came = Frame(header, came.body)
            yield number, came


def _served(tmp_path: Path, claims: dict[int, int]) -> tuple[RemoteServer, Claiming, Any]:
    def machine() -> Any:
        return small.built(small.images("fedavg", **UNEVEN | {"clients": 3})).federation

    server = machine()
    carrier = Claiming(lambda number: machine().client(number), 3, tmp_path)
    carrier.claims = claims
    deployment = deployed(server, carrier, Terms(PATIENCE, None, 6.0), lambda _: None)
    return deployment, carrier, server.server


def test_a_site_says_its_rows_and_counts_by_them(tmp_path: Path) -> None:
    """The server has other data than a site with rows of its own, so what the site says holds."""
    deployment, carrier, server = _served(tmp_path, {1: 10**6})
    counts = dict(server.party.cohort.rows)
    deployment.run_round(small.Round(0, 1, 0), measure_memory=False)
    carrier.close()
    assert server.party.cohort.rows == counts | {1: 10**6}
    assert server.party.cohort.shares([0, 1, 2])[1] == 10**6 / (10**6 + counts[0] + counts[2])


@pytest.mark.parametrize("rows", [0, -1, MAX_ROWS + 1])
def test_impossible_numbers_of_rows_are_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(PeerError, match="rows"):
        read_reply(frame(Ready(fits=True, takes=0, rows=1)).header.replace('"rows":1', f'"rows":{rows}'))
    deployment, carrier, _ = _served(tmp_path, {1: rows})
    with pytest.raises(UserError, match=r"client 1: header.ready.rows"):
        deployment.run_round(small.Round(0, 1, 0), measure_memory=False)
    carrier.close()


def test_a_site_can_not_say_another_number_later(tmp_path: Path) -> None:
    deployment, carrier, server = _served(tmp_path, {})
    deployment.run_round(small.Round(0, 1, 0), measure_memory=False)
    before = dict(server.party.cohort.rows)
    deployment._presence.ready.discard(1)
    carrier.claims = {1: before[1] + 1}
    with pytest.raises(UserError, match=f"it said that it has {before[1]} training rows, and says {before[1] + 1} now"):
        deployment.run_round(small.Round(1, 1, 1), measure_memory=False)
    carrier.close()
    assert server.party.cohort.rows == before


def test_nor_to_a_server_that_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    deployment, carrier, server = _served(tmp_path / "first", {})
    deployment.run_round(small.Round(0, 1, 0), measure_memory=False)
    before, kept = server.party.cohort.rows[1], deployment.state()
    carrier.close()
    deployment, carrier, _ = _served(tmp_path / "then", {1: before + 1})
    deployment.load_state(*kept)
    with pytest.raises(UserError, match=f"one is expelled: client 1: it said that it has {before} training rows, and"):
        deployment.run_round(small.Round(1, 1, 1), measure_memory=False)
    carrier.close()
