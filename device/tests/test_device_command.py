"""The command and the worker's process, as a site starts them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mixed import DEVICE, adapted, run_of, shared_rows

from halfback.config import RunConfig
from halfback.engine.remote.frames import Longest, Refused, read_reply
from halfback.engine.remote.stream import read_frame
from halfback_device.cli import main
from halfback_device.data import Rows

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

ENVIRONMENT = os.environ | {"PYTHONPATH": str(DEVICE)}


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "halfback_device", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def own(base: Path, tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config: RunConfig = run_of("ho_sfl", tiny_bert, sentences)
    folder = tmp_path_factory.mktemp("command") / "package"
    adapted(base, config, folder)
    return folder


def test_inference_on_a_graph_that_can_not_be_run_is_one_line(own: Path, sentences: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(own, tmp_path / "package")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["embed"]["weights"].pop()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = ran("infer", str(folder), "--data", str(sentences), "--text", "text", "--label", "label")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "can't be run" in done.stderr


def test_a_package_is_checked_and_runs(own: Path) -> None:
    told = json.loads(ran("check", str(own)).stdout)
    assert (told["method"], told["blocks"], told["activations"]) == ("ho_sfl", 2, [2, 16])
    assert told["peak_bytes"] > 10**7


def test_inference_alone_runs_on_a_client_s_share(own: Path, sentences: Path) -> None:
    columns = ("--data", str(sentences), "--text", "text", "--label", "label", "--shared", "--client", "1")
    told = json.loads(ran("infer", str(own), *columns, "--batches", "3").stdout)
    assert told["batches"] == 3
    assert told["rows"] == 29  # of 96, of which a tenth is held back to validate on, a third
    assert told["batch_seconds"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest["graphs"]["embed"]["weights"].pop(), "can't be run"),
        (lambda manifest: manifest["config"]["codecs"].update(gradient_down=["topk"]), "codec 'topk'"),
    ],
)
def test_a_check_finds_what_a_run_would(change: Callable[[Any], Any], said: str, own: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(own, tmp_path / "package")
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = ran("check", str(folder))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "nowhere"), "manifest.json"),
        (("infer", "{own}", "--data", "nowhere.csv", "--text", "text", "--label", "label"), "nowhere.csv"),
        (("worker", "{"), "no JSON"),
        (("worker", "[]"), "descriptor"),
        (("worker", '{"descriptor":999,"package":"p","folder":"f","rows":{"path":"r"}}'), "no socket"),
        (("worker", '{"descriptor":0,"package":"p","folder":"f","rows":{"path":"r","columns":[]}}'), "rows.columns"),
        (("worker", '{"descriptor":0,"package":"p","folder":"f","rows":{}}'), "rows.path"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], said: str, own: Path) -> None:
    done = ran(*(each.replace("{own}", str(own)) for each in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("halfback-device: ")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--client 3 --shared", "client 3: the package's recipe has 3, so 0 to 2 are allowed"),
        ("--client -4 --shared", "client -4: the package's recipe has 3"),
        ("--client -1 --shared", "client -1: the package's recipe has 3"),
        ("--client 9999", "client 9999: the package's recipe has 3"),
        ("--client -1", "client -1: the package's recipe has 3"),
        (f"--client {10**30}", "the package's recipe has 3"),
        ("--batches 0", "--batches 0: 1 or more are allowed"),
        ("--batches -1", "--batches -1: 1 or more are allowed"),
        ("--pair mood", "--pair: rows of this package's run have none"),
        ("--target mood", "--target: rows of this package's run have none"),
        ("--encoding=", "--encoding '' is none"),
        ("--text=", "no column ''"),
        ("--delimiter=", "--delimiter ''"),
    ],
)
def test_inference_takes_what_the_run_has(
    flags: str, said: str, own: Path, sentences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("--data", str(sentences), "--text", "text", "--label", "label")
    with pytest.raises(SystemExit) as end:
        main(["infer", str(own), *rows, *flags.split()])
    came = capsys.readouterr()
    assert (end.value.code, came.out, len(came.err.splitlines())) == (2, "", 1)
    assert said in came.err


def test_output_that_nobody_reads_is_no_bug(own: Path) -> None:
    command = [sys.executable, "-m", "halfback_device", "check", str(own)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    said = "halfback-device: standard output can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(command, env=ENVIRONMENT, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_who_stops_inference_sees_one_line(own: Path, sentences: Path) -> None:
    rows = ("--data", str(sentences), "--text", "text", "--label", "label", "--batches", "1000000000")
    command = [sys.executable, "-m", "halfback_device", "infer", str(own), *rows]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "weights.safetensors" not in maps.read_text():  # by then it is at work
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "halfback-device: stopped\n"
        assert process.returncode == 128 + signal.SIGINT


def test_its_version_and_its_module() -> None:
    assert ran("--version").stdout == version("halfback-device") + "\n"
    command = [sys.executable, "-m", "halfback_device.cli", "check", "nowhere"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "manifest.json" in done.stderr) == (2, True)


def test_a_worker_outlives_what_is_no_frame_s_header(own: Path, sentences: Path, tmp_path: Path) -> None:
    near, far = socket.socketpair()
    rows: Rows = shared_rows(sentences)
    told = {"package": str(own), "folder": str(tmp_path), "rows": vars(rows), "descriptor": far.fileno()}
    command = [sys.executable, "-m", "halfback_device", "worker", json.dumps(told)]
    with near, far, subprocess.Popen(command, pass_fds=[far.fileno()], env=ENVIRONMENT) as process:
        far.close()
        near.settimeout(60)
        for sent in (b"\2\0\0\0\0\0\0\0\xff\xff", b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\xff\xff\xff\xff"):
            near.sendall(sent)  # a header that is no text, one that is no question, and a body that is too long
            reply = read_reply(read_frame(near, Longest(0)).header)
            assert isinstance(reply, Refused)
            assert reply.why == "peer"
        assert process.wait(60) == 0  # behind the last there is no way to tell where a frame begins


def test_a_profile_is_a_fleet_of_one_class(own: Path, sentences: Path, tmp_path: Path) -> None:
    columns = ("--data", str(sentences), "--text", "text", "--label", "label", "--shared")
    done = ran(
        "profile", str(own), *columns, "--out", str(tmp_path / "fleet.json"), "--seconds", "0.2", "--up-megabits", "3"
    )
    assert (done.returncode, done.stderr) == (0, "")
    fleet = json.loads((tmp_path / "fleet.json").read_text())
    (of_class,) = fleet["classes"]
    assert of_class["up_megabits"] == 3
    assert min(of_class[key] for key in ("operations_per_second", "bytes_per_second", "memory_megabytes")) > 1e3
    assert fleet["server_operations_per_second"] > 0
