"""The process that does a client's work: it replies to the questions that its site's FLARE process hands on.

It is a process of its own so that one that is killed, by the system or by anyone, takes nothing else with it: the site
starts it again, and it goes on from the state on its disk.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from halfback import config as configuration
from halfback.assembly import build_client, clear_scratch
from halfback.assembly.sources import Seat
from halfback.config.yaml_reading import check_plain
from halfback.deploy.here import at_client
from halfback.deploy.site import SiteConfig
from halfback.engine.client_side import ClientSide
from halfback.engine.remote.client import RemoteClient, refused, takes
from halfback.engine.remote.frames import Frame, Longest, Prepare, Ready, frame, read_question
from halfback.engine.remote.stream import Gone, read_frame, write_frame
from halfback.engine.remote.weights import digest_of, take_weights
from halfback.errors import HalfbackError, PeerError, RowError, UserError

log = logging.getLogger(__name__)


class Worker:
    """A client's part of one run at a time."""

    def __init__(self, site: SiteConfig, folder: Path) -> None:
        self._site = site
        self._folder = folder
        self._order: Prepare | None = None
        self._side: ClientSide | None = None
        self.takes = 0
        """Bytes of the longest body that is read: none before the model is here, whose weights it may be."""
        self._about: Mapping[str, str] = {}
        self._client: RemoteClient | None = None

    def reply(self, asked: Frame) -> Frame:
        """Replies to one question, whatever came."""
        try:
            question = read_question(asked.header)
            if isinstance(question, Prepare):
                return self._prepare(question, asked.body)
            if self._client is None:
                raise PeerError("", question.kind, "prepare is due first")
            return self._client.reply(question, asked.body)
        except HalfbackError as error:
            return refused("peer" if isinstance(error, PeerError) else "user", error)
        except Exception as error:
            log.exception("a question could not be replied to")
            # Its text may quote a row; the log stays on this site.
            return refused("failed", RuntimeError(f"{type(error).__name__}; this site's log says more"))

    def _prepare(self, order: Prepare, weights: bytes) -> Frame:
        if self._order != order or self._side is None:
            self._order, self._side, self._client = None, None, None  # two models at once may be one too many
            self._side, self._order = self._built(order), order
        if weights:
            take_weights(self._side.held(), weights)
        if self._client is None:
            if digest_of(self._side.held()) != order.weights:
                return self._ready(order, fits=False)
            most = configuration.from_tree(order.config, {}).steps_per_round
            states = self._own(order) / "states"
            self._client = RemoteClient(self._side, states, most_steps=most, about=self._about)
        return self._ready(order, fits=True)

    def _ready(self, order: Prepare, *, fits: bool) -> Frame:
        assert self._side is not None
        self.takes = takes(self._side, begun=fits)
        return frame(Ready(fits=fits, takes=self.takes, rows=len(self._side.party.feed.data)))

    def _built(self, order: Prepare) -> ClientSide:
        check_plain(order.config, "Prepare.config")
        config = at_client(configuration.from_tree(order.config, {}), self._site)
        if order.client >= config.clients:
            raise PeerError("Prepare.client", order.client, f"0 to {config.clients - 1} are allowed", sender="server")
        seat = Seat(order.client, self._site.data is not None, order.label_names)
        clear_scratch(self._own(order))
        try:
            built = build_client(config, seat, scratch=self._own(order))
        except UserError as error:
            if not self._site.keep_labels and not isinstance(error, RowError):
                raise
            log.error("%s", error)
            raise UserError("what is wrong may quote a row or a label of this site; its own log says it") from None
        self._about = built.fingerprint
        return built.side

    def _own(self, order: Prepare) -> Path:
        folder = self._folder / order.run / f"client-{order.client}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"folder {folder} can't be made: {error.strerror}") from None
        return folder


def work(line: socket.socket, worker: Worker) -> None:
    """Replies until the other side is gone."""
    while True:
        try:
            asked = read_frame(line, Longest(worker.takes))  # longer ones the relay holds back
            write_frame(line, worker.reply(asked))
        except Gone:
            return


def main(arguments: dict[str, Any]) -> None:
    """`descriptor`: of the socket; `site`: what its file says; `folder`: where states are kept."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    site = SiteConfig.model_validate(arguments["site"])
    with socket.socket(fileno=arguments["descriptor"]) as line:
        work(line, Worker(site, Path(arguments["folder"])))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
