"""The server's side of a deployed run: its folder, who sits where, how it goes, and how it ended."""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from halfback import config as configuration
from halfback import json_reading
from halfback.assembly import Built
from halfback.assembly.remote import remote_server
from halfback.config.yaml_reading import check_plain
from halfback.deploy.folder import ENDED, EVENTS, GATEWAYS, SEATS, copy_run, make_folder
from halfback.deploy.here import at_server
from halfback.deploy.seats import Place, seated
from halfback.deploy.site import SiteConfig
from halfback.engine import attendance
from halfback.engine.remote.frames import Evaluation, Frame, Longest
from halfback.engine.remote.presence import Came, Carrier, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.errors import HalfbackError, RowError, UserError
from halfback.runs import execution
from halfback.runs.folder import COHORTS, check_config
from halfback.runs.locks import alone
from halfback.runs.opening import Caller
from halfback.runs.told import RunState
from halfback.telemetry.records import RECORDS, replace_text, writing

RUN = "run"
_PRIVATE = "what is wrong may quote a row of the server's site; its own log says it"
_LEAVES, _LOOKS = 60.0, 0.2  # seconds that an earlier process has to leave a run's folder, and between two looks

log = logging.getLogger(__name__)


def lines_from(path: Path, first: object) -> list[str]:
    """The whole lines of a file from number `first` on; none where there is no file, UserError where it is no text."""
    lines = json_reading.text_of(path).split("\n")[:-1] if path.exists() else []
    return lines[first if isinstance(first, int) and first >= 0 else 0 :]


class Sites(Carrier, Protocol):
    """A carrier to sites, some of which may be gateways."""

    def counts(self) -> Mapping[str, Mapping[str, float]]:
        """What each gateway has counted since the job began, by the name of its site."""
        ...

    def silent(self) -> set[str]:
        """Sites that didn't reply when they were looked at last, whoever may be at their places."""
        ...


class Stopped(HalfbackError):
    """Somebody asked the run to stop after its last checkpoint, to be begun again with others."""


