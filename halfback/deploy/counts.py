"""What a gateway counts, as Prometheus reads it, and the port of loopback where it does."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import final

_ABOUT = {
    "devices": ("gauge", "Devices that are connected and have said who they are."),
    "devices_at_work": ("gauge", "Devices that reply to questions."),
    "seats": ("gauge", "Places of this gateway."),
    "joined_total": ("counter", "Devices that came in with a good token."),
    "refused_total": ("counter", "Connections that did not come in, by why."),
    "page_total": ("counter", "Requests for the page, by the status that they got."),
    "closed_total": ("counter", "Connections of devices that the gateway closed, by their code."),
    "questions_total": ("counter", "Questions that were sent to devices."),
    "late_total": ("counter", "Questions without a reply in time."),
    "lost_total": ("counter", "Questions whose device was gone, or went before it replied."),
    "received_bytes_total": ("counter", "Bytes of devices' messages."),
    "sent_bytes_total": ("counter", "Bytes of messages to devices."),
    "reply_seconds_total": ("counter", "Seconds from questions to their replies, of those that came."),
}
_LONGEST = 8192  # bytes of a question for the counts
_PATIENCE = 5.0  # seconds for it
_OURS = re.compile(rb"\r\nHost:[ \t]*(127\.0\.0\.1|localhost)(:\d+)?[ \t]*\r\n", re.IGNORECASE)


@final
class Counts:
    """Numbers by name, and those that are told apart by name and kind."""

    def __init__(self, gauges: Callable[[], dict[str, int]]) -> None:
        """`gauges`: what holds now."""
        self._gauges = gauges
        self._counted: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, amount: float = 1, kind: str = "") -> None:
        """Counts; `kind`: why, or with what code, where the name has several."""
        self._counted[name, kind] += amount  # type: ignore[assignment]  # a Counter holds floats too

    def now(self) -> dict[str, float]:
        """All numbers: `name`, or `name:kind`."""
        found = {name: 0.0 for name in _ABOUT if not name.startswith(("refused", "page", "closed"))}
        found |= {":".join(filter(None, key)): float(value) for key, value in self._counted.items()}
        return found | {name: float(value) for name, value in self._gauges().items()}

    def text(self) -> str:
        """In Prometheus's text format."""
        found, lines = self.now(), []
        for name, (kind, about) in _ABOUT.items():
            lines += [f"# HELP halfback_gateway_{name} {about}", f"# TYPE halfback_gateway_{name} {kind}"]
            for key, value in found.items():
                own, _, label = key.partition(":")
                if own == name:
                    lines.append(f"halfback_gateway_{name}" + (f'{{kind="{label}"}}' if label else "") + f" {value:g}")
        return "\n".join(lines) + "\n"


async def tell(counts: Counts, port: int) -> asyncio.Server:
    """Answers requests on this port of loopback with the counts; OSError where the port is taken.

    Whoever asks names loopback: a page in a browser here, whose own name was turned to loopback, does not.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                is_ours = _OURS.search(await reader.readuntil(b"\r\n\r\n"))
                status, body = ("200 OK", counts.text().encode()) if is_ours else ("403 Forbidden", b"")
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n"
                )
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port, limit=_LONGEST)
