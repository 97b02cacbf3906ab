"""`halfback deploy --devices`: a gateway with its devices on this machine, all of which ends with the command."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra package is not installed")
pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.certificate import write_certificate
from halfback.deploy.keeper import kept
from halfback.deploy.tokens import listed
from halfback.deploy.trying import Devices, Kinds
from halfback.errors import UserError
from halfback.runs.devices import _split
from halfback.testing import small
from halfback_device.cli import _parser, _rows
from halfback_device.data import own_split
from halfback_device.package import Package
from tests.command import halfback, refusal

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "device")])}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "simulator"], "--devices 2: it is for --env poc, which starts them"),
        (["--env", "poc", "clients=4"], "clients=4: --devices 2 makes as many clients; leave it away"),
        (["--env", "poc", "sampled_clients=3"], "sampled_clients=3"),
        (["--env", "poc", "algorithm.name=split_lora"], "algorithm.name=split_lora: its devices backpropagate"),
        (["--env", "poc", "model.cut=[1, 2]"], "model.cut: the devices of a gateway have one package"),
    ],
)
def test_what_devices_can_not_do_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [word for word in words if "=" in word]
    flags = [word for word in words if "=" not in word]
    assert said in refusal(halfback("deploy", "quickstart", *settings, *flags, "--devices", "2"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("halfback.packaging.find_spec", lambda name: None if name == "halfback_device" else name)
    said = refusal(halfback("deploy", "quickstart", "--env", "poc", "--devices", "2"))
    assert said.startswith("--devices needs halfback_device, not installed here: pip install ")
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_is_good_for_this_machine_and_signs_nothing(tmp_path: Path) -> None:
    """By the strict rules of OpenSSL, which newer versions of Python have as their default."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_certificate(certificate, key)
    assert key.stat().st_mode & 0o777 == 0o600
    site, device = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context(cafile=certificate)
    site.load_cert_chain(certificate, key)
    device.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("localhost", "127.0.0.1"):
        shaken_hands(site, device, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shaken_hands(site, device, "example.org")
    write_certificate(certificate, key)  # of a run before
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    other.load_cert_chain(certificate, key)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(other, device, "localhost")


def shaken_hands(site: ssl.SSLContext, device: ssl.SSLContext, name: str) -> None:
    """A whole handshake in memory."""
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [site.wrap_bio(there, here, server_side=True), device.wrap_bio(here, there, server_hostname=name)]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


@pytest.fixture(params=["images", "texts"])
def recipe(request: pytest.FixtureRequest) -> RunConfig:
    few = {"clients": 3, "sampled_clients": 2, "steps": 4, "eval_every": 2, "threads": 1}
    if request.param == "images":
        return small.images("ho_sfl", **few)
    model, sentences = (request.getfixturevalue(name) for name in ("tiny_bert", "sentences"))
    return small.texts("ho_sfl", model, sentences, **few)


def test_each_device_is_given_the_rows_of_its_client(recipe: RunConfig, tmp_path: Path) -> None:
    """As a device itself reads what its command names; the row numbers alone are its own."""
    devices = Devices(recipe, Kinds(devices=2, tabs=1), tmp_path)
    package, run = Package.open(tmp_path / "package"), small.built(recipe)
    words_of = [process.command[process.command.index("join") :] for process in devices.processes]
    (link, file) = devices.links[0]
    site = json.loads(devices.files["site-1"])["devices"]
    assert re.fullmatch(rf"https://{site['listen']}/#hb1\.[0-9a-f]{{8}}\.[A-Za-z0-9_-]{{43}}", link)
    assert (site["page"], site["seats"], len(words_of)) == (True, 3, 2)
    columns = [] if file.suffix == ".npz" else ["--text", "text", "--label", "label"]  # which somebody chooses there
    words_of.append(["join", "wss://x", "--token", "x", "--data", str(file), *columns])
    assert list(listed(Path(site["tokens"])).values())[2].place == 2  # the rows are those of the client at its place
    for number, words in enumerate(words_of):
        rows = _rows(_parser().parse_args(words))
        mine, due = own_split(rows, package.manifest, package.folder, number), _split(run.clients.sources[number])
        np.testing.assert_array_equal(mine.labels, due.labels)
        if due.images is not None:
            np.testing.assert_array_equal(mine.images, due.images)
        else:
            assert mine.tokens is not None
            assert due.tokens is not None
            np.testing.assert_array_equal(mine.tokens.values, due.tokens.values)
            np.testing.assert_array_equal(mine.tokens.ends, due.tokens.ends)
    with pytest.raises(UserError, match=r"^no reply; what the devices say: .*device-\*/log$"), devices.named():
        raise UserError("no reply")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "simulator"], "--browser: it is for --env poc, which starts them"),
        (["--env", "simulator", "--devices", "2"], "--devices 2: it is for --env poc"),
        (["--env", "poc", "--devices", "2", "clients=2"], "clients=2: --devices 2 leaves none for --browser; say more"),
        (["--env", "poc", "clients=2", "sampled_clients=3"], "sampled_clients=3"),
        (["--env", "poc", "clients=x"], "clients='x'"),
        (["--env", "poc", "clients=0"], "clients=0"),
        (["--env", "poc", "clients=2", "algorithm.name=split_lora"], "its devices backpropagate"),
    ],
)
def test_what_tabs_can_not_do_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("halfback.deploy.trying.built_page", lambda: tmp_path)
    assert said in refusal(halfback("deploy", "quickstart", *words, "--browser"))
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_not_built_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("halfback.deploy.browsers.__file__", str(tmp_path / "halfback" / "deploy" / "browsers.py"))
    said = refusal(halfback("deploy", "quickstart", "--env", "poc", "--browser"))
    assert said == "the page is not built here: cd web && npm ci && npm run build"


