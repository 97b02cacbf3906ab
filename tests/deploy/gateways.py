"""A gateway and those who connect to it, over real sockets and TLS."""

import json
import ssl
import struct
from pathlib import Path
from typing import Any

import trustme
from websockets.sync.client import ClientConnection, connect

from halfback.deploy.gateway import Gateway, Terms
from halfback.deploy.tokens import add

SEATS = 4


def certified(folder: Path) -> tuple[ssl.SSLContext, Path, Path]:
    """What knows the certificate that it writes for this machine, the certificate, and its key."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return tls, certificate, key


def connected(address: str, token: str, tls: ssl.SSLContext, **options: Any) -> ClientConnection:
    given = {"ssl": tls, "compression": None, "max_size": None, "close_timeout": 2} | options
    return connect(address, additional_headers={"Authorization": f"Bearer {token}"}, **given)


class Place:
    """A gateway with its certificate, tokens and package below a folder."""

    def __init__(
        self, folder: Path, package: Path, *, seats: int = SEATS, metrics: int | None = None, page: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tls, self.certificate, self.key = certified(folder)
        self.tokens, self.seats = folder / "tokens.json", seats
        terms = Terms("127.0.0.1", 0, self.certificate, self.key, seats, metrics, page)
        self.gateway = Gateway(terms, self.tokens, package)
        self.address = f"wss://localhost:{self.gateway.port}/halfback/1"

    def token(self) -> str:
        return add(self.tokens, self.seats)

    def connect(self, token: str, path: str = "", **options: Any) -> ClientConnection:
        return connected(self.address + path, token, self.tls, **options)

    def at_work(self, token: str, **options: Any) -> ClientConnection:
        """A device that has said it works."""
        line = self.connect(token, **options)
        said(line, hello())
        heard(line)
        said(line, {"kind": "ready"})
        return line


def hello(**changes: Any) -> dict[str, Any]:
    return {"kind": "hello", "protocol": 1, "version": "0.4.0", "package": ""} | changes


def packed(header: str | dict[str, Any], body: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<I", len(text)) + text + body


def said(line: ClientConnection, header: str | dict[str, Any], body: bytes = b"") -> None:
    line.send(packed(header, body))


def heard(line: ClientConnection, seconds: float = 10.0) -> tuple[dict[str, Any], bytes]:
    data = line.recv(timeout=seconds)
    assert isinstance(data, bytes)
    (length,) = struct.unpack_from("<I", data)
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def plain_package(folder: Path) -> Path:
    """A folder that a gateway takes for a package; what is in it is for a device to check."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 12_000)
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "manifest.json").write_text(json.dumps({"files": {"weights.safetensors": {}, "empty.onnx": {}}}))
    (folder / "secret.txt").write_text("not of the package")
    return folder


INDEX = b"<!doctype html><title>halfback</title><script type=module src=/assets/page-abc.js></script>"


def plain_page(folder: Path, wasm: bytes = b"\0asm") -> Path:
    """A folder such as a build of the page leaves."""
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_bytes(INDEX)
    (folder / "assets" / "page-abc.js").write_bytes(b"export const page = 1;\n" * 4000)
    (folder / "assets" / "style-abc.css").write_bytes(b"body { margin: 0 }\n")
    (folder / "assets" / "ort-abc.wasm").write_bytes(wasm)
    return folder
