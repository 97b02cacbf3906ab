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
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from federation import ADMIN, permit, provision, running, submit
from nvflare.collab import collab

SERVER, PORT = "localhost", 8122
KINDS = {
    "server's job": "server.runner_process",
    "site's job": "client.worker_process",
    "FLARE server": "server.server_train",
    "FLARE client": "client.client_train",
}
_RUNTIME = ("nvflare.collab.runtime.controller.CollabController", "nvflare.collab.runtime.executor.CollabExecutor")


def resident(place: str) -> dict[str, float]:
    """MB by kind of process."""
    found: dict[str, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words, status = (entry / "cmdline").read_text(), (entry / "status").read_text()
        except OSError:
            continue
        for kind, word in KINDS.items():
            if word in words and place in words and "VmRSS" in status:
                found[kind] = max(found.get(kind, 0.0), int(status.split("VmRSS:")[1].split()[0]) / 1024)
    return found


def counted() -> dict[str, int]:
    """Objects of this process by type, and bytes that the C library has handed out."""
    gc.collect()
    found = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    counts = {"threads": threading.active_count(), "blocks of Python's allocator": sys.getallocatedblocks()}
    return dict(found) | counts | {"bytes handed out by malloc": _handed_out()}


class _Info(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split())


def _handed_out() -> int:
    function = ctypes.CDLL(None).mallinfo2
    function.restype = _Info
    return int(function().uordblks + function().hblkhd)


class Called:
    """The site's component."""

    @collab.publish
    def echo(self, body: bytes) -> bytes:
        return body

    @collab.publish
    def count(self) -> dict[str, int]:
        return counted()


class Calling:
    """The server's component."""

    def __init__(self, calls: int, size: int, out: str) -> None:
        self.calls = calls
        self.size = size
        self.out = out

    @collab.main
    def run(self) -> None:
        """Writes what it saw to `out`."""
        (site,) = collab.clients
        body, points, counts = bytes(self.size), [], []
        for number in range(self.calls + 1):
            if number % max(self.calls // 50, 1) == 0:
                points.append((number, resident(self.out)))
            if number in (self.calls // 2, self.calls):
                counts.append((counted(), site.count()))
            assert len(site.echo(body)) == self.size
        (Path(self.out) / "unfinished").write_text(json.dumps([points, counts]))
        (Path(self.out) / "unfinished").rename(Path(self.out) / "found.json")


def write_job(place: Path, arguments: argparse.Namespace) -> Path:
    """The three files of a job."""
    given = {"calls": arguments.calls, "size": arguments.bytes, "out": str(place)}
    server = {
        "workflows": [{"id": "controller", "path": _RUNTIME[0], "args": {"server_obj_id": "_server"}}],
        "components": [{"id": "_server", "path": "flare_growth.Calling", "args": given}],
    }
    client = {
        "executors": [{"tasks": ["*"], "executor": {"path": _RUNTIME[1], "args": {"client_obj_id": "_client"}}}],
        "components": [{"id": "_client", "path": "flare_growth.Called", "args": {}}],
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
            begun = time.monotonic()
            submit(write_job(place, arguments), kits / ADMIN, 1, found)
            minutes = (time.monotonic() - begun) / 60
        points, counts = json.loads(found.read_text())
    print("calls: MB of " + ", ".join(KINDS))
    for number, sizes in points[:: max(len(points) // 10, 1)]:
        print(f"{number}: " + ", ".join(f"{sizes.get(kind, 0):.0f}" for kind in KINDS))
    print(f"{arguments.calls} calls of {arguments.bytes} bytes each way, {minutes:.1f} minutes\n")
    print("| process | MB at the half | MB at the end | MB a 1,000 calls, fitted |\n| --- | --- | --- | --- |")
    late = [point for point in points if point[0] >= arguments.calls / 2]
    for kind in KINDS:
        sizes = np.array([(number, sizes[kind]) for number, sizes in late if kind in sizes])
        slope = np.polyfit(sizes[:, 0], sizes[:, 1], 1)[0] * 1000
        print(f"| {kind} | {sizes[0, 1]:.0f} | {sizes[-1, 1]:.0f} | {slope:+.2f} |")
    if arguments.count:
        for name, before, after in zip(("server's job", "site's job"), *counts, strict=True):
            more = {what: after[what] - before.get(what, 0) for what in after}
            rows = sorted(more, key=lambda what: -abs(more[what]))[:12]
            print(f"\n{name}, more in the second half: " + ", ".join(f"{what} {more[what]:+,}" for what in rows))


if __name__ == "__main__":
    main()
