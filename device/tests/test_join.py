"""A device that connects to a gateway by itself: the same bits over it, and nothing that a gateway says is trusted."""

import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from gateways import PIECE, TOKEN, Gateway, Seats, files_of, listing, packed
from mixed import DEVICE, adapted, run_of, served, shared_rows, world
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from halfback.engine.remote.server import RemoteServer
from halfback.errors import CohortLost
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback_device import join
from halfback_device.cli import main
from halfback_device.data import Rows
from halfback_device.errors import DeviceError, PeerError
from halfback_device.fetch import Store, read_listing
from halfback_device.join import Joining, Terms
from halfback_device.line import Lost, Unwelcome, address, event_loop, unpacked

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

STEPS = 2
SETTINGS: dict[str, Any] = {
    "clients": 2,
    "sampled_clients": 2,
    "batch_size": 16,
    "bottom__optimizer": "adamw",
    "codecs__activations_up": [{"name": "temporal"}, "int8"],
}


@contextlib.contextmanager
def joined(url: str, folder: Path, rows: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A device's process; it is killed at the end if it is there still."""
    (folder / "token").write_text(TOKEN + "\n")
    columns = ("--data", str(rows), "--text", "text", "--label", "label", "--shared")
    own = ("--token-file", str(folder / "token"), "--ca", str(folder / "ca.pem"), "--folder", str(folder / "device"))
    command = [sys.executable, "-m", "halfback_device", "join", url, *own, *columns, *more]
    environment = os.environ | {"PYTHONPATH": str(DEVICE)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def package(base: Path, tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joining") / "package"
    adapted(base, run_of("ho_sfl", tiny_bert, sentences, **SETTINGS), folder)
    return folder


def _rounds(server: RemoteServer, first: int, count: int) -> None:
    for number in range(first, first + count):
        server.run_round(Round(number, STEPS, number * STEPS), measure_memory=False)


def test_killed_and_come_again_a_device_has_the_same_bits(
    base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    """Two devices over TLS, one of which is killed in a round, and the run in one process."""
    config = run_of("ho_sfl", tiny_bert, sentences, **SETTINGS)
    opened, rows = adapted(base, config, tmp_path / "package"), shared_rows(sentences)
    unbroken = world(config, ["device", "device"], rows, tmp_path / "unbroken", lambda client: opened)
    unbroken.run(5, steps=STEPS)
    seats, files = Seats(2), files_of(tmp_path / "package")
    with contextlib.ExitStack() as stack:
        devices = []
        for place in range(2):
            folder = tmp_path / f"place-{place}"
            folder.mkdir()
            url = stack.enter_context(Gateway(files, seats.at_work(place)).serving(folder))
            devices.append(stack.enter_context(joined(url, folder, sentences)))
        seats.wait(2)
        federation, server = served(config, seats)
        _rounds(server, 0, 2)
        saved, begun = copy.deepcopy(server.state()), seats.asked

        def kill(asked: int) -> None:
            if asked == begun + 3:
                devices[1].kill()
                devices[1].wait()

        seats.before = kill
        with pytest.raises(CohortLost):
            _rounds(server, 2, 1)
        server.load_state(*saved)
        stack.enter_context(joined(url, folder, sentences))
        seats.wait(2)
        _rounds(server, 2, 3)
        devices[0].send_signal(signal.SIGTERM)
        said = devices[0].communicate(timeout=60)[1]
        assert devices[0].returncode == 0, said
        assert "connected to wss://127.0.0.1" in said
        assert said.splitlines()[-1].endswith("stopped")
    small.assert_equal_states(federation, unbroken.federation, but=("peaks",))
