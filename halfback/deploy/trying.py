"""A gateway and its devices on this machine, to see a run with them before there are any: `halfback deploy --devices`.

The gateway is the one site of a federation of `poc`; each device is a process of `halfback-device join`, with a token,
a folder, and a file of the rows that are its client's in the recipe; or a tab of a browser, which somebody opens.
"""

import json
import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, final

from halfback.assembly import build
from halfback.config import RunConfig
from halfback.deploy.browsers import built_page
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


class Kinds(NamedTuple):
    """How many of a run's clients are processes of `halfback-device`, and how many tabs of a browser."""

    devices: int
    tabs: int


def check(config: RunConfig, kinds: Kinds) -> None:
    """Refuses a run that the devices of one gateway can't be the clients of.

    Raises:
        UserError: names the setting, or what is to be installed or built.
    """
    if kinds.tabs:
        built_page()
    check_package(config, "--browser" if kinds.tabs else "--devices")
    if len({config.model.cut_of(client) for client in range(config.clients)}) > 1:
        raise UserError("model.cut: the devices of a gateway have one package; give all clients one cut")


@final
class Devices:
    """The clients of a run as devices of one gateway, all that they need written into a folder.

    Attributes:
        files: what the file of the gateway's site says, by its name.
        processes: of the devices that are such.
        links: for each tab what to open in a browser, and the file of its rows.
    """

    def __init__(self, config: RunConfig, kinds: Kinds, folder: Path) -> None:
        """Makes the package, and shares out the rows; `folder` is made anew but for what devices have written down.

        Raises:
            UserError: something of the model can't be exported.
        """
        config = config.model_copy(update={"device": "cpu"})
        names = [f"device-{number}" for number in range(kinds.devices)] + [f"tab-{n}" for n in range(kinds.tabs)]
        owns = [folder / name for name in names]
        for own in owns:
            own.mkdir(parents=True, exist_ok=True)
        package, certificate, key = (folder / name for name in ("package", "certificate.pem", "key.pem"))
        tokens = folder / "tokens.json"
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir()
        tokens.unlink(missing_ok=True)
        write_certificate(certificate, key)
        built = build(config)
        packaged(built, package, None)
        rows = write_shares(built, owns)
        offer = Offer(package)
        self._digest, self._bytes = offer.digest, offer.bytes
        offer.close()
        port = _free_port()
        at = f"127.0.0.1:{port}"
        devices: dict[str, object] = {
            "listen": at,
            "certificate": str(certificate),
            "key": str(key),
            "tokens": str(tokens),
        }
        devices |= {"seats": config.clients, "page": kinds.tabs > 0}
        self.files = {SITE: json.dumps({"runtime": "device", "package": str(package), "devices": devices})}  # YAML too
        command = [sys.executable, NOT_FROM_HERE, "-m", "halfback_device", "join", f"wss://{at}"]
        self.processes: list[Beside] = []
        self.links: list[tuple[str, Path]] = []
        for own, words in zip(owns, rows, strict=True):
            token = add(tokens, config.clients, own.name)
            if len(self.processes) == kinds.devices:
                self.links.append((f"https://{at}/#{token}", Path(words[words.index("--data") + 1])))
                continue
            file = own / "token"
            file.touch(0o600)
            file.write_text(token)
            words = [*words, "--token-file", str(file), "--folder", str(own / "kept"), "--ca", str(certificate)]
            self.processes.append(Beside([*command, *words], str(own / "log"), port))
        self._folders, self._told = owns[: kinds.devices], set[Path]()
        self._logs = folder / "device-*" / "log"
        said = f"; what they say: {self._logs}" if kinds.devices else ""
        log.info("gateway %s: wss://%s for %d devices%s", SITE, at, len(rows), said)
        for link, file in self.links:
            log.info("open in a browser: %s and choose there: %s", link, file)
        if self.links:
            log.info("a browser warns of the certificate, which was made here a moment ago and is good for here alone")

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
