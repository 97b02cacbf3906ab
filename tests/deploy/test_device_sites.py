"""Sites whose clients have no PyTorch: what such a site says, what a job can't make of it, and kills that kill."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from halfback import config as configuration
from halfback.assembly import build
from halfback.config import RunConfig
from halfback.deploy.relay import Relay
from halfback.deploy.site import SiteConfig
from halfback.engine.remote.frames import Frame, Prepare, Refused, frame, read_reply
from halfback.engine.remote.weights import at_the_beginning, digest_of
from halfback.errors import UserError
from halfback.testing import small
from tests.deploy.local import Relays, assert_same, serve_here

pytest.importorskip("onnx", reason="the extra package is not installed")

from halfback.runs import run
from halfback.runs.package import package

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 8


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The workers inherit it, and where the device's package is."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "device"))))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, sentences: Path) -> RunConfig:
    """With links that remember samples, so that a state that came back wrong shows in the bits."""
    changes = {"algorithm__directions": 2, "algorithm__exact_blocks": 1, "bottom__optimizer": "adamw", "model__cut": 2}
    cadence = {"deployment__patience": 20.0, "steps": ROUNDS, "eval_every": 4, "checkpoint_every": 2, "batch_size": 6}
    codecs = {"codecs__activations_up": ["temporal", "int8"], "codecs__slopes_up": ["sign"]}
    return small.texts("ho_sfl", tiny_bert, sentences, clients=2, sampled_clients=2, **changes, **cadence, **codecs)


@pytest.fixture(scope="module")
def packaged(recipe: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "package"
    package(recipe, folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"the film is {word},{mood},ann" for word, mood in (("great", "positive"), ("dull", "negative")) * 6]
    path.write_text("\n".join(["note,mood,name", *lines]) + "\n")
    return path


def device_site(packaged: Path, rows: Path, **changes: Any) -> SiteConfig:
    data = {"name": "csv", "train": str(rows), "text": "note", "label": "mood"}
    return SiteConfig.model_validate({"data": data, "runtime": "device", "package": str(packaged)} | changes)


def test_a_run_of_a_site_with_and_one_without_pytorch_whose_workers_are_killed_has_the_bits_of_an_unbroken_one(
    tmp_path: Path, recipe: RunConfig, packaged: Path, rows: Path, tiny_bert: Path
) -> None:
    own = {"name": "csv", "text": "note", "label": "mood"}
    with_pytorch = SiteConfig.model_validate({"data": own | {"train": str(rows)}, "model": str(tiny_bert)})
    sites = {0: device_site(packaged, rows), 1: with_pytorch}
    server = SiteConfig.model_validate({"data": own | {"validation": str(rows)}, "model": str(tiny_bert)})
    killed: list[int] = []

    def ran(name: str, victims: Mapping[int, int]) -> Path:
        """A run in which the worker of each of these clients is killed in a round of its own."""

        def kill(questions: Mapping[int, Frame]) -> None:
            asked = json.loads(next(iter(questions.values())).header)
            for client, number in victims.items():
                if asked["kind"] == "say" and asked["round"] == number and client not in killed:
                    killed.append(client)
                    os.kill(relays.by_client[client].pid, signal.SIGKILL)

        place = tmp_path / name
        relays = Relays(place, [0, 1], sites, before=kill)
        try:
            assert serve_here(place, configuration.to_tree(recipe), relays, server) == {"how": "finished", "why": ""}
            loaded = Path(f"/proc/{relays.by_client[0].pid}/maps").read_text()
        finally:
            relays.close()
        assert "onnxruntime" in loaded
        assert "torch" not in loaded
        return place / "job" / "run"

    calm, broken = ran("calm", {}), ran("broken", {0: 3, 1: 5})
    assert killed == [0, 1]
    assert_same(broken, calm, rounds=ROUNDS)
    events = [json.loads(line) for line in (broken / "events.jsonl").read_text().splitlines()]
    assert [event["client"] for event in events if event["event"] == "returned"] == [0, 1]
    assert [event["round"] for event in events if event["event"] == "went back"] == [2, 4]


def test_a_device_at_a_site_has_the_bits_of_one_in_a_simulation(
    tmp_path: Path, recipe: RunConfig, rows: Path, tiny_bert: Path
) -> None:
    """One client, for clients of a simulation share rows out; and the simulation's own package."""
    columns = {"task.train": str(rows), "task.validation": str(rows), "task.text": "note", "task.label": "mood"}
    alone = configuration.from_tree(configuration.to_tree(recipe), columns | {"clients": 1, "sampled_clients": 1})
    simulated = configuration.from_tree(configuration.to_tree(alone), {"client.runtime": "device"})
    finished = run.train(simulated, tmp_path / "simulated")
    own = {"name": "csv", "text": "note", "label": "mood", "validation": str(rows)}
    site = device_site(tmp_path / "simulated" / "devices" / "package-2", rows)
    relays = Relays(tmp_path, [0], {0: site})
    try:
        server = SiteConfig.model_validate({"data": own, "model": str(tiny_bert)})
        assert serve_here(tmp_path, configuration.to_tree(alone), relays, server) == {"how": "finished", "why": ""}
    finally:
        relays.close()
    assert_same(tmp_path / "job" / "run", finished.folder, rounds=ROUNDS)
    summary = json.loads((tmp_path / "job" / "run" / "summary.json").read_text())
    assert summary["forward_passes"] == finished.summary.forward_passes
    # The system's figure of a worker process, which has the runtime in it; a simulation has no process of the device.
    assert 30e6 < summary["client_inference_peak_bytes"] < summary["client_peak_bytes"] < 300e6
    assert finished.summary.client_peak_bytes == 0
    assert finished.evaluate().loss == finished.records[-1].validation_loss


