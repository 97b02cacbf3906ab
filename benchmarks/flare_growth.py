"""Memory of FLARE's processes over many calls of its Collab API, with nothing of halfback in them.

    python benchmarks/flare_growth.py [--calls 5000] [--bytes 1000] [--count]

A federation of FLARE's own processes on this machine with mutual TLS, and one site. Its job's server calls one method
of its site, again and again, with so many bytes and gets as many back. Resident memory (VmRSS) of each process is read
as it goes; the slope is fitted to the second half. `--count`: also which objects Python has more of by then, in both
processes of the job, and what the allocator holds.
"""

import argparse
import ctypes
import gc
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from federation import ADMIN, permit, provision, resident, running, submit
from nvflare.collab import collab

SERVER, PORT = "localhost", 8122
KINDS = {
    "server's job": "server.runner_process",
    "site's job": "client.worker_process",
    "FLARE server": "server.server_train",
    "FLARE client": "client.client_train",
}
_RUNTIME = ("nvflare.collab.runtime.controller.CollabController", "nvflare.collab.runtime.executor.CollabExecutor")


def counted() -> dict[str, int]:
    """Objects of this process by type, and bytes that the C library has handed out."""
    gc.collect()
    found = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return dict(found) | {"blocks of Python's": sys.getallocatedblocks(), "bytes of malloc's": _handed_out()}


class _Info(ctypes.Structure):
    _fields_ = tuple((f"field_{number}", ctypes.c_size_t) for number in range(10))


def _handed_out() -> int:
    function = ctypes.CDLL(None).mallinfo2
    function.restype = _Info
    info = function()
    return int(info.field_7 + info.field_4)  # uordblks, and hblkhd of what is mapped by itself


def _be(quiet: bool) -> None:
    if quiet:
        from halfback.deploy.calm import be_quiet

        be_quiet()


class Called:
    """The site's component."""

    def __init__(self, quiet: bool) -> None:
        _be(quiet)

    @collab.publish
    def echo(self, body: bytes) -> bytes:
        return body

    @collab.publish
    def count(self) -> dict[str, int]:
        return counted()


class Calling:
    """The server's component."""

    def __init__(self, calls: int, size: int, out: str, quiet: bool) -> None:
        _be(quiet)
        self.calls = calls
        self.size = size
        self.out = out

    @collab.main
    def run(self) -> None:
        """Writes what it saw to `out`."""
        (site,) = collab.clients
        body, points, counts, begun = bytes(self.size), [], [], time.monotonic()
        for number in range(self.calls + 1):
            if number % max(self.calls // 50, 1) == 0:
                points.append((number, time.monotonic() - begun, resident(self.out, KINDS)))
            if number in (self.calls // 2, self.calls):
                counts.append((counted(), site.count()))
            assert len(site.echo(body)) == self.size
        (Path(self.out) / "unfinished").write_text(json.dumps([points, counts]))
        (Path(self.out) / "unfinished").rename(Path(self.out) / "found.json")


def write_job(place: Path, arguments: argparse.Namespace) -> Path:
    """The three files of a job."""
    given = {"calls": arguments.calls, "size": arguments.bytes, "out": str(place), "quiet": arguments.quiet}
    server = {
        "workflows": [
            {"id": "controller", "path": _RUNTIME[0], "args": {"server_obj_id": "_server", "sync_task_timeout": 120}}
        ],
        "components": [{"id": "_server", "path": "flare_growth.Calling", "args": given}],
    }
    client = {
        "executors": [{"tasks": ["*"], "executor": {"path": _RUNTIME[1], "args": {"client_obj_id": "_client"}}}],
        "components": [{"id": "_client", "path": "flare_growth.Called", "args": {"quiet": arguments.quiet}}],
    }
    both: dict[str, Any] = {"format_version": 2, "task_data_filters": [], "task_result_filters": []}
    meta = {"name": "growth", "resource_spec": {}, "min_clients": 1, "deploy_map": {"app": ["@ALL"]}}
    config = place / "job" / "app" / "config"
    config.mkdir(parents=True)
    (place / "job" / "meta.json").write_text(json.dumps(meta))
    (config / "config_fed_server.json").write_text(json.dumps(server | both))
    (config / "config_fed_client.json").write_text(json.dumps(client | both))
    return place / "job"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="with what halfback.deploy.calm leaves out")
    parser.add_argument("--scheme", default="http", choices=["http", "grpc", "tcp"])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kits = provision(place, SERVER, ["site-1"], PORT, arguments.scheme)
        for name in (SERVER, "site-1"):
            permit(kits / name, [*_RUNTIME, "flare_growth.Calling", "flare_growth.Called"])
        found = place / "found.json"
        with running(kits, SERVER, ["site-1"]):
            submit(write_job(place, arguments), kits / ADMIN, 1, found)
        points, counts = json.loads(found.read_text())
    rate = arguments.calls / points[-1][1]
    how = f"{rate:.0f} a second" + ", quiet" * arguments.quiet
    print(f"{arguments.calls} calls of {arguments.bytes} bytes each way, {how}\n")
    print("| process | MB at the beginning, half, end | threads at the end | MB a 1,000 calls |")
    print("| --- | --- | --- | --- |")
    for kind in KINDS:
        seen = np.array([(number, *sizes[kind]) for number, _, sizes in points if kind in sizes])
        late = seen[seen[:, 0] >= arguments.calls / 2]
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1000
        at = ", ".join(f"{point[1]:.0f}" for point in (seen[0], late[0], late[-1]))
        print(f"| {kind} | {at} | {late[-1, 2]:.0f} | {slope:+.2f} |")
    if arguments.count:
        for name, before, after in zip(("server's job", "site's job"), *counts, strict=True):
            more = {what: after[what] - before.get(what, 0) for what in after}
            rows = sorted(more, key=lambda what: -abs(more[what]))[:12]
            print(f"\n{name}, more in the second half: " + ", ".join(f"{what} {more[what]:+,}" for what in rows))


if __name__ == "__main__":
    main()
