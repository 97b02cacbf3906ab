"""The component of the FLARE job on a client's site: hands questions on to the worker, or to devices that connect here.

It loads nothing of training.
"""

import logging
from pathlib import Path
from typing import Any

from nvflare.collab import collab

from halfback.deploy.calm import be_quiet
from halfback.deploy.flare import SERVER, read
from halfback.deploy.gateway import Gateway, opened
from halfback.deploy.relay import Relay, WorkerLost
from halfback.deploy.site import FILE, folder_of, read_site, tokens_of
from halfback.engine.remote.frames import MAX_HEADER, Frame, Longest
from halfback.errors import HalfbackError, PeerError
from halfback.wire.packing import MAX_BYTES

log = logging.getLogger(__name__)


class Site:
    """On a client's site: hands on what the server asks to the worker, or to the device at a place."""

    def __init__(self) -> None:
        """No arguments: they would be the job's, and a job has no say in what a site does."""
        self._relay: Relay | None = None
        self._gateway: Gateway | None = None
        self._seats = 1
        self._refusal: str | None = None

    @collab.init
    def start(self) -> None:
        """Reads the site's file and starts the worker; with a wrong file, every question gets what is wrong with it."""
        be_quiet()
        local = Path(collab.workspace.get_site_config_dir())
        try:
            site = read_site(local / FILE)
            if site.devices is not None:
                self._gateway, self._seats = opened(site, tokens_of(site, local)), site.devices.seats
                return
        except HalfbackError as error:
            self._refusal = str(error)
            log.error("%s", error)
            return
        self._relay = Relay(site, folder_of(site, local))

    @collab.publish
    def exchange(self, header: str, body: Any, seconds: float, place: int, longest: list[int]) -> list[Any]:
        """One question, one reply: [header, body, None], or why there is none in the third place.

        `place`: 0, or which of a gateway's devices is asked. `longest`: bytes of the body and characters of the header
        that a reply may have.
        """
        if collab.caller != SERVER:  # FLARE lets every site of a job call every other
            return ["", b"", f"questions come from the server, not from {collab.caller}"]
        if type(place) is not int or not 0 <= place < self._seats:
            return ["", b"", f"place {place!r:.40}: 0 to {self._seats - 1} are allowed"]
        try:
            reply = self._asked(header, body, min(float(seconds), 1e6), place, _longest(longest))
        except (WorkerLost, PeerError) as error:
            return ["", b"", str(error)]
        return [reply.header, reply.body, None]

    def _asked(self, header: str, body: Any, seconds: float, place: int, longest: Longest) -> Frame:
        if self._gateway is not None:
            return self._gateway.exchange(place, read(header, body, self._gateway.longest(place)), seconds, longest)
        if self._relay is None:
            raise WorkerLost(self._refusal or "the site is not ready")
        return self._relay.exchange(read(header, body, self._relay.longest), seconds)

    @collab.publish
    def present(self) -> list[Any]:
        """How many clients this site may be, the places of those that could be asked now, and what a gateway counted.

        A site that takes no part says that its one client is there: whoever asks that one hears why.
        """
        if collab.caller != SERVER:
            return [1, [], {}]
        gateway = self._gateway
        return [1, [0], {}] if gateway is None else [self._seats, gateway.present(), gateway.counts()]

    @collab.publish
    def worker(self) -> int:
        """The process number of the worker, for those who look after the machine."""
        return 0 if self._relay is None else self._relay.pid

    @collab.final
    def stop(self) -> None:
        if self._relay is not None:
            self._relay.close()
        if self._gateway is not None:
            self._gateway.close()


def _longest(said: Any) -> Longest:
    """What the server says that a reply may have, which is a claim too."""
    body, header = said if isinstance(said, list | tuple) and len(said) == 2 else (None, None)
    if type(body) is not int or type(header) is not int or body < 0 or header < 0:
        raise PeerError("longest", f"{said!r:.40}", "bytes and characters are allowed")
    return Longest(min(body, MAX_BYTES), min(header, MAX_HEADER))
