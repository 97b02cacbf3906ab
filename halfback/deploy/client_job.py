"""The component of the FLARE job on a client's site: hands questions on to the worker. It loads nothing of training."""

import logging
from pathlib import Path
from typing import Any

from nvflare.collab import collab

from halfback.deploy.flare import SERVER, as_body, be_quiet, folder_of, read
from halfback.deploy.relay import Relay, WorkerLost
from halfback.deploy.site import FILE, read_site
from halfback.errors import HalfbackError, PeerError

log = logging.getLogger(__name__)


class Site:
    """On a client's site: hands on what the server asks to the worker."""

    def __init__(self) -> None:
        """No arguments: they would be the job's, and a job has no say in what a site does."""
        self._relay: Relay | None = None
        self._refusal: str | None = None

    @collab.init
    def start(self) -> None:
        """Reads the site's file and starts the worker; with a wrong file, every question gets what is wrong with it."""
        be_quiet()
        local = Path(collab.workspace.get_site_config_dir())
        try:
            site = read_site(local / FILE)
        except HalfbackError as error:
            self._refusal = str(error)
            log.error("%s", error)
            return
        self._relay = Relay(site, folder_of(site, local))

    @collab.publish
    def exchange(self, header: str, body: Any, seconds: float) -> list[Any]:
        """One question, one reply: [header, body, None], or why there is none in the third place."""
        if collab.caller != SERVER:  # FLARE lets every site of a job call every other
            return ["", b"", f"questions come from the server, not from {collab.caller}"]
        if self._relay is None:
            return ["", b"", self._refusal or "the site is not ready"]
        try:
            asked = read(header, body, self._relay.longest)
            del body
            reply = self._relay.exchange(asked, min(float(seconds), 1e6))
        except (WorkerLost, PeerError) as error:
            return ["", b"", str(error)]
        return [reply.header, as_body(reply.body), None]

    @collab.publish
    def worker(self) -> int:
        """The process number of the worker, for those who look after the machine."""
        return 0 if self._relay is None else self._relay.pid

    @collab.final
    def stop(self) -> None:
        if self._relay is not None:
            self._relay.close()
