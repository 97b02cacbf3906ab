"""A gateway and its devices on this machine, to see a run with them before there are any: `halfback deploy --devices`.

The gateway is the one site of a federation of `poc`; each device is a process of `halfback-device join`, with a token,
a folder, and a file of the rows that are its client's in the recipe.
"""

import json
import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from halfback.assembly import build
from halfback.config import RunConfig
from halfback.deploy.certificate import write_certificate
from halfback.deploy.joining import Offer
from halfback.deploy.keeper import NOT_FROM_HERE, Beside
from halfback.deploy.tokens import add
from halfback.errors import UserError
from halfback.runs.package import check as check_package
from halfback.runs.package import packaged
from halfback.runs.shares import write_shares

SITE = "site-1"  # as `nvflare poc` calls the first

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Refuses a run that the devices of one gateway can't be the clients of.

    Raises:
        UserError: names the setting, or what is to be installed.
    """
    check_package(config, "--devices")
    if len({config.model.cut_of(client) for client in range(config.clients)}) > 1:
        raise UserError("model.cut: the devices of a gateway have one package; give all clients one cut")


@final
class Devices:
    """The clients of a run as devices of one gateway, all that they need written into a folder.

    Attributes:
        files: what the file of the gateway's site says, by its name.
        processes: of the devices.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """Makes the package, and shares out the rows; `folder` is made anew but for what devices have written down.

        Raises:
            UserError: something of the model can't be exported.
        """
        config = config.model_copy(update={"device": "cpu"})
        self._folders = [folder / f"device-{number}" for number in range(config.clients)]
        for own in self._folders:
            own.mkdir(parents=True, exist_ok=True)
        package, certificate, key = (folder / name for name in ("package", "certificate.pem", "key.pem"))
        tokens = folder / "tokens.json"
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir()
        tokens.unlink(missing_ok=True)
        write_certificate(certificate, key)
        built = build(config)
        packaged(built, package, None)
        rows = write_shares(built, self._folders)
        offer = Offer(package)
        self._digest, self._bytes = offer.digest, offer.bytes
        offer.close()
        port = _free_port()
        listen = f"127.0.0.1:{port}"
        devices = {"listen": listen, "certificate": str(certificate), "key": str(key), "tokens": str(tokens)}
        site = {"runtime": "device", "package": str(package), "devices": devices | {"seats": config.clients}}
        self.files = {SITE: json.dumps(site)}  # which is YAML too
        command = [sys.executable, NOT_FROM_HERE, "-m", "halfback_device", "join", f"wss://{listen}"]
        self.processes = []
        for own, words in zip(self._folders, rows, strict=True):
            token = own / "token"
            token.touch(0o600)
            token.write_text(add(tokens, config.clients, own.name))
            words = [*words, "--token-file", str(token), "--folder", str(own / "kept"), "--ca", str(certificate)]
            self.processes.append(Beside([*command, *words], str(own / "log"), port))
        self._told: set[Path] = set()
        self._logs = folder / "device-*" / "log"
        log.info("gateway %s: wss://%s for %d devices; what they say: %s", SITE, listen, len(rows), self._logs)

    def tell(self) -> None:
        """Says which devices have fetched the package since it was asked last."""
        for own in self._folders:
            if own not in self._told and (own / "kept" / "package" / self._digest).is_dir():
                self._told.add(own)
                log.info("%s has fetched the package, %.1f MB", own.name, self._bytes / 1e6)

    @contextmanager
    def named(self) -> Iterator[None]:
        """What goes wrong in the block may be told by the devices: the error says where."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{error}; what the devices say: {self._logs}") from None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
