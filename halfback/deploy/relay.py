"""Hands questions on to the worker process of a site, and starts it again when it is gone."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import final

from halfback.deploy import device
from halfback.deploy.site import SiteConfig
from halfback.engine.remote.frames import Frame, Longest, Ready, read_reply
from halfback.engine.remote.stream import Gone, read_frame, write_frame
from halfback.wire.packing import MAX_BYTES

log = logging.getLogger(__name__)

_READY = '{"kind":"ready"'  # how a header begins that says what the worker takes


class WorkerLost(Exception):
    """The worker died, or did not reply in time; another one is on its way."""


@final
class Relay:
    """One worker, one question at a time."""

    def __init__(self, site: SiteConfig, folder: Path, *, worker: str = "halfback.deploy.worker") -> None:
        """`folder`: where the worker keeps its states; `worker`: the module that does so with PyTorch.

        Raises:
            UserError: the site's file and its device package don't go together.
        """
        if site.runtime == "device":
            self._command, own = device.command_of(site), device.arguments_of(site)
        else:
            self._command, own = [sys.executable, "-m", worker], {"site": site.model_dump()}
        self._arguments = own | {"folder": str(folder)}
        self._one_at_a_time = threading.Lock()
        self.longest = Longest(0)  # question that the worker takes, as it says itself when it is ready
        self._late = False  # a reply to an earlier question is still to come
        self._closed = False
        self._start()

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    def _start(self) -> None:
        self._line, far = socket.socketpair()
        with far:
            arguments = json.dumps(self._arguments | {"descriptor": far.fileno()})
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen([*self._command, arguments], pass_fds=[far.fileno()], env=environment)
        self._late, self.longest = False, Longest(0)
        log.info("worker %d started", self._process.pid)

    def exchange(self, asked: Frame, seconds: float) -> Frame:
        """The worker's reply.

        Raises:
            PeerError: the question is longer than the worker takes.
            WorkerLost: it died, or needs longer than so many seconds; if it is silent for two questions, it is killed.
        """
        self.longest.check(len(asked.header), len(asked.body))
        until = time.monotonic() + seconds
        if not self._one_at_a_time.acquire(timeout=seconds):
            raise WorkerLost(f"the worker is busy with an earlier question for over {seconds:g} s")
        try:
            if self._closed:
                raise WorkerLost("the site is closing")
            if self._late:
                self._read(until)  # nobody waits for this one any more
            write_frame(self._line, asked)
            return self._read(until)
        except Gone:
            raise WorkerLost(f"the worker died ({self._restarted()})") from None
        except TimeoutError:
            if self._late:
                raise WorkerLost(f"the worker was silent for two questions ({self._restarted()})") from None
            self._late = True
            raise WorkerLost(f"the worker needs longer than {seconds:g} s") from None
        finally:
            self._one_at_a_time.release()

    def _read(self, until: float) -> Frame:
        self._line.settimeout(max(until - time.monotonic(), 0.001))
        try:
            reply = read_frame(self._line, Longest(MAX_BYTES))  # the site's own process
        finally:
            self._line.settimeout(None)
        self._late = False
        if reply.header.startswith(_READY) and isinstance(said := read_reply(reply.header), Ready):
            self.longest = Longest(said.takes)
        return reply

    def _restarted(self) -> str:
        """Starts another worker; how the last one ended."""
        self._process.kill()
        status = self._process.wait()
        self._line.close()
        log.warning("worker %d ended with status %d", self._process.pid, status)
        if not self._closed:
            self._start()
        return f"status {status}"

    def close(self) -> None:
        """Ends the worker; whoever waits for its reply hears that it is gone."""
        self._closed = True
        self._process.kill()
        self._process.wait()