def process(recipe: Path, out: Path) -> "subprocess.Popen[str]":
    """The command, as a user gives it; it hears Ctrl-C also where the tests were started in the background."""
    words = ["deploy", str(recipe), "--env", "poc", "--devices", "2", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "halfback", *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def processes(place: Path) -> list[str]:
    """The command lines of processes that have to do with a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if any(word.startswith(str(place)) or f'"{place}' in word for word in words):
            found.append(" ".join(words))
    return found


def wait_for_the_end_of_all(place: Path) -> None:
    """FLARE's start script looks every few seconds whether it is to end."""
    until = time.monotonic() + 120
    while found := processes(place):
        assert time.monotonic() < until, found
        time.sleep(0.5)


def test_a_federation_starts_beside_no_other(tmp_path: Path) -> None:
    """It would wait for ever: the ports are FLARE's own."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        says = f"^somebody listens at port {port} of this machine"
        with pytest.raises(UserError, match=says), kept(tmp_path, port, []):
            pass


@pytest.mark.xdist_group("flare")  # one federation, on FLARE's own ports
def test_all_of_it_is_started_shown_and_ended(tmp_path: Path) -> None:
    few = {"clients": 4, "sampled_clients": 3, "steps": 4, "eval_every": 2, "checkpoint_every": 2, "threads": 1}
    (tmp_path / "recipe.yaml").write_text(configuration.dump(small.images("ho_sfl", **few)))
    said, _ = (run := process(tmp_path / "recipe.yaml", tmp_path / "out")).communicate(timeout=600)
    assert run.returncode == 0, said
    for line in (
        "gateway site-1: wss://127.0.0.1:",
        "device-1 has fetched the package",
        "client 0 (site-1:0) joined",
        "client 1 (site-1:1) joined",
        "step 4/4",
    ):
        assert line in said
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["steps"] == 4
    assert (tmp_path / "out.flare" / "devices" / "device-0" / "log").read_text().count("connected to wss://") == 1
    wait_for_the_end_of_all(tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("flare")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_the_command_ends_all_that_it_started(number: int, tmp_path: Path) -> None:
    """And the same command goes on with the run."""
    few = {"clients": 4, "sampled_clients": 2, "steps": 400, "eval_every": 10, "checkpoint_every": 2, "threads": 1}
    (tmp_path / "recipe.yaml").write_text(configuration.dump(small.images("ho_sfl", **few)))
    run = process(tmp_path / "recipe.yaml", tmp_path / "out")
    records = tmp_path / "out.flare/federation/example_project/prod_00/server/halfback/runs/recipe/records.jsonl"
    until = time.monotonic() + 300
    while not (records.exists() and records.read_text().count("\n") > 3):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.1)
    assert len([words for words in processes(tmp_path) if "halfback_device" in words]) >= 2
    run.send_signal(number)
    run.wait(timeout=120)
    wait_for_the_end_of_all(tmp_path)
    again = process(tmp_path / "recipe.yaml", tmp_path / "out")
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert "went back" in said  # to the checkpoint of the first one
