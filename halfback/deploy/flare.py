"""What the two components of the FLARE job share: calls by FLARE's Collab API, and what they carry.

All that makes a federation is FLARE's: membership, certificates, authorisation, the life of the job, large messages.
Ours are a header (text) and a body (bytes as a uint8 tensor, which FLARE moves twice as fast as bytes).
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, final

import torch
from nvflare.collab import CollabCallError
from torch import Tensor

from halfback.deploy.site import SiteConfig
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Came
from halfback.errors import PeerError, one_line

PROGRESS = "halfback"  # topic of the questions that `halfback deploy` asks a running job
SERVER = "server"  # who calls, in FLARE's words, where the job's server does
_SMALL = 1 << 20  # bytes; a tensor costs a transaction of its own, two round trips more; from here on bytes are slower
_GRACE = 5.0  # seconds more for a call than for its question, so that the site's own word comes first


@final
class FlareCarrier:
    """Asks the sites of a job by FLARE's calls. `seats`: client number → proxy of its site."""

    def __init__(self, seats: Mapping[int, Any]) -> None:
        self._seats = dict(seats)
        self._threads = ThreadPoolExecutor(max(len(seats), 1) * 2, thread_name_prefix="ask")

    def reachable(self) -> set[int]:
        return set(self._seats)

    def is_there(self, client: int) -> bool:
        try:
            return isinstance(self._seats[client](timeout=_GRACE).worker(), int)
        except CollabCallError:
            return False

    def ask(self, questions: Mapping[int, Frame], seconds: float, longest: Longest) -> Mapping[int, Came]:
        calls = {self._threads.submit(self._one, n, question, seconds, longest): n for n, question in questions.items()}
        return {calls[call]: call.result() for call in as_completed(calls)}

    def _one(self, number: int, question: Frame, seconds: float, longest: Longest) -> Came:
        proxy = self._seats[number](timeout=seconds + _GRACE)
        try:
            reply = proxy.exchange(question.header, as_body(question.body), seconds)
        except CollabCallError as error:
            return one_line(str(error)[:2000])  # it may quote the site's own words
        if not isinstance(reply, list | tuple) or len(reply) != 3:
            return PeerError("", type(reply).__name__, "a header, a body and a reason are due")
        header, body, why = reply
        try:
            return one_line(str(why)[:2000]) if why is not None else read(header, body, longest)
        except PeerError as error:
            return error


def folder_of(site: SiteConfig, local: Path) -> Path:
    return Path(site.folder) if site.folder is not None else local.parent / "halfback"


def as_body(data: bytes) -> Tensor | bytes:
    """Bytes as FLARE carries them best: small ones inside the call, large ones as a tensor, which it streams."""
    return data if len(data) < _SMALL else torch.frombuffer(bytearray(data), dtype=torch.uint8)


def read(header: Any, body: Any, longest: Longest) -> Frame:
    """A frame, of what any peer may have sent.

    Raises:
        PeerError: it is none, or longer than allowed.
    """
    is_bytes = isinstance(body, bytes) and len(body) < _SMALL
    is_tensor = isinstance(body, Tensor) and body.dtype == torch.uint8 and body.ndim == 1
    if not isinstance(header, str) or not (is_bytes or is_tensor):
        came = f"{type(header).__name__} and {type(body).__name__}"
        raise PeerError("frame", came, f"text and bytes are allowed, from {_SMALL} bytes on as a tensor")
    longest.check(len(header), len(body))
    return Frame(header, body if isinstance(body, bytes) else body.numpy().tobytes())


def be_quiet() -> None:
    """FLARE writes several lines of log for each call, and a run has thousands."""
    for name in ("CellDispatcher", "Group"):
        logging.getLogger(name).setLevel(logging.WARNING)
