"""Whole runs whose clients are devices behind a gateway: real sockets, TLS and devices, all but FLARE."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("onnx", reason="the extra package is not installed")
pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from nvflare.collab.api.context import set_call_context
from websockets.exceptions import ConnectionClosed

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.client_job import Site
from halfback.deploy.flare import FlareCarrier, seats_of
from halfback.deploy.gateway import opened
from halfback.deploy.serving import ENDED, RUN, Surroundings, serve
from halfback.deploy.site import SiteConfig
from halfback.deploy.tokens import add
from halfback.errors import UserError
from halfback.runs import run
from halfback.runs.repeating import repeat
from halfback.telemetry.records import read_records
from halfback.testing import small
from halfback_device.client import Device
from halfback_device.data import Rows
from tests.deploy.gateways import certified, connected, heard, hello, packed, said
from tests.deploy.local import assert_same

STEPS = 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Here:
    """A gateway's site as its FLARE process has it, which the server calls from its threads."""

    def __init__(self, place: Path, package: Path, seats: int) -> None:
        self.local, self.tokens = place / "local", place / "tokens.json"
        self.local.mkdir(parents=True)
        self.tls, certificate, key = certified(place)
        devices = {"listen": "127.0.0.1:0", "certificate": str(certificate), "key": str(key), "seats": seats}
        devices |= {"tokens": str(self.tokens)}
        file = {"runtime": "device", "package": str(package), "devices": devices}
        (self.local / "halfback.yaml").write_text(yaml.safe_dump(file))
        self._as("server")
        self.site = Site()
        self.site.start()

    def _as(self, caller: str) -> None:
        workspace = SimpleNamespace(get_site_config_dir=lambda: str(self.local))
        set_call_context(SimpleNamespace(workspace=workspace, caller=caller))  # type: ignore[arg-type]

    def __call__(self, timeout: float) -> "Here":
        return self

    def exchange(self, *asked: Any) -> Any:
        self._as("server")
        return self.site.exchange(*asked)

    def present(self) -> Any:
        self._as("server")
        return self.site.present()

    def close(self) -> None:
        self.site.stop()
        set_call_context(None)  # type: ignore[arg-type]