class Serving:
    """A run on the server's site while it goes: what it tells, and what it is told."""

    def __init__(self, folder: Path, sites: Mapping[str, int], clients: int) -> None:
        """`sites`: those that are here, and how many clients each may be."""
        self.folder = folder
        self._lock = threading.Lock()
        self._stop = False
        self._step = 0
        self._line = ""
        self.counts: Callable[[], Mapping[str, Mapping[str, float]]] = dict  # of gateways, by their sites
        self.seats = seated(folder / SEATS, sites, clients)
        self.away: dict[int, str] = {}
        self.silent: Callable[[], set[str]] = set
        self.evaluation: Evaluation | None = None  # the last one

    def event(self, what: dict[str, Any]) -> None:
        """Something happened to a client, or to the run."""
        number = what.get("client")
        named = what | ({"site": self._site(number)} if number is not None else {})
        with self._lock:
            if what["event"] in ("took part", "went back"):
                self._attended(what)
            if what["event"] == "took part":
                return
            if number is not None:
                if what["event"] in ("joined", "returned"):
                    self.away.pop(number, None)
                elif what["event"] in ("dropped", "expelled"):
                    self.away[number] = what["why"]
            with writing(self.folder / EVENTS), (self.folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(named) + "\n")
        log.info("%s", named)

    def _attended(self, what: Mapping[str, Any]) -> None:
        """Keeps who took part in each round: what a run's bits follow from, by which it can be repeated."""
        path, number = self.folder / COHORTS, what["round"]
        with writing(path):
            if what["event"] == "went back" or number == 0:
                attendance.keep(path, number)
            if what["event"] == "took part":
                attendance.add(path, attendance.Attended(number, tuple(what["cohort"]), what["left"]))

    def _site(self, number: Any) -> str:
        """Of a client, and which of its devices it is where that site is a gateway."""
        place = self.seats.here.get(number)
        return "?" if place is None else str(place) if self.seats.is_gateway(place.site) else place.site

    def on_round(self, state: RunState) -> None:
        """Keeps what there is to tell of a round; who was asked to stop does so as the next one begins."""
        self._step, self._line = state.step, state.record.to_json()
        if state.metric is not None:
            for site, counts in self.counts().items():
                line = json.dumps({"round": state.record.round, "site": site, **counts})
                with writing(self.folder / GATEWAYS), (self.folder / GATEWAYS).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")

    def on_evaluation(self, state: RunState) -> None:
        """Keeps what clients are told of an evaluation."""
        loss = state.record.validation_loss
        assert loss is not None, "it is of an evaluation"
        accuracy = state.metric if state.metric_name == "accuracy" else None
        self.evaluation = Evaluation(step=state.step, loss=loss, accuracy=accuracy)

    def heed(self) -> None:
        """Stops where it was asked to; Stopped is what ends the run."""
        if self._stop:
            raise Stopped(f"asked to stop at step {self._step}")

    def reply(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What `halfback deploy` wants to know; `stop`: end after this round. Plain values alone."""
        if asked.get("stop") is True:
            self._stop = True
        events = [json.loads(line) for line in lines_from(self.folder / EVENTS, asked.get("events"))]
        # Devices come and go within a job; a site that was away can't enter one that runs.
        away = [self._site(number) for number in self.away if number in self.seats.alone]
        away += [name for name in self.silent() if self.seats.is_gateway(name)]
        return {
            "step": self._step,
            "record": self._line,
            "records": lines_from(self.folder / RECORDS, asked.get("records"))[:100],
            "events": events[:100],
            "away": away,
            "sites": sorted({place.site for place in self.seats.here.values()}),
            "known": self.seats.known,
            "free": self.seats.free,
        }


@dataclass(frozen=True)
class _Heeding:
    """A carrier for a run that may be asked to stop also while it waits for clients."""

    carrier: Carrier
    serving: Serving

    def reachable(self) -> set[int]:
        self.serving.heed()
        return self.carrier.reachable()

    def is_there(self, client: int) -> bool:
        return self.carrier.is_there(client)

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        return self.carrier.ask(questions, seconds, longest)


@dataclass(frozen=True)
class Surroundings:
    """What a run finds around it on the server's site: FLARE's job there, or what stands in for one.

    site: reads the site's file. folder: where a site with such a file keeps what is halfback's.
    sites: the names of the clients' sites that are here, and how many clients each may be.
    carrier: what reaches them, by each client's number and place.
    job: a folder that goes to whoever submitted the run.
    listen: takes what answers the questions of `halfback deploy` from here on.
    """

    site: Callable[[], SiteConfig]
    folder: Callable[[SiteConfig], Path]
    sites: Callable[[], Mapping[str, int]]
    carrier: Callable[[Mapping[int, Place]], Sites]
    job: Path
    listen: Callable[[Callable[[Mapping[str, Any]], dict[str, Any]]], None]


def serve(name: object, tree: object, around: Surroundings) -> None:
    """Runs or continues the run `name`, and copies to the job what it hands out, with a word on how it ended.

    name, tree: whatever a job has brought as the run's name and its settings.
    """
    out: Path | None = None
    own = SiteConfig()
    try:
        own = around.site()
        if not isinstance(tree, dict):
            raise UserError("the job holds no settings of a run, or not as `halfback deploy` seals them")
        check_plain(tree, "the job's settings")
        config = at_server(configuration.from_tree(tree, {}), own)
        place = make_folder(around.folder(own) / "runs", name)
        check_config(config, place, other="run", cure="give this one another --name")
        out = place  # from here on it is this run's, and what it holds is for whoever submitted it
        with _alone_soon(out):
            (out / ENDED).unlink(missing_ok=True)
            serving = Serving(out, around.sites(), config.clients)
            around.listen(serving.reply)

            def engine(built: Built) -> RemoteServer:
                sites, asked = around.carrier(serving.seats.here), built.config.deployment
                serving.counts, serving.silent = sites.counts, sites.silent
                carrier = _Heeding(sites, serving)
                terms = Terms(asked.deadline, asked.min_cohort, asked.patience, asked.spare, asked.pace)
                server = remote_server(built, tree, carrier, _run_token(place), terms, serving.event)
                server.evaluation = lambda: serving.evaluation
                return server

            told = Caller(on_round=serving.on_round, on_evaluation=serving.on_evaluation, engine=engine)
            execution.run_deployed(config, place, told)
            ended = {"how": "finished", "why": ""}
    except Stopped as error:
        ended = {"how": "stopped", "why": str(error)}
    except HalfbackError as error:
        log.error("%s", error)
        is_private = isinstance(error, RowError) and own.data is not None
        ended = {"how": "failed", "why": _PRIVATE if is_private else str(error)}
    left = around.job / RUN
    left.mkdir(parents=True, exist_ok=True)
    try:
        if out is not None and out.is_dir():
            copy_run(out, left)
    except OSError as error:  # on a full disk the word on how it ended may still find a place
        why = ": ".join(filter(None, [ended["why"], f"{out} can't be copied for the one who submitted it"]))
        log.error("%s: %s", why, error)
        ended = {"how": "failed", "why": why}
    (left / ENDED).write_text(json.dumps(ended))


@contextmanager
def _alone_soon(out: Path) -> Iterator[None]:
    """`alone`, once the process of the job before this one, which FLARE may still be ending, has left the folder."""
    until = time.monotonic() + _LEAVES
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(alone(out))
                break
            except UserError:
                if time.monotonic() > until:
                    raise
                time.sleep(_LOOKS)
        yield


def _run_token(out: Path) -> str:
    """What tells this run from others on the sites' disks."""
    path = out / "token"
    if not path.exists():
        replace_text(path, secrets.token_hex(8))
    return path.read_text()
