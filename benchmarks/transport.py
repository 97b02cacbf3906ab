"""Transport of a full step over FLARE: activations up, gradient down, slopes up, mean down, no computing.

    python benchmarks/transport.py [--bytes 12582912] [--clients 2] [--repeats 15] [--scheme http]

A federation of real processes on this machine, mutual TLS between them: our carrier in the server's job, our site and
its relay to a process of its own in each client's. Beside it, interleaved in the same run: the same bytes over raw
gRPC with the same certificates (one echo of the activations' size and one of the slopes', a process for each client),
FLARE's calls without our relay, our relay without FLARE, and packing alone. Prints medians.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import raw_grpc
import torch
from federation import ADMIN, permit, provision, running, submit
from nvflare.collab import collab

from halfback.deploy.calm import be_quiet
from halfback.deploy.client_job import Site
from halfback.deploy.flare import FlareCarrier
from halfback.deploy.job import CLASSES, allow
from halfback.deploy.relay import Relay
from halfback.deploy.seats import Place
from halfback.deploy.site import SiteConfig
from halfback.engine.remote.frames import Frame, Longest, Said, Say, frame
from halfback.wire.messages import CutGradient
from halfback.wire.packing import MAX_BYTES, pack, unpack

SERVER, PORT, SMALL = "localhost", 8102, 100  # bytes of a message of slopes
_TOKEN = "0" * 16
_LIMIT = 60.0  # seconds for one call
_REPLY = Said(lineage=_TOKEN, round=0, exchange=1)


def question(size: int) -> Frame:
    """What a server says with a message of so many bytes."""
    return frame(Say(lineage=_TOKEN, round=0, exchange=1), bytes(size))


class EchoSite(Site):
    """A site whose worker replies to a small message with a large one and the other way round."""

    def __init__(self, size: int, folder: str) -> None:
        super().__init__()
        self.size = size
        self.folder = folder

    @collab.init
    def start(self) -> None:
        """As a site does, with the other worker."""
        self._relay = echo_relay(self.size, self.folder)

    @collab.publish
    def bare(self, body: Any) -> Any:
        """The same without a relay."""
        return bytes(SMALL if len(body) > SMALL else self.size)


def echo_relay(size: int, folder: str) -> Relay:
    """A relay to a worker of this benchmark."""
    return Relay(SiteConfig(folder=str(size)), Path(folder), worker="echo_worker")


class Measuring:
    """The server's component: times one thing after another, again and again."""

    def __init__(self, kits: str, size: int, repeats: int, out: str) -> None:
        self.kits = kits
        self.size = size
        self.repeats = repeats
        self.out = out

    @collab.main
    def run(self) -> None:
        """Writes the seconds of each repeat to `out`."""
        be_quiet()
        kits, proxies = Path(self.kits), {client.name: client for client in collab.clients}
        carrier = FlareCarrier(proxies, {n: Place(name, 0) for n, name in enumerate(proxies)})
        pool = ThreadPoolExecutor(len(proxies))
        relays = [echo_relay(self.size, self.out) for _ in proxies]
        gradient = CutGradient(torch.zeros(self.size // 4))
        limits = dict.fromkeys(range(len(proxies)), _LIMIT)
        list(carrier.ask(dict.fromkeys(limits, question(0)), limits, Longest(0)))  # what the workers take
        for one in relays:
            one.exchange(question(0), _LIMIT)

        def ours(sizes: tuple[int, int]) -> None:
            for size in sizes:
                found = dict(carrier.ask(dict.fromkeys(limits, question(size)), limits, Longest(MAX_BYTES)))
                assert all(isinstance(reply, Frame) for reply in found.values()), found

        def bare() -> None:
            for body in (bytes(SMALL), bytes(self.size)):
                list(pool.map(lambda proxy: proxy(timeout=_LIMIT).bare(body), proxies.values()))  # noqa: B023

        def relay() -> None:
            for size in (SMALL, self.size):
                list(pool.map(lambda one: one.exchange(question(size), _LIMIT), relays))  # noqa: B023

        def packing() -> None:  # one client's; each of its two large messages is packed once and unpacked once
            for _ in range(2):
                unpack(pack(gradient).data)

        with raw_grpc.clients(kits / SERVER, [kits / name for name in proxies], PORT + 2) as processes:

            def raw() -> None:
                raw_grpc.echo(processes, self.size)
                raw_grpc.echo(processes, SMALL)

            parts: dict[str, Callable[[], None]] = {
                "raw": raw,
                "ours": lambda: ours((SMALL, self.size)),
                "bare": bare,
                "relay": relay,
                "packing": packing,
                "tiny": lambda: ours((1, 1)),  # replied to with small ones
            }
            seconds: dict[str, list[float]] = {name: [] for name in parts}
            for repeat in range(self.repeats + 2):
                for name, part in parts.items():
                    begun = time.perf_counter()
                    part()
                    if repeat > 1:  # warm
                        seconds[name].append(time.perf_counter() - begun)
        for one in relays:
            one.close()
        unfinished = Path(self.out) / "unfinished"
        unfinished.write_text(json.dumps(seconds))
        unfinished.rename(Path(self.out) / "seconds.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=16 * 512 * 384 * 4)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--scheme", default="http", choices=["http", "grpc", "tcp"])
    parser.add_argument("--config", type=json.loads, default={}, help="variables of FLARE's, for a trial")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    sites = [f"site-{number}" for number in range(1, arguments.clients + 1)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kits = provision(place, SERVER, sites, PORT, arguments.scheme)
        for name in [SERVER, *sites]:
            allow(kits / name)
            permit(kits / name, ["transport.Measuring", "transport.EchoSite"])
        found = place / "seconds.json"
        with running(kits, SERVER, sites):
            server = {"kits": str(kits), "size": arguments.bytes, "repeats": arguments.repeats, "out": str(place)}
            client = {"size": arguments.bytes, "folder": str(place)}
            both = ("transport.Measuring", server), ("transport.EchoSite", client)
            job = write_job(place, *both, sites=len(sites), variables=arguments.config)
            submit(job, kits / ADMIN, len(sites), found)
        seconds = json.loads(found.read_text())
    show(seconds, arguments)


def write_job(place: Path, server: tuple[str, Any], client: tuple[str, Any], *, sites: int, variables: Any) -> Path:
    """A job as ours are, with other components: of each its class and its arguments. `variables`: of FLARE's."""
    at_server = {
        "workflows": [
            {"id": "controller", "path": CLASSES[0], "args": {"server_obj_id": "_server", "sync_task_timeout": 120}}
        ],
        "components": [{"id": "_server", "path": server[0], "args": server[1]}],
    }
    at_client = {
        "executors": [{"tasks": ["*"], "executor": {"path": CLASSES[1], "args": {"client_obj_id": "_client"}}}],
        "components": [{"id": "_client", "path": client[0], "args": client[1]}],
    }
    both: dict[str, Any] = {"format_version": 2, "task_data_filters": [], "task_result_filters": []} | variables
    meta = {"name": "bench", "resource_spec": {}, "min_clients": sites, "deploy_map": {"app": ["@ALL"]}}
    config = place / "job" / "app" / "config"
    config.mkdir(parents=True)
    (place / "job" / "meta.json").write_text(json.dumps(meta))
    (config / "config_fed_server.json").write_text(json.dumps(at_server | both))
    (config / "config_fed_client.json").write_text(json.dumps(at_client | both))
    return place / "job"


def show(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """The table."""
    names = {
        "raw": "raw gRPC, mutual TLS",
        "ours": "**a full step over FLARE, ours**",
        "bare": "FLARE's calls alone",
        "relay": "our relay to the worker alone",
        "packing": "packing and unpacking, one client's",
        "tiny": "two calls with small messages, ours",
    }
    print(f"{arguments.clients} clients, {arguments.bytes:,} bytes each way, scheme {arguments.scheme}")
    print("| what | s, median | ÷ raw gRPC, median (smallest–largest) |")
    print("| --- | --- | --- |")
    for name, label in names.items():
        ratios = [one / raw for one, raw in zip(seconds[name], seconds["raw"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"| {label} | {statistics.median(seconds[name]):.3f} | {spread} |")


if __name__ == "__main__":
    main()
