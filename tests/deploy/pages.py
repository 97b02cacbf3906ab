"""Devices of web/ under Node: what a page's worker runs, with a WebSocket and a database as a browser has them."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfback.testing.web import built


class Page:
    """A device of web/ in a process of its own.

    Attributes:
        events: all that it has told, in order.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()

    def told(self, kind: str) -> list[dict[str, Any]]:
        """All events of a kind."""
        return [event for event in self.events if event["type"] == kind]

    def wait(self, kind: str, seconds: float = 60.0, **wanted: Any) -> dict[str, Any]:
        """The first event of a kind with these values."""

        def found() -> dict[str, Any] | None:
            return next((e for e in self.told(kind) if wanted.items() <= e.items()), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, seconds), self.events[-5:]
        event = found()
        assert event is not None
        return event

    def order(self, order: str) -> None:
        """Tells it what a page may, as in web/test/device/node_client.ts."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Where its θ is, when it has left."""
        if self._process.poll() is None and not self.told("theta"):
            self.order("leave")
        return self.wait("theta")


@contextmanager
def opened(url: str, token: str, rows: Mapping[str, Any], authority: Path) -> Iterator[Page]:
    """A page that joins; `authority`: PEM of the one that the gateway's certificate is from."""
    terms = json.dumps({"url": url, "token": token, "rows": rows})
    environment = os.environ | {"NODE_EXTRA_CA_CERTS": str(authority)}
    command = ["node", str(built("node_client")), terms]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Page(process)
        finally:
            process.kill()
