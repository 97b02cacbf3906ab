"""A raw WebSocket over TLS, beside which `gateway_transport.py` stands: two processes, told what to do by lines.

    python benchmarks/raw_websocket.py server|client CERTIFICATE KEY AUTHORITY PORT

`websockets` as it comes, without compression or a limit. The client answers each line with the seconds that so many
bytes took there and back.
"""

import asyncio
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from subprocess import PIPE, Popen

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve


async def _echo(line: ServerConnection) -> None:
    async for message in line:
        await line.send(message)


async def serving(certificate: str, key: str, authority: str, port: int) -> None:
    """Until its input ends."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with serve(_echo, "localhost", port, ssl=context, compression=None, max_size=None):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def asking(certificate: str, key: str, authority: str, port: int) -> None:
    """One echo for each line of input: so many bytes there and back."""
    context = ssl.create_default_context(cafile=authority)
    address = f"wss://localhost:{port}"
    async with connect(address, ssl=context, compression=None, max_size=None, ping_interval=None) as line:
        bodies: dict[int, bytes] = {}
        print("ready", flush=True)
        while told := await asyncio.to_thread(sys.stdin.readline):
            size = int(told)
            body = bodies.setdefault(size, bytes(size))
            begun = time.perf_counter()
            await line.send(body)
            came = await line.recv()
            print(time.perf_counter() - begun, flush=True)
            assert len(came) == size


@contextmanager
def client(certificate: str, key: str, authority: str, port: int) -> Iterator["Popen[str]"]:
    """The process of a client that is connected to a server."""
    with ExitStack() as stack:
        for role in ("server", "client"):
            command = [sys.executable, __file__, role, certificate, key, authority, str(port)]
            process = stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield process


def echo(process: "Popen[str]", size: int) -> float:
    """Seconds of so many bytes there and back."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


if __name__ == "__main__":
    work = {"server": serving, "client": asking}[sys.argv[1]]
    asyncio.run(work(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
