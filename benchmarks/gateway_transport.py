"""Transport of a full step, device to server and back, through a gateway and FLARE; no computing.

    python benchmarks/gateway_transport.py [--bytes 12582912] [--repeats 25] [--scheme http]

A federation of real processes on this machine with mutual TLS: our carrier in the server's job, our gateway in the
site's, and a device's process that is connected to it by a WebSocket over TLS. A step is activations up, gradient down,
slopes up, mean down: two questions. Beside it, interleaved in the same run: the same bytes as echoes of a raw WebSocket
over TLS through one hop, FLARE's calls without the gateway, the gateway without FLARE, and two small questions. Prints
medians, and of their ratios the interval of 95 % that a bootstrap over repeats gives.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raw_websocket
import trustme
from federation import ADMIN, permit, provision, running, submit
from nvflare.collab import collab
from transport import SMALL, question, write_job

from halfback.deploy.calm import be_quiet
from halfback.deploy.client_job import Site
from halfback.deploy.door import Terms
from halfback.deploy.flare import FlareCarrier
from halfback.deploy.gateway import Gateway
from halfback.deploy.job import allow
from halfback.deploy.seats import Place
from halfback.deploy.tokens import add
from halfback.engine.remote.frames import Frame, Longest, Prepare, frame
from halfback.wire.packing import MAX_BYTES

HOST, PORT = "localhost", 8112
_LIMIT = 60.0  # seconds for one call
_ALL = Longest(MAX_BYTES)


class EchoGateway(Site):
    """A gateway's site with a device that replies to a small message with a large one and the other way round."""

    def __init__(self, size: int, folder: str) -> None:
        super().__init__()
        self.size = size
        self.folder = Path(folder)

    @collab.init
    def start(self) -> None:
        """As a gateway does, with its device on the same machine."""
        be_quiet()
        package = self.folder / "package"
        package.mkdir()
        (package / "manifest.json").write_text('{"files": {"none": {}}}')
        (package / "none").write_text("")
        tokens = self.folder / "tokens.json"
        token = add(tokens, 1)
        certificate, key = (self.folder / name for name in ("certificate.pem", "key.pem"))
        self._gateway, self._seats = Gateway(Terms("127.0.0.1", 0, certificate, key, 1), tokens, package), 1
        address = f"wss://{HOST}:{self._gateway.port}/halfback/1"
        command = [sys.executable, str(Path(__file__).parent / "echo_device.py"), address, token]
        self._device = subprocess.Popen([*command, str(self.folder / "authority.pem"), str(self.size)])
        while not self._gateway.present():
            time.sleep(0.1)

    @collab.publish
    def bare(self, body: Any) -> Any:
        """The same without a device."""
        return bytes(SMALL if len(body) > SMALL else self.size)

    @collab.publish
    def alone(self) -> float:
        """Seconds of a step between the gateway and its device."""
        assert self._gateway is not None
        begun = time.perf_counter()
        for size in (SMALL, self.size):
            self._gateway.exchange(0, question(size), _LIMIT, _ALL)
        return time.perf_counter() - begun

    @collab.final
    def stop(self) -> None:
        super().stop()
        self._device.kill()
        self._device.wait()


class Measuring:
    """The server's component: times one thing after another, again and again."""

    def __init__(self, size: int, repeats: int, out: str) -> None:
        self.size = size
        self.repeats = repeats
        self.out = out

    @collab.main
    def run(self) -> None:
        """Writes the seconds of each repeat to `out`."""
        be_quiet()
        out, (site,) = Path(self.out), collab.clients
        carrier = FlareCarrier({site.name: site}, {0: Place(site.name, 0)})
        carrier.reachable()

        def asked(*questions: Frame) -> None:
            for each in questions:
                found = dict(carrier.ask({0: each}, {0: _LIMIT}, _ALL))
                assert isinstance(found[0], Frame), found

        prepare = Prepare(run="0" * 16, client=0, config={}, label_names=(), weights="")
        asked(frame(prepare))  # the reply says what the device takes
        certificate, key = str(out / "certificate.pem"), str(out / "key.pem")
        with raw_websocket.client(certificate, key, str(out / "authority.pem"), PORT + 2) as process:

            def timed(what: Callable[[], None]) -> float:
                begun = time.perf_counter()
                what()
                return time.perf_counter() - begun

            def bare() -> None:
                for size in (SMALL, self.size):
                    site(timeout=_LIMIT).bare(bytes(size))

            parts: dict[str, Callable[[], float]] = {
                "raw": lambda: sum(raw_websocket.echo(process, size) for size in (self.size, SMALL)),
                "ours": lambda: timed(lambda: asked(question(SMALL), question(self.size))),
                "bare": lambda: timed(bare),
                "alone": lambda: site(timeout=_LIMIT).alone(),
                "tiny": lambda: timed(lambda: asked(question(1), question(1))),
            }
            seconds: dict[str, list[float]] = {name: [] for name in parts}
            for repeat in range(self.repeats + 2):
                for name, part in parts.items():
                    took = part()
                    if repeat > 1:  # warm
                        seconds[name].append(took)
        (out / "unfinished").write_text(json.dumps(seconds))
        (out / "unfinished").rename(out / "seconds.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=16 * 512 * 384 * 4)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--scheme", default="http", choices=["http", "grpc", "tcp"])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        authority = trustme.CA()
        issued = authority.issue_cert(HOST, "127.0.0.1")
        authority.cert_pem.write_to_path(str(place / "authority.pem"))
        issued.cert_chain_pems[0].write_to_path(str(place / "certificate.pem"))
        issued.private_key_pem.write_to_path(str(place / "key.pem"))
        kits = provision(place, HOST, ["site-1"], PORT, arguments.scheme)
        for name in (HOST, "site-1"):
            allow(kits / name)
            permit(kits / name, ["gateway_transport.Measuring", "gateway_transport.EchoGateway"])
        server = {"size": arguments.bytes, "repeats": arguments.repeats, "out": str(place)}
        client = {"size": arguments.bytes, "folder": str(place)}
        both = ("gateway_transport.Measuring", server), ("gateway_transport.EchoGateway", client)
        job, found = write_job(place, *both, sites=1, variables={}), place / "seconds.json"
        with running(kits, HOST, ["site-1"]):
            submit(job, kits / ADMIN, 1, found)
        show(json.loads(found.read_text()), arguments)


def show(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """The table."""
    names = {
        "raw": "raw WebSocket over TLS, one hop",
        "ours": "**a full step, device to server and back**",
        "bare": "FLARE's calls alone",
        "alone": "gateway and device alone",
        "tiny": "two questions of a byte each, ours",
    }
    print(f"{arguments.bytes:,} bytes each way, scheme {arguments.scheme}, {len(seconds['raw'])} repeats")
    print("| what | s, median | ÷ raw WebSocket (95 %) |\n| --- | --- | --- |")
    chance = random.Random(0)
    for name, label in names.items():
        pairs = list(zip(seconds[name], seconds["raw"], strict=True))
        drawn = sorted(_ratio(chance.choices(pairs, k=len(pairs))) for _ in range(2000))
        spread = f"{_ratio(pairs):.2f} ({drawn[50]:.2f} to {drawn[-51]:.2f})"
        print(f"| {label} | {statistics.median(seconds[name]):.4f} | {spread} |")


def _ratio(pairs: list[tuple[float, float]]) -> float:
    """Of the medians."""
    return statistics.median(one for one, _ in pairs) / statistics.median(raw for _, raw in pairs)


if __name__ == "__main__":
    main()