@pytest.fixture(scope="module")
def digest(recipe: RunConfig) -> str:
    """Of the weights that the recipe's run begins with."""
    built = build(recipe)
    theta = built.federation.server.party.agreed.replica.parameters
    return digest_of(at_the_beginning(built.ground.parts(0), theta))


Asked = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, recipe: RunConfig, digest: str) -> Asked:
    """Why a site's worker takes no part in a run of the recipe with other settings; empty if it does."""

    def asked(site: SiteConfig, weights: str = digest, **order: Any) -> str:
        changes = {key.replace("__", "."): value for key, value in order.items()}
        names = changes.pop("label_names", ("negative", "positive"))
        config = configuration.from_tree(configuration.to_tree(recipe), changes)
        question = Prepare(
            run="0" * 16, client=0, config=configuration.to_tree(config), label_names=names, weights=weights
        )
        relay = Relay(site, tmp_path / "states")
        try:
            reply = read_reply(relay.exchange(frame(question), 60.0).header)
        finally:
            relay.close()
        return reply.error if isinstance(reply, Refused) else ""

    return asked


def test_a_device_reads_no_column_and_no_file_that_the_server_chose(refusal: Asked, packaged: Path, rows: Path) -> None:
    own = device_site(packaged, rows)
    assert refusal(own) == ""
    assert refusal(own, task__text="mood", task__train="/etc/passwd") == ""  # it trains on its notes all the same
    assert "task.template" in refusal(own, task__template="{text} {mood}")
    assert "client.runtime" not in refusal(own, model__name="/srv/other")


def test_no_word_of_a_question_chooses_the_package_the_interpreter_or_the_rows(
    packaged: Path, rows: Path, tmp_path: Path, recipe: RunConfig, digest: str
) -> None:
    relay = Relay(device_site(packaged, rows), tmp_path / "states")
    order = Prepare(
        run="0" * 16,
        client=0,
        config=configuration.to_tree(recipe),
        label_names=("negative", "positive"),
        weights=digest,
    ).model_dump()
    try:
        for word in ("package", "interpreter", "rows", "keep_labels", "folder", "data"):
            reply = read_reply(relay.exchange(Frame(json.dumps(order | {word: "/srv/other"})), 60.0).header)
            assert isinstance(reply, Refused)
            assert reply.error == f"header.prepare.'{word}': this field is unknown"
            inside = order | {"config": order["config"] | {word: "/srv/other"}}
            assert not isinstance(read_reply(relay.exchange(Frame(json.dumps(inside)), 60.0).header), Refused)
        told = Path(f"/proc/{relay.pid}/cmdline").read_text()
    finally:
        relay.close()
    assert str(packaged) in told
    assert "/srv/other" not in told


