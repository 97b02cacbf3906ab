"""The two components of the FLARE job, on the server's site and on each client's. FLARE's Collab API carries.

All that makes a federation is FLARE's: membership, certificates, authorisation, the life of the job, large messages.
Ours are a header (text) and a body (bytes as a uint8 tensor, which FLARE moves twice as fast as bytes).
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, final

import torch
from nvflare.collab import CollabCallError, collab
from torch import Tensor

from halfback.deploy.relay import Relay, WorkerLost
from halfback.deploy.serving import serve
from halfback.deploy.site import FILE, SiteConfig, read_site
from halfback.engines.frames import MAX_HEADER, Frame
from halfback.errors import HalfbackError
from halfback.wire.packing import MAX_BYTES

PROGRESS = "halfback"  # topic of the questions that `halfback deploy` asks a running job
_GRACE = 5.0  # seconds more for a call than for its question, so that the site's own word comes first

log = logging.getLogger(__name__)


class Site:
    """On a client's site: hands on what the server asks to the worker."""

    def __init__(self, trial: bool = False) -> None:
        """`trial`: do without the site's file; rows and model are the recipe's."""
        self.trial = trial
        self._relay: Relay | None = None
        self._refusal: str | None = None

    @collab.init
    def start(self) -> None:
        """Reads the site's file and starts the worker; a wrong file is what every question is answered with."""
        _quiet()
        local = Path(collab.workspace.get_site_config_dir())
        try:
            site = SiteConfig() if self.trial else read_site(local / FILE)
        except HalfbackError as error:
            self._refusal = str(error)
            log.error("%s", error)
            return
        self._relay = Relay(site, _folder(site, local))

    @collab.publish
    def exchange(self, header: str, body: Any, seconds: float) -> list[Any]:
        """One question, one answer: [header, body, None], or why there is none in the third place."""
        if self._relay is None:
            return ["", None, self._refusal or "the site is not ready"]
        asked = _read(header, body)
        del body
        try:
            answer = self._relay.exchange(asked, min(float(seconds), 1e6))
        except WorkerLost as error:
            return ["", None, str(error)]
        return [answer.header, _as_tensor(answer.body), None]

    @collab.publish
    def worker(self) -> int:
        """The process number of the worker, for those who look after the machine."""
        return 0 if self._relay is None else self._relay.pid

    @collab.final
    def stop(self) -> None:
        if self._relay is not None:
            self._relay.close()


@final
class FlareCarrier:
    """Asks the sites of a job by FLARE's calls. `seats`: client number → proxy of its site."""

    def __init__(self, seats: Mapping[int, Any]) -> None:
        self._seats = dict(seats)
        self._threads = ThreadPoolExecutor(max(len(seats), 1) * 2, thread_name_prefix="ask")

    def reachable(self) -> set[int]:
        return set(self._seats)

    def ask(self, questions: Mapping[int, Frame], seconds: float) -> Mapping[int, Frame | str]:
        calls = {self._threads.submit(self._one, n, question, seconds): n for n, question in questions.items()}
        return {calls[call]: call.result() for call in as_completed(calls)}

    def _one(self, number: int, question: Frame, seconds: float) -> Frame | str:
        proxy = self._seats[number](timeout=seconds + _GRACE)
        try:
            answer = proxy.exchange(question.header, _as_tensor(question.body), seconds)
        except CollabCallError as error:
            return str(error)
        if not isinstance(answer, list | tuple) or len(answer) != 3:
            return f"{type(answer).__name__} came, a header, a body and a reason are due"
        header, body, why = answer
        try:
            return str(why)[:2000] if why is not None else _read(header, body)
        except HalfbackError as error:
            return str(error)


class Server:
    """On the server's site: runs the run, begun or continued, and leaves its folder in the job's."""

    def __init__(self, name: str, config: dict[str, Any], trial: bool = False) -> None:
        """`name`: of the run's folder on this site; `config`: the resolved recipe; `trial`: as for `Site`."""
        self.name = name
        self.config = config
        self.trial = trial

    @collab.main
    def run(self) -> None:
        """The whole run; how it ended stands in its folder."""
        _quiet()
        workspace, engine = collab.workspace, collab.fl_ctx.get_engine()
        local = Path(workspace.get_site_config_dir())
        sites = {client.name: client for client in collab.clients}
        job = Path(workspace.get_run_dir(collab.fl_ctx.get_job_id()))
        serve(
            self.name,
            self.config,
            site=lambda: SiteConfig() if self.trial else read_site(local / FILE),
            folder=lambda site: _folder(site, local),
            sites=list(sites),
            carrier=lambda seats: FlareCarrier({number: sites[name] for number, name in seats.items()}),
            job=job,
            listen=lambda answer: engine.register_app_command(PROGRESS, _command, answer),
        )


def _command(topic: str, data: Any, fl_ctx: Any, answer: Any) -> dict[str, Any]:
    found = answer(data if isinstance(data, dict) else {})
    return found if isinstance(found, dict) else {}


def _folder(site: SiteConfig, local: Path) -> Path:
    return Path(site.folder) if site.folder is not None else local.parent / "halfback"


def _as_tensor(data: bytes) -> Tensor | None:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else None


def _read(header: Any, body: Any) -> Frame:
    """A frame, of what any peer may have sent.

    Raises:
        HalfbackError: it is none, or larger than allowed.
    """
    if not isinstance(header, str) or len(header) > MAX_HEADER:
        raise HalfbackError(f"header: text of at most {MAX_HEADER} characters is allowed")
    if body is None:
        return Frame(header)
    if not isinstance(body, Tensor) or body.dtype != torch.uint8 or body.ndim != 1 or len(body) > MAX_BYTES:
        raise HalfbackError(f"body: a tensor of at most {MAX_BYTES} bytes is allowed")
    return Frame(header, body.numpy().tobytes())


def _quiet() -> None:
    """FLARE writes several lines of log for each call, and a run has thousands."""
    for name in ("CellDispatcher", "Group"):
        logging.getLogger(name).setLevel(logging.WARNING)
