"""A gateway's site in a process of its own, as FLARE has it; whoever holds its socket is the server.

Started by `gateway_crowd.py` and `gateway_attack.py`. It prints the port for devices when it listens.
"""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trustme
import yaml

_KEY = b"of this machine"


class Called:
    """What the server calls of a site; each call comes in a thread of its own."""

    def __init__(self, local: Path) -> None:
        """`local`: the folder of the site's file."""
        from halfback.deploy.client_job import Site

        self._local = local
        self._as_server()
        self.site, self.opened = Site(), Counter[int]()
        self.site.start()

    def _as_server(self) -> None:
        from nvflare.collab.api.context import set_call_context

        workspace = SimpleNamespace(get_site_config_dir=lambda: str(self._local))
        set_call_context(SimpleNamespace(workspace=workspace, caller="server"))  # type: ignore[arg-type]

    def exchange(self, header: str, body: Any, seconds: float, place: int, longest: list[int]) -> list[Any]:
        """As the site's; the rounds that each place began are counted."""
        self._as_server()
        if header.startswith('{"kind":"open"'):
            self.opened[place] += 1
        return self.site.exchange(header, body, seconds, place, longest)

    def present(self) -> list[Any]:
        """As the site's."""
        self._as_server()
        return self.site.present()

    def begun(self) -> dict[int, int]:
        """How many rounds each place began."""
        return dict(self.opened)


class _Manager(BaseManager):
    pass


class Proxy:
    """A site in another process, called as FLARE's proxies are."""

    def __init__(self, socket: Path) -> None:
        self._manager = _Manager(str(socket), _KEY)
        self._manager.connect()
        self._site: Any = self._manager.called()  # type: ignore[attr-defined]

    def __call__(self, timeout: float) -> Any:
        """The site; `timeout` is FLARE's, which stands between."""
        return self._site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._site, name)


_Manager.register("called", exposed=("exchange", "present", "begun"))


def certified(folder: Path) -> dict[str, str]:
    """What a site's file says of a certificate for this machine, which is made; its authority's is in ca.pem."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "certificate.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}


@contextmanager
def gateway(folder: Path, package: Path, seats: int) -> Iterator[tuple[Proxy, int, int]]:
    """A gateway below a folder: what calls it, its port, its process number. What it says is in gateway.log there."""
    (folder / "local").mkdir(parents=True)
    devices = {"listen": "127.0.0.1:0", "seats": seats, "tokens": str(folder / "tokens.json")} | certified(folder)
    told = {"runtime": "device", "package": str(package), "devices": devices}
    (folder / "local" / "halfback.yaml").write_text(yaml.safe_dump(told))
    command = [sys.executable, __file__, str(folder)]
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Proxy(folder / "calls"), port, process.pid
    finally:
        assert process.stdin is not None
        process.stdin.close()  # by which it knows that it is over
        process.wait(60)


def main(folder: Path) -> None:
    """Until its input ends."""
    called = Called(folder / "local")
    assert called.site._gateway is not None, called.site._refusal
    _Manager.register("called", callable=lambda: called, exposed=("exchange", "present", "begun"))
    server = _Manager(str(folder / "calls"), _KEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(called.site._gateway.port, flush=True)
    sys.stdin.read()
    called.site.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
