"""What a gateway may meet: handshakes and frames that were made wrong, by a dice with a seed."""

import ctypes
import gc
import json
import os
import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tests.deploy.gateways import hello, packed

PIECES = (
    b"[" * 3000,
    b'{"a":' * 900,
    b"1" * 5000,
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"\0",
    b'"kind":1,',
    b"\xff\xfe",
    b"-0",
)
PATHS = (b"/", b"/assets/page-abc.js", b"/assets/../index.html", b"//", b"/%2e%2e/key.pem", b"/?", b"*", b"/halfback/2")
BESIDE = (b"Origin: null", b"If-None-Match: *", b'If-None-Match: ",,"', b"Range: bytes=0-", b"Cookie: a", b"Host: \xff")
VALUES = (None, True, -1, 2**63, 2**70, 1.5, "", "x" * 3000, "\ud800", [], {}, [[[]]], {"a": 1}, "hello", "../key.pem")
OPENING = (b"GET /halfback/1 HTTP/1.1", b"Host: localhost", b"Upgrade: websocket", b"Connection: Upgrade")
KEY, VERSION = b"Sec-WebSocket-Key: " + b"A" * 22 + b"==", b"Sec-WebSocket-Version: 13"
HEADERS = (
    *(
        b"Content-Length: 99999999999999999999",
        b"Content-Length: -1",
        b"Transfer-Encoding: chunked",
        b"X: " + b"x" * 9000,
    ),
    *(
        b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=8",
        b"Sec-WebSocket-Version: 8",
        b": ",
        b"X",
    ),
    *(
        b"Sec-WebSocket-Protocol: \x00",
        b"Origin: null",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"Authorization: Bearer",
        b" X: y",
    ),
    *(
        b"Authorization: Bearer hb1.00000000." + b"A" * 43,
        b"Host: \xff\xff",
        b"Cookie: " + b"a=b;" * 1500,
        b"Connection: close",
    ),
)


class Made(NamedTuple):
    """What a fuzzer did.

    Attributes:
        made: handshakes and frames that were sent, by kind.
        codes: with which the gateway closed connections, or the status with which it let none in.
        connections: that were made.
    """

    made: Counter[str]
    codes: Counter[int]
    connections: int


