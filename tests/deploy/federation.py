"""A provisioned FLARE federation of processes on this machine, on a port of its own."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import new_secure_session

PATIENCE = 120.0  # seconds for processes that start, on a busy machine
ADMIN, SERVER = "admin@halfback.test", "localhost"
_TRAIN = "nvflare.private.fed.app.{0}.{0}_train"
# FLARE's client looks at its own certificate before it says a word; an intruder's would not.
_UNCHECKED = f"""
import runpy
from nvflare.fuel.f3.cellnet import cell_cipher
cell_cipher.verify_cert_chain = lambda **_: None
runpy.run_module({_TRAIN.format("client")!r}, run_name="__main__", alter_sys=True)
"""


def free_port() -> int:
    """One of loopback that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Federation:
    """Its kits are in `kits`; what is started is stopped by `close`. Each process writes to `NAME.log` beside them."""

    def __init__(self, folder: Path, sites: list[str]) -> None:
        self.port = free_port()
        parts = [{"name": SERVER, "type": "server", "fed_learn_port": self.port, "admin_port": self.port}]
        parts += [{"name": name, "type": "client"} for name in sites]
        parts += [{"name": ADMIN, "type": "admin", "role": "project_admin"}]
        lighter = "nvflare.lighter.impl"
        project = {
            "api_version": 3,
            "name": "tried",
            "participants": [part | {"org": "halfback"} for part in parts],
            "builders": [
                {"path": f"{lighter}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
                # gRPC writes a line about each handshake that fails, FLARE's other transports nothing.
                {"path": f"{lighter}.static_file.StaticFileBuilder", "args": {"scheme": "grpc"}},
                {"path": f"{lighter}.cert.CertBuilder"},
                {"path": f"{lighter}.signature.SignatureBuilder"},
            ],
        }
        (folder / "project.yml").write_text(json.dumps(project))  # which is YAML too
        command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "made"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        self.folder = folder
        self.kits = folder / "made" / "tried" / "prod_00"
        # All servers of a machine keep their jobs in one folder else, and each runs the others'.
        stores = self.kits / SERVER / "local" / "resources.json.default"
        stores.write_text(stores.read_text().replace("/tmp/nvflare/", f"{folder}/"))
        self.state: dict[str, Any] = json.loads((folder / "made" / "tried" / "state" / "cert.json").read_text())
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # by the kit's name

    def start(self, name: str, kit: Path | None = None, *, unchecked: bool = False) -> None:
        """The server or a client, with its own kit or another."""
        kit = kit or self.kits / name
        kind = "server" if name == SERVER else "client"
        program = ["-c", _UNCHECKED] if unchecked else ["-m", _TRAIN.format(kind)]
        command = [sys.executable, "-u", *program, "-m", str(kit), "-s", f"fed_{kind}.json", "--set"]
        command += ["secure_train=true", "org=halfback", "config_folder=config", f"uid={name}"]
        with self.log(kit.name).open("w") as log:
            self._running[kit.name] = subprocess.Popen(command, cwd=kit, stdout=log, stderr=subprocess.STDOUT)

    def log(self, kit: str) -> Path:
        return self.folder / f"{kit}.log"

    def session(self) -> Any:
        return new_secure_session(ADMIN, str(self.kits / ADMIN), timeout=PATIENCE)

    def connected(self) -> list[str]:
        """The names of the sites that the server knows."""
        session = self.session()
        try:
            return sorted(client.name for client in session.get_connected_client_list())
        finally:
            session.close()

    def wait_for(self, sites: list[str]) -> None:
        until = time.monotonic() + PATIENCE
        while self.connected() != sites:
            assert time.monotonic() < until, self.log(SERVER).read_text()[-2000:]
            time.sleep(1)

    def stop(self, kit: str) -> None:
        process = self._running.pop(kit)
        process.kill()
        process.wait()

    def close(self) -> None:
        for kit in list(self._running):
            self.stop(kit)
