"""What codecs may and may not change of a run, for every algorithm that has links for them."""

import gc
from pathlib import Path
from typing import Any

import pytest

from halfback.assembly import build
from halfback.config import RunConfig
from halfback.engine.federation import Federation
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback.testing.table import ROWS

EXACT = [{"name": "temporal", "cache": "float32"}]
TWO = ("activations_up", "gradient_down")
FOUR = (*TWO, "activations_down", "gradient_up")
PLAIN = ["ho_sfl", "split_lora", "zo_sfl", "frozen_bottom", "ho_sfl-u", "split_lora-u-block"]


def given(row: str, **changes: Any) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in ROWS[row].settings.items()} | changes


def on(row: str, chain: list[Any]) -> dict[str, Any]:
    links = FOUR if "model.head" in ROWS[row].settings else TWO
    return {f"codecs__{link}": chain for link in links}


@pytest.fixture(params=["images", "texts"])
def world(request: pytest.FixtureRequest) -> Any:
    """(row, changes) → configuration."""

    def config(row: str, **changes: Any) -> RunConfig:
        if request.param == "images":
            return small.images(ROWS[row].name, **given(row, **changes))
        folders = [request.getfixturevalue(name) for name in ("tiny_bert", "sentences")]
        return small.texts(ROWS[row].name, *folders, **given(row, **changes))

    return config


@pytest.mark.parametrize("row", PLAIN)
def test_at_threshold_1_training_is_that_without_the_codec_to_the_bit(row: str, world: Any) -> None:
    """Every sample comes again twice and more (an epoch is one batch), and padding is the only thing left out."""
    settings = {"batch_size": 32, "controller__threshold": 1.0}
    plain, reusing = (small.built(world(row, **settings, **more)).federation for more in ({}, on(row, EXACT)))
    assert small.run(plain, 3, steps=2) == small.run(reusing, 3, steps=2)
    assert all(len(end.cache) > 0 for end in reusing.server.end(_client(reusing)).receivers.values())  # type: ignore[union-attr]
    (_, values), (_, others) = plain.state(), reusing.state()
    assert _without_links(values["clients"]) == _without_links(others["clients"])
    _forget_links(reusing)
    small.assert_equal_states(plain, reusing, but=("ledger", "far", "clients"))


def _client(simulation: Federation) -> int:
    return next(iter(simulation.clients))


def _without_links(clients: dict[str, Any]) -> dict[str, Any]:
    return {number: kept | {"link": None} for number, kept in clients.items()}


def _forget_links(simulation: Federation) -> None:
    for number, side in simulation.clients.items():
        for end in (side.near, simulation.server.end(number)):
            for link in (*end.senders.values(), *end.receivers.values()):
                link.cache.clear()  # type: ignore[union-attr]


@pytest.mark.parametrize("row", ["ho_sfl-temporal", "ho_sfl-u-temporal"])
def test_an_evaluation_in_between_changes_nothing(row: str, world: Any) -> None:
    quiet, evaluated = (small.built(world(row)) for _ in range(2))
    for number in range(5):
        assert small.run(quiet.federation, 1, first=number) == small.run(evaluated.federation, 1, first=number)
        evaluated.evaluate()
    small.assert_equal_states(quiet.federation, evaluated.federation)


@pytest.mark.parametrize("row", ["zo_sfl", "frozen_bottom"])
def test_a_link_on_which_nothing_goes(row: str) -> None:
    """Neither algorithm sends a gradient: its controller hears of nothing, and the run goes on."""
    simulation = small.built(small.images(ROWS[row].name, **given(row, **on(row, ["temporal"])))).federation
    for number in range(2):
        loss = simulation.run_round(Round(number, 1, number), measure_memory=True)
        simulation.server.steer(Round(number, 1, number), train_loss=loss, validation_loss=loss)


def test_a_lower_threshold_sends_less_and_trains_on_what_was_remembered() -> None:
    sent = {}
    for threshold in (1.0, 0.99, 0.5):
        changes = {"batch_size": 32, "controller__threshold": threshold, **on("ho_sfl", ["temporal"])}
        simulation = small.built(small.images("ho_sfl", **changes)).federation
        losses = small.run(simulation, 8)
        assert all(0 < loss < 20 for loss in losses)
        sent[threshold] = simulation.server.ledger.total("up")
    assert sent[1.0] > sent[0.99] >= sent[0.5]
    # Four clients upload about four times each; at 0.5 only the first time: a cosine stays above it for these rounds.
    assert sent[0.5] < 0.5 * sent[1.0]


@pytest.mark.parametrize("side", ["client", "server"])
def test_what_is_remembered_counts_as_memory_of_its_party(side: str) -> None:
    """In memory or on disk: what is kept there is the difference, to within what one message takes on its way."""
    link = "gradient_down" if side == "client" else "activations_up"
    peaks = []
    for where in ("memory", "disk"):
        changes = {"clients": 1, "sampled_clients": 1, "controller__threshold": 1.0}
        chain = [{"name": "temporal", "cache": "float32", "where": where}]
        simulation = small.built(small.images("ho_sfl", **changes, **{f"codecs__{link}": chain})).federation
        small.run(simulation, 15)  # an epoch
        simulation.server.meters.client_peak_bytes = simulation.server.meters.server_peak_bytes = 0
        small.run(simulation, 1, first=15, measure=True)
        meters = simulation.server.meters
        peaks.append(meters.client_peak_bytes if side == "client" else meters.server_peak_bytes)
    kept, message = (120 * 16 * 256 * 4, 8 * 16 * 256 * 4)
    assert abs(peaks[0] - peaks[1] - kept) <= 2 * message


def test_files_of_what_is_remembered_are_in_the_scratch_folder_and_go(tmp_path: Path) -> None:
    chain = [{"name": "temporal", "where": "disk"}]
    built = build(small.images("ho_sfl", **on("ho_sfl", chain)), scratch=tmp_path)
    small.run(built.federation, 2)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("caches-")
    number = _client(built.federation)
    near, far = built.federation.client(number).near, built.federation.server.end(number)
    files = {path.name for path in (folder / f"{_client(built.federation)}-activations_up").iterdir()}
    assert files == {str(n) for n in range(-1, 2000) if n in far.receivers["activations_up"].cache}  # type: ignore[union-attr]
    assert near.tensors()  # the sketches
    assert far.receivers["activations_up"].tensors() == []
    del built, near, far
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_client_by_itself_keeps_the_folder_of_what_it_remembers(tmp_path: Path) -> None:
    chain = [{"name": "temporal", "where": "disk"}]
    side = build(small.images("ho_sfl", **on("ho_sfl", chain)), scratch=tmp_path).federation.client(0)
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    del side
    gc.collect()
    assert list(tmp_path.iterdir()) == []