class Fuzz:
    """A fuzzer of one gateway; its attributes are those of `Made`."""

    def __init__(self, port: int, seed: int, tokens: list[str]) -> None:
        """`tokens`: that are good at the gateway on this port of loopback."""
        self.dice, self.tokens = random.Random(seed), tokens
        self.made, self.codes = Counter[str](), Counter[int]()
        self.connections = 0
        self._address = ("127.0.0.1", port)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._hello = self._client_hello()

    def _client_hello(self) -> bytes:
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            self._tls.wrap_bio(coming, going, server_hostname="localhost").do_handshake()
        return going.read()

    # Ways to send it.

    @contextmanager
    def _plain(self) -> Iterator[socket.socket]:
        self.connections += 1
        with socket.create_connection(self._address, timeout=10) as plain, suppress(ConnectionError, ssl.SSLError):
            yield plain

    @contextmanager
    def _secret(self) -> Iterator[ssl.SSLSocket]:
        with self._plain() as plain:
            yield self._tls.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=True)

    def _end(self, line: socket.socket) -> bytes:
        """Sends no more, and reads what comes until the gateway has closed, which it has ten seconds for."""
        with suppress(OSError):  # it has closed already
            socket.socket.shutdown(line, socket.SHUT_WR)  # TCP's, and no goodbye of TLS
        return self._read(line)

    def _read(self, line: socket.socket) -> bytes:
        came = b""
        while more := line.recv(1 << 16):
            came += more
        return came

    # Handshakes.

    def handshake(self) -> None:
        """One that is wrong somewhere, nearly always."""
        match self.dice.randrange(5):
            case 4:
                self.made["requests for the page"] += 1
                with self._secret() as line:
                    line.sendall(self._asking())
                    self._answered(self._read(line))
            case 0:
                self.made["what is no TLS"] += 1
                with self._plain() as line:
                    line.sendall(self.dice.choice((self.dice.randbytes(self.dice.randrange(1, 600)), self._opening())))
                    self._end(line)
            case 1:
                self.made["greetings of TLS"] += 1
                with self._plain() as line:
                    line.sendall(self._mangled(self._hello))
                    self._end(line)
            case _:
                self.made["requests"] += 1
                with self._secret() as line:
                    line.sendall(self._opening())
                    self._answered(self._end(line))

    def _answered(self, came: bytes) -> None:
        if came.startswith(b"HTTP/1.1 "):
            self.codes[int(came[9:12])] += 1

    def _asking(self) -> bytes:
        """A request that is whole, so it is answered."""
        method = self.dice.choice((b"GET", b"GET", b"HEAD", b"POST"))
        lines = [
            b" ".join((method, self.dice.choice(PATHS), b"HTTP/1.1")),
            *self.dice.choices(BESIDE, k=self.dice.randrange(4)),
        ]
        return b"\r\n".join((*lines, b"", b""))

    def _opening(self) -> bytes:
        dice = self.dice
        lines = [*OPENING, KEY, VERSION, b"Authorization: Bearer " + dice.choice(self.tokens).encode()]
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(lines))
            match dice.randrange(8):
                case 0:
                    del lines[at]
                    lines = lines or [b""]
                case 1:
                    lines.insert(at, lines[dice.randrange(len(lines))])
                case 2:
                    lines[at] = self._mangled(lines[at])
                case 3:
                    lines.insert(at, dice.choice(HEADERS))
                case 4:
                    lines[0] = b" ".join(
                        dice.choices((b"GET", b"POST", b"/", b"/halfback/1", b"HTTP/1.0", b"", b"\0"), k=3)
                    )
                case 5:
                    lines += [b"X: y"] * dice.choice((10, 200))
                case 6:
                    lines[at] = lines[at][: dice.randrange(len(lines[at]) + 1)] + b"z" * dice.choice((1, 9000))
                case _:
                    lines[at] = lines[at].replace(b": ", dice.choice((b":", b" : ", b"", b":\t", b": \xff")))
        end = dice.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"))
        return end.join(lines) + end * dice.choice((2, 2, 2, 1, 0)) + dice.choice((b"", b"", dice.randbytes(50)))

    def _mangled(self, data: bytes) -> bytes:
        dice, changed = self.dice, bytearray(data)
        match dice.randrange(4):
            case 0:
                for _ in range(dice.randint(1, 6)):
                    changed[dice.randrange(len(changed))] = dice.randrange(256)
            case 1:
                del changed[dice.randrange(len(changed)) :]
            case 2:
                at = dice.randrange(len(changed) + 1)
                changed[at:at] = dice.randbytes(dice.randint(1, 40))
            case _:
                at = dice.randrange(len(changed))
                del changed[at : at + dice.randint(1, 9)]
        return bytes(changed)

    # Messages.

    def visit(self) -> None:
        """A connection with a good token that says some wrong things, in one phase or another."""
        dice, token = self.dice, self.dice.choice(self.tokens)
        lines = [*OPENING, KEY, VERSION, b"Authorization: Bearer " + token.encode()]
        begin = [self._frame(packed(hello()))] if dice.random() < 0.7 else []
        if is_at_work := bool(begin) and dice.random() < 0.5:
            begin.append(self._frame(packed({"kind": "ready"})))
        asks = bool(begin) and not is_at_work
        frames = [frame for _ in range(dice.randint(0, 3)) for frame in self._odd(asks)] + [self._wrong()]
        with self._secret() as line:
            line.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
            came = line.recv(1 << 16) if dice.random() < 0.9 else b""  # a tenth doesn't wait until it is let in
            line.sendall(b"".join(begin))
            if is_at_work and dice.random() < 0.3:
                came += self._until_question(line)
            self.made["frames"] += len(frames)
            said = b"".join(frames)
            slowly = dice.choice((0, 0, 0, 0, 40))  # bytes that come one by one
            for at in range(slowly):
                line.sendall(said[at : at + 1])
            line.sendall(said[slowly:])
            if dice.random() < 0.5:
                line.sendall(self._frame(b"\x03\xe8", opcode=8))
            self._closed(came + self._end(line))

    def _until_question(self, line: socket.socket) -> bytes:
        line.settimeout(0.5)
        came = b""
        with suppress(TimeoutError):
            while b'"prepare"' not in came and (more := line.recv(1 << 16)):
                came += more
        line.settimeout(10)
        return came

    def _closed(self, came: bytes) -> None:
        """Notes the code with which the gateway closed, behind its answer and its frames."""
        at = came.find(b"\r\n\r\n") + 4
        while at + 4 <= len(came):
            first, size = came[at], came[at + 1]
            wide = {126: 2, 127: 8}.get(size, 0)
            begin = at + 2 + wide
            if first == 0x88:
                self.codes[int.from_bytes(came[begin : begin + 2], "big")] += 1
                return
            at = begin + (int.from_bytes(came[at + 2 : begin], "big") if wide else size)

    def _frame(
        self, body: bytes, *, opcode: int = 2, first: int = -1, masked: bool = True, wide: bool = False
    ) -> bytes:
        """A WebSocket frame of a client; `first`: its first byte, where it is to be another; `wide`: its length is."""
        size, mark = len(body), 0x80 if masked else 0
        head = bytes([first if first >= 0 else 0x80 | opcode])
        if size < 126 and not wide:
            head += bytes([mark | size])
        elif size < 1 << 16 and not wide:
            head += bytes([mark | 126]) + struct.pack(">H", size)
        else:
            head += bytes([mark | 127]) + struct.pack(">Q", size)
        if not masked:
            return head + body
        mask = self.dice.randbytes(4)
        whole = int.from_bytes(body, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        return head + mask + whole.to_bytes(size, "big")

    def _odd(self, asks: bool) -> list[bytes]:
        """Frames that are allowed, as nobody would send them; in fragments, where something may be asked for."""
        dice = self.dice
        whole = b""
        if asks:
            name = dice.choice(("weights.safetensors", "manifest.json"))
            offset = dice.randint(3_071_000, 3_071_999) if name.startswith("w") else dice.randrange(60)
            file, space = dice.choice(('"file"', r'"f\u0069le"')), " \n\t" * dice.randrange(100)
            keys = ['"kind": "piece"' + space, f'{file}: "{name}"', f'{space}"offset": {offset}']
            dice.shuffle(keys)
            whole = packed("{" + ", ".join(keys) + "}")
        ends = sorted(dice.randint(0, len(whole)) for _ in range(dice.randint(0, 6))) if whole else []
        parts = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)] if whole else []
        frames = []
        for number, part in enumerate(parts):
            first = (0 if number else 2) | (0x80 if number == len(parts) - 1 else 0)
            frames.append(self._frame(part, first=first, wide=dice.random() < 0.1))
            frames += [self._control() for _ in range(dice.choice((0, 0, 1)))]
        return frames or [self._control() for _ in range(dice.randint(1, 4))]

    def _control(self) -> bytes:
        return self._frame(self.dice.randbytes(self.dice.randrange(126)), opcode=self.dice.choice((9, 10)))

    def _wrong(self) -> bytes:
        """A frame or two, of which something is wrong, nearly always."""
        dice = self.dice
        match dice.randrange(12):
            case 0:
                return self._frame(dice.randbytes(dice.randrange(300)))
            case 1:  # reserved bits, opcodes that there are none of, no end
                return self._frame(self._message(), first=dice.randrange(256))
            case 2:
                return self._frame(self._message(), masked=False)
            case 3:  # lengths that are not the body's, or longer than they need be
                size = dice.choice((126, 127, 1 << 16, 1 << 30, 1 << 62, (1 << 64) - 1))
                return bytes([0x82, 0x80 | 127]) + struct.pack(">Q", size) + dice.randbytes(dice.randrange(60))
            case 4:  # control frames: long ones, in fragments, codes that there are none of
                body = struct.pack(">H", dice.choice((0, 999, 1000, 1005, 1006, 1015, 2999, 5000))) + dice.randbytes(3)
                return self._frame(
                    dice.choice((b"", b"\x03", body, bytes(126))), first=dice.choice((0x88, 0x08, 0x89, 0x09, 0x8A))
                )
            case 5:  # fragments: without a beginning, without an end, one within another, many empty ones
                parts = [self._frame(self._message(), first=dice.choice((0, 1, 2, 0x80, 0x81, 0x82))) for _ in range(3)]
                return b"".join(dice.choice((parts, [self._frame(b"", first=2), *[self._frame(b"", first=0)] * 200])))
            case 6:
                return self._frame(dice.choice((b"text", b"\xff\xfe", b"")), opcode=1)
            case 7:
                return self._frame(bytes(dice.choice((1 << 16, (1 << 16) + 5, 70_000))))
            case 8:
                return dice.randbytes(dice.randint(1, 80))
            case _:
                return self._frame(self._message())

    def _message(self) -> bytes:
        """A header and a body, of which something is wrong, nearly always."""
        dice = self.dice
        piece = {"kind": "piece", "file": "weights.safetensors", "offset": dice.choice((0, 1 << 20, 5, 1 << 40))}
        said = {"kind": "said", "lineage": "0" * 16, "round": 0, "exchange": 0}
        header = dict(
            dice.choice(
                (hello(), piece, {"kind": "ready"}, {"kind": "ready", "fits": True, "takes": 9, "rows": 1}, said)
            )
        )
        body = dice.randbytes(dice.choice((0, 0, 1, 500)))
        match dice.randrange(6):
            case 0:
                header[dice.choice(list(header))] = dice.choice(VALUES)
            case 1:
                header[dice.choice(("kind", "more", "", "file"))] = dice.choice(VALUES)
            case 2:
                del header[dice.choice(list(header))]
            case 3:
                text = json.dumps(header).encode()
                at = dice.randrange(len(text))
                text = text[:at] + dice.choice(PIECES) + text[at:]
                return struct.pack("<I", len(text) + dice.choice((0, 0, 1, -1))) + text + body
            case 4:
                return self._mangled(packed(header, body))
            case _:
                pass  # as it should be, out of turn perhaps
        return packed(header, body)


def fuzzed(port: int, seed: int, tokens: list[str], handshakes: int, frames: int) -> Made:
    """So many of each at the gateway on this port."""
    fuzz = Fuzz(port, seed, tokens)
    while handshakes > 0 or fuzz.made["frames"] < frames:
        if handshakes > 0:
            fuzz.handshake()
            handshakes -= 1
        if fuzz.made["frames"] < frames:
            fuzz.visit()
    return Made(fuzz.made, fuzz.codes, fuzz.connections)


def resident() -> int:
    """Bytes of memory that this process has, without those that it could give back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open(f"/proc/{os.getpid()}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir(f"/proc/{os.getpid()}/fd"))


def settled(found: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Whether it comes to be so."""
    until = time.monotonic() + seconds
    while not found() and time.monotonic() < until:
        time.sleep(0.05)
    return found()