def test_no_module_that_lies_where_a_worker_is_started_is_loaded(
    refusal: Asked, packaged: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("halfback_device", "onnxruntime"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "__init__.py").write_text("raise SystemExit('loaded')\n")
    monkeypatch.chdir(tmp_path / "here")
    assert refusal(device_site(packaged, rows)) == ""


def test_a_device_takes_part_in_no_run_of_another_recipe_than_its_packages(
    refusal: Asked, packaged: Path, rows: Path
) -> None:
    own = device_site(packaged, rows)
    for key, value in {
        "bottom.lr": 0.5,
        "seed": 7,
        "algorithm.directions": 3,
        "model.head": 0,
        "codecs.activations_up": [],
        "task.max_length": 8,
    }.items():
        said = refusal(own, **{key.replace(".", "__"): value})
        assert f"{key}=" in said
        assert "package this recipe anew" in said
        assert "\n" not in said
    assert "the classes of this run are not the package's" in refusal(own, label_names=("positive", "negative"))


def test_a_site_that_keeps_its_labels_keeps_them_on_a_device_too(
    refusal: Asked, packaged: Path, rows: Path, recipe: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"keeps its labels .*ho_sfl with model.head=null.*; use model.head=0"):
        refusal(device_site(packaged, rows, keep_labels=True))
    twice = {"name": "csv", "train": str(rows), "text": "mood", "label": "mood"}
    package(recipe, tmp_path / "u-shape", **{"model.head": 0})
    with pytest.raises(UserError, match=r"has their column as data\.text too"):
        refusal(device_site(tmp_path / "u-shape", rows, keep_labels=True, data=twice))
    begins = json.loads((tmp_path / "u-shape" / "manifest.json").read_text())["weights"]["digest"]
    keeps = device_site(tmp_path / "u-shape", rows, keep_labels=True)
    assert refusal(keeps, begins, model__head=0) == ""
    assert "the weights that this run begins with are not the package's" in refusal(keeps, model__head=0)


def test_what_is_wrong_with_a_row_stays_on_a_device(refusal: Asked, packaged: Path, rows: Path) -> None:
    rows.write_text(rows.read_text() + "so secret,odd,ann\n")
    said = refusal(device_site(packaged, rows))
    assert said == "what is wrong may quote a row of this device; its own log says it"


def test_a_package_that_is_damaged_or_of_another_version_is_one_line(
    refusal: Asked, packaged: Path, rows: Path, tmp_path: Path
) -> None:
    def spoilt(change: Callable[[Path], None]) -> str:
        shutil.rmtree(tmp_path / "spoilt", ignore_errors=True)
        shutil.copytree(packaged, tmp_path / "spoilt")
        change(tmp_path / "spoilt")
        return refusal(device_site(tmp_path / "spoilt", rows))

    def another_format(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 9}))

    def another_bit(folder: Path) -> None:
        data = bytearray((folder / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(data)

    assert "its format is 9" in spoilt(another_format)
    assert "weights.safetensors: its digest is not the manifest's" in spoilt(another_bit)
    with pytest.raises(UserError, match=r"there is no manifest.json in it; `halfback package` makes one"):
        spoilt(lambda folder: (folder / "manifest.json").unlink())
    with pytest.raises(UserError, match=r"manifest.json must be JSON"):
        spoilt(lambda folder: (folder / "manifest.json").write_text("{"))


def test_an_interpreter_that_can_not_do_it_is_one_line(
    refusal: Asked, packaged: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"interpreter /no/python can't be started: No such file or directory"):
        refusal(device_site(packaged, rows, interpreter="/no/python"))
    bare = tmp_path / "bare"  # a Python to which nothing is installed
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"its environment has no halfback-device"):
        refusal(device_site(packaged, rows, interpreter=str(bare)))
