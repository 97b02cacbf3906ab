"""A slow wire between two network namespaces of this machine, for whose kernel `tc netem` need not be built.

Each end is a TUN device in a namespace of its own; a process takes the IP packets of one and gives them to the other
when a line of so many bits a second and so much delay would have delivered them. TCP sees what it would see: the
bandwidth, the round trip, a queue of 0.4 s that drops what is too much. Needs root and Linux.
"""

import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEAR, FAR = "10.77.0.1", "10.77.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_QUEUE = 0.4  # seconds of line that wait in front of it
_READY = "ready"


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def carry(names: list[str], rate: float, delay: float, counts: Path) -> None:
    """Carries packets between the namespaces `names`, `rate` in bits a second and `delay` in seconds one way.

    Writes into `counts`, twice a second, the bytes that have gone each way.
    """
    descriptors = [_tun(name) for name in names]
    for name, own, other in zip(names, (NEAR, FAR), (FAR, NEAR), strict=True):
        _ip("link", "set", name, "netns", name)
        _ip("-n", name, "addr", "add", own, "peer", other, "dev", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", name, "up")
    print(_READY, flush=True)
    free, sent, told = [0.0, 0.0], [0, 0], 0.0  # when the line is free again, each way
    waiting: list[tuple[float, int, bytes]] = []
    number = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, order, packet = heapq.heappop(waiting)
            side = order % 2
            try:
                os.write(descriptors[1 - side], packet)
            except OSError:  # the device is full, or down: a packet is lost
                continue
            sent[side] += len(packet)
        if now - told > 0.5:
            unfinished = counts.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(sent))
            unfinished.rename(counts)
            told = now
        ready, _, _ = select.select(
            [*descriptors, sys.stdin], [], [], max(waiting[0][0] - now, 0.0) if waiting else 0.5
        )
        if sys.stdin in ready:  # closed: whoever wanted the wire is gone
            return
        now = time.monotonic()
        for side, descriptor in enumerate(descriptors):
            if descriptor not in ready:
                continue
            packet = os.read(descriptor, 65536)
            begins = max(free[side], now)
            if begins - now > _QUEUE:
                continue
            free[side] = begins + len(packet) * 8 / rate
            number += 2
            heapq.heappush(waiting, (free[side] + delay, number + side, packet))


@contextmanager
def slow_wire(names: tuple[str, str], hosts: str, *, rate: float, delay: float, counts: Path) -> Iterator[None]:
    """Two namespaces with the wire between them; `hosts`: a name that both know as the first one's address."""
    try:
        for name in names:
            _ip("netns", "add", name)
            own = Path("/etc/netns") / name
            own.mkdir(parents=True, exist_ok=True)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{NEAR} {hosts}\n")
        command = [sys.executable, __file__, json.dumps([names, rate, delay, str(counts)])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline().strip() != _READY:
                    raise RuntimeError("the wire did not start")
                yield
            finally:
                process.kill()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
            (Path("/etc/netns") / name / "hosts").unlink(missing_ok=True)
            if (Path("/etc/netns") / name).is_dir():
                (Path("/etc/netns") / name).rmdir()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    os.nice(-10)  # it is a wire, which nobody keeps waiting
    carry(given[0], given[1], given[2], Path(given[3]))