class Joined(threading.Thread):
    """A device that joins, fetches the package, works, and comes again until it is told to stop.

    `breaks`: after how many replies it is as if it had been killed: another one goes on from what is on its disk.
    """

    def __init__(self, here: Here, token: str, rows: Rows, folder: Path, breaks: int | None = None) -> None:
        super().__init__(daemon=True)
        assert here.site._gateway is not None
        self.address = f"wss://localhost:{here.site._gateway.port}/halfback/1"
        self.here, self.token, self.rows, self.folder, self.breaks = here, token, rows, folder, breaks
        self.replies, self.ended = 0, threading.Event()
        self.told: dict[int, dict[str, Any]] = {}  # evaluations, by the step behind which they were

    def run(self) -> None:
        while not self.ended.wait(0.1):
            try:
                self._works()
            except (ConnectionClosed, OSError, TimeoutError):
                continue

    def _works(self) -> None:
        with connected(self.address, self.token, self.here.tls) as line:
            said(line, hello())
            for entry in heard(line)[0]["package"]["files"]:
                data, path = b"", self.folder / "package" / entry["name"]
                while len(data) < entry["bytes"]:
                    said(line, {"kind": "piece", "file": entry["name"], "offset": len(data)})
                    data += heard(line)[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            device = Device(self.folder / "package", self.rows, self.folder / "states")
            said(line, {"kind": "ready"})
            while not self.ended.is_set():
                header, body = heard(line, 60.0)
                if self.replies == self.breaks:
                    self.breaks = None
                    device._client._lock.close()  # type: ignore[union-attr]  # as the system does for a killed one
                    return
                if (found := header.get("evaluation")) is not None:
                    self.told[found["step"]] = found
                reply = device.reply(json.dumps(header), body)
                self.replies += 1
                line.send(packed(reply.header, reply.body))


def recipe(tiny_bert: Path, sentences: Path, **changes: Any) -> RunConfig:
    given = {"algorithm__directions": 2, "bottom__optimizer": "adamw", "model__cut": 2, "steps": STEPS}
    cadence = {"eval_every": 3, "checkpoint_every": 2, "batch_size": 4, "deployment__patience": 60.0}
    few = {"clients": 3, "sampled_clients": 3, "client__runtime": "device"}
    codecs = {"codecs__activations_up": ["temporal", "int8"]}  # which remember: a state that came back wrong shows
    return small.texts("ho_sfl", tiny_bert, sentences, **given, **cadence, **few, **codecs, **changes)


@pytest.fixture(scope="module")
def simulated(tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run in one process, and its folder."""
    config, folder = recipe(tiny_bert, sentences), tmp_path_factory.mktemp("simulated") / "run"
    run.train(config, folder)
    return config, folder


def behind_gateways(config: RunConfig, package: Path, rows: Rows, place: Path, breaks: int | None) -> Path:
    """The run with devices behind two gateways, of which one breaks off before so many replies; its folder."""
    tree = configuration.to_tree(configuration.from_tree(configuration.to_tree(config), {"client.runtime": "torch"}))
    heres = {name: Here(place / name, package, seats) for name, seats in (("one", 5), ("two", 1))}
    joined = [
        Joined(here, add(here.tokens, 5), rows, place / name / str(number), breaks if number == 1 else None)
        for name, here, number in (("one", heres["one"], 0), ("one", heres["one"], 1), ("two", heres["two"], 0))
    ]
    try:
        for device in joined:
            device.start()
        serve(
            "run",
            tree,
            Surroundings(
                site=lambda: SiteConfig(trial=True),
                folder=lambda _: place / "server",
                sites=lambda: seats_of(heres),
                carrier=lambda seats: FlareCarrier(heres, seats),
                job=place / "job",
                listen=lambda _: None,
            ),
        )
    finally:
        for device in joined:
            device.ended.set()
        for here in heres.values():
            here.close()
    left = place / "job" / RUN
    # Each was told of all evaluations, also of that behind the last round.
    records = {record.step: record for record in read_records(left)}
    assert all(device.told.keys() == records.keys() for device in joined)
    found = {step: (told["loss"], told["accuracy"]) for step, told in joined[0].told.items()}
    assert found == {step: (record.validation_loss, record.metric) for step, record in records.items()}
    return left


@pytest.mark.parametrize("breaks", [None, 9])
def test_devices_behind_two_gateways_have_the_bits_of_one_process(
    simulated: tuple[RunConfig, Path], sentences: Path, tmp_path: Path, breaks: int | None
) -> None:
    config, folder = simulated
    rows = Rows(str(sentences), text="text", label="label", shared=True)
    left = behind_gateways(config, folder / "devices" / "package-2", rows, tmp_path, breaks)
    assert json.loads((left / ENDED).read_text()) == {"how": "finished", "why": ""}
    assert json.loads((left / "seats.json").read_text()) == {"one": [0, 2], "two": [1]}
    assert_same(left, folder, rounds=STEPS)
    events = [json.loads(line) for line in (left / "events.jsonl").read_text().splitlines()]
    assert {event["site"] for event in events if event["event"] == "joined"} == {"one:0", "one:1", "two"}
    assert [event["site"] for event in events if event["event"] == "returned"] == ([] if breaks is None else ["one:1"])
    if breaks is not None:
        again = repeat(left, tmp_path / "again", {"client.runtime": "device"}, on_round=None)
        assert (again.tensors > 10, again.differ) == (True, [])
        counted = [json.loads(line) for line in (left / "gateways.jsonl").read_text().splitlines()]
        assert {line["site"] for line in counted} == {"one", "two"}
        assert counted[-1]["devices_at_work"] in (1, 2)


@pytest.mark.slow
def test_a_device_that_breaks_off_in_the_middle_of_a_secure_sum_comes_back_with_the_same_bits(
    tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    """Its replies: 0 ready; of each round greeting, join, activations, keys, shares, masked values, opened, done."""
    config = recipe(tiny_bert, sentences, secure__sum=True)
    run.train(config, tmp_path / "here")
    rows = Rows(str(sentences), text="text", label="label", shared=True)
    left = behind_gateways(config, tmp_path / "here" / "devices" / "package-2", rows, tmp_path, 1 + 8 + 5)
    assert json.loads((left / ENDED).read_text()) == {"how": "finished", "why": ""}
    assert_same(left, tmp_path / "here", rounds=STEPS)
    events = [json.loads(line) for line in (left / "events.jsonl").read_text().splitlines()]
    assert [event["site"] for event in events if event["event"] == "returned"] == ["one:1"]
    assert [event["round"] for event in events if event["event"] == "went back"] == [0]


def test_a_gateway_that_keeps_labels_opens_for_no_package_that_sends_them(
    simulated: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    """Before its port is open: whatever its devices would say themselves."""
    _, certificate, key = certified(tmp_path)
    devices = {"listen": "127.0.0.1:0", "certificate": str(certificate), "key": str(key)}
    package = simulated[1] / "devices" / "package-2"
    site = {"runtime": "device", "package": str(package), "devices": devices}
    opened(SiteConfig.model_validate(site), tmp_path / "tokens.json").close()
    with pytest.raises(UserError, match=r"keeps its labels .*ho_sfl with model.head=null.*; use model.head=0"):
        opened(SiteConfig.model_validate(site | {"keep_labels": True}), tmp_path / "tokens.json")
