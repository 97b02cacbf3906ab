"""The page that a gateway hands to browsers: which files, with what beside them, to whom, and at what cost."""

import hashlib
import http.client
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra nvflare is not installed")

from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from halfback.deploy import browsers as pages
from halfback.deploy.browsers import Page
from halfback.deploy.gateway import Gateway, Terms
from halfback.errors import UserError
from tests.deploy.gateways import INDEX, Place, heard, hello, plain_package, plain_page, said

BIG = os.urandom(1 << 20) * 8


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "site", plain_package(tmp_path / "package"), page=plain_page(tmp_path / "dist", BIG))
    yield made
    made.gateway.close()


Answer = tuple[int, dict[str, str], bytes]


def asked(place: Place, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    line = http.client.HTTPSConnection("localhost", place.gateway.port, context=place.tls, timeout=20)
    try:
        line.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            line.putheader(name, value)
        line.endheaders()
        answer = line.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        line.close()


def test_the_page_comes_with_what_keeps_a_browser_to_it(place: Place, tmp_path: Path) -> None:
    kinds = {"/": "text/html; charset=utf-8", "/assets/page-abc.js": "text/javascript; charset=utf-8"}
    kinds |= {"/assets/style-abc.css": "text/css; charset=utf-8", "/assets/ort-abc.wasm": "application/wasm"}
    for path, kind in kinds.items():
        status, headers, body = asked(place, path)
        assert (status, headers["content-type"]) == (200, kind)
        assert body == (tmp_path / "dist" / ("index.html" if path == "/" else path[1:])).read_bytes()
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
        assert policy["connect-src"] == policy["worker-src"] == policy["style-src"] == "'self'"
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert (policy["frame-ancestors"], policy["base-uri"]) == ("'none'", "'none'")
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == ("no-cache" if path == "/" else "public, max-age=31536000, immutable")
        assert headers["etag"] == f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        status, again, none = asked(place, path, headers={"If-None-Match": f'"other", {headers["etag"]}'})
        assert (status, none, again["etag"]) == (304, b"", headers["etag"])
        status, alone, none = asked(place, path, "HEAD")
        assert (status, none, alone) == (200, b"", headers)


@pytest.mark.parametrize(
    "path",
    [
        "/index.html/",
        "/../site/key.pem",
        "/assets/../../site/key.pem",
        "/assets/%2e%2e/index.html",
        "//etc/passwd",
        "/assets/page-abc.js?x=1",
        "/assets/",
        "/package/manifest.json",
        "/ASSETS/page-abc.js",
        "https://localhost/",
    ],
)
def test_no_other_file_is_handed_out(place: Place, path: str) -> None:
    """A name is looked up as it stands, in a table that was made when the gateway began."""
    status, headers, body = asked(place, path)
    assert (status, body) == (404, b"there is no such page here\n")
    assert headers["x-content-type-options"] == "nosniff"


def test_other_methods_and_bodies_are_refused(place: Place) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "CONNECT"):
        status, headers, _ = asked(place, "/", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")
    with pytest.raises((http.client.HTTPException, OSError)):
        asked(place, "/", "GET", {"Content-Length": "5"})


def test_a_file_that_changes_or_comes_later_is_not_handed_out(place: Place, tmp_path: Path) -> None:
    (tmp_path / "dist" / "assets" / "new.js").write_text("1")
    (tmp_path / "dist" / "index.html").unlink()
    (tmp_path / "dist" / "index.html").symlink_to(place.key)
    assert asked(place, "/assets/new.js")[0] == 404
    assert asked(place, "/")[2] == INDEX


@pytest.mark.parametrize("name", ["notes.md", "assets/.hidden.js", "a/b/c/d.js", "assets/x y.js", "assets/.js"])
def test_a_folder_with_what_no_page_has_is_refused(name: str, tmp_path: Path) -> None:
    folder = plain_page(tmp_path / "dist")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(UserError, match="it is no file of a page"):
        Page(folder, 1)


def test_links_and_a_folder_without_a_page_are_refused(tmp_path: Path) -> None:
    folder = plain_page(tmp_path / "dist")
    (folder / "assets" / "link.js").symlink_to(folder / "index.html")
    with pytest.raises(UserError, match=r"page .*link\.js: "):
        Page(folder, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there must be an index"):
        Page(tmp_path / "empty", 1)


def test_without_a_page_nothing_is_handed_out_and_paths_are_guesses(tmp_path: Path) -> None:
    place = Place(tmp_path / "site", plain_package(tmp_path / "package"))
    try:
        assert [asked(place, "/")[0] for _ in range(11)] == [404] * 10 + [429]
    finally:
        place.gateway.close()


def test_who_guesses_tokens_may_read_the_page_and_who_reads_it_may_come_in(place: Place) -> None:
    for _ in range(11):
        with pytest.raises(InvalidStatus):
            place.connect("hb1.00000000." + "A" * 43)
    assert asked(place, "/")[0] == 200


def with_one_seat(place: Place, folder: Path) -> None:
    """Puts another gateway in its place."""
    place.gateway.close()
    one = Terms("127.0.0.1", 0, place.certificate, place.key, 1, page=folder / "dist")
    place.gateway = Gateway(one, place.tokens, folder / "package")
    place.address = f"wss://localhost:{place.gateway.port}/halfback/1"


def test_one_address_is_handed_so_much_and_no_more(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes count, not the requests: here a page, and two for its seat, nearly all of which is the large file."""
    monkeypatch.setattr(pages, "_FETCHES", (1, 0.001))
    with_one_seat(place, tmp_path)
    assert [asked(place, "/assets/ort-abc.wasm")[0] for _ in range(4)] == [200, 200, 200, 429]
    assert asked(place, "/")[0] == 200  # which is small
    assert asked(place, "/assets/ort-abc.wasm", "HEAD")[0] == 200
    place.connect(place.token()).close()  # a device comes in all the same


def test_strangers_together_are_handed_so_much(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_STRANGERS", (0, 0.001))
    with_one_seat(place, tmp_path)
    found = [asked(place, "/assets/ort-abc.wasm")[0] for _ in range(3)]
    assert found == [200, 200, 429]
    place.connect(place.token()).close()
    assert asked(place, "/assets/ort-abc.wasm")[0] == 200  # a device came in from there


def slow(place: Place, path: str) -> socket.socket:
    """A reader that asks for a file and reads nothing."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    plain.connect(("127.0.0.1", place.gateway.port))
    line = place.tls.wrap_socket(plain, server_hostname="localhost")
    line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return line


def test_slow_readers_hold_up_nobody_cost_little_and_are_sent_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_IDLE", 1.0)
    monkeypatch.setattr(pages, "_AT_ONCE_EACH", 8)
    before = memory()
    readers = [slow(place, "/assets/ort-abc.wasm") for _ in range(8)]
    time.sleep(0.3)
    assert memory() - before < 24e6  # eight files would be 64 MB
    assert asked(place, "/")[0] == 503
    device = place.at_work(place.token())  # which is not held up, and not counted with them
    until_gone = time.monotonic() + 5
    while asked(place, "/")[0] == 503:
        assert time.monotonic() < until_gone
        time.sleep(0.1)
    for reader in readers:
        reader.close()
    device.close()


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_reader_that_says_more_is_cut_off(place: Place) -> None:
    line = slow(place, "/assets/ort-abc.wasm")
    line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
    came = 0
    with suppress(OSError):  # reset, or an end without TLS's goodbye
        while more := line.recv(1 << 16):
            came += len(more)
    assert came < len(BIG)


def test_a_gateway_that_closes_ends_what_is_on_its_way(place: Place) -> None:
    readers = [slow(place, "/assets/ort-abc.wasm") for _ in range(3)]
    time.sleep(0.2)
    begun = time.monotonic()
    place.gateway.close()
    assert time.monotonic() - begun < 4
    assert not place.gateway._thread.is_alive()
    for reader in readers:
        reader.close()


def test_many_readers_at_once_have_the_whole_file(place: Place) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(asked(place, "/assets/ort-abc.wasm")[2])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {hashlib.sha256(each).digest() for each in found} == {hashlib.sha256(BIG).digest()}
    assert len(found) == 6


def test_a_slow_reader_has_the_whole_file_and_its_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece has its own time, and what stands in buffers at the end is not cut off."""
    monkeypatch.setattr(pages, "_IDLE", 4.0)
    line, came = slow(place, "/assets/ort-abc.wasm"), bytearray()
    line.settimeout(10)
    while more := line.recv(1 << 14):
        came += more
        if len(came) % (1 << 20) < len(more) or len(BIG) - len(came) < 1 << 17:
            time.sleep(0.1)
    assert bytes(came.partition(b"\r\n\r\n")[2]) == BIG


# A browser comes in: it can set no header but its subprotocols, and always says which page it is on.


def as_browser(place: Place, *spoken: str, **options: object) -> ClientConnection:
    return connect(place.address, subprotocols=list(spoken), ssl=place.tls, compression=None, **options)  # type: ignore[arg-type]


def test_a_token_as_second_subprotocol_lets_in_and_is_said_to_nobody(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets.client").setLevel(logging.CRITICAL)  # ours: this is about the gateway's
    token, origin = place.token(), f"https://localhost:{place.gateway.port}"
    with as_browser(place, "halfback", token, origin=origin) as line:
        assert line.subprotocol == "halfback"
        said(line, hello())
        assert heard(line)[0]["place"] == 0
        assert token not in str(line.response)
    assert token.split(".")[2] not in caplog.text
    with place.connect(token, subprotocols=["other"]) as line:  # a device, whatever it speaks
        assert line.subprotocol is None


def test_wrong_tokens_and_two_tokens_are_none(place: Place) -> None:
    token, other = place.token(), place.token()
    wrong: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("halfback",), {}),
        (("halfback", token[:-1] + ("A" if token[-1] != "A" else "B")), {}),
        (("halfback", token, other), {}),
        (("halfback", token), {"Authorization": f"Bearer {token}"}),
        (("halfback", token), {"Authorization": "Basic x"}),
    ]
    for spoken, headers in wrong:
        with pytest.raises(InvalidStatus, match="401"):
            as_browser(place, *spoken, additional_headers=headers)
    as_browser(place, "halfback", token).close()


@pytest.mark.parametrize(
    "origin", ["https://example.org", "null", "http://localhost:{port}", "https://localhost", "https://localhost:1"]
)
def test_a_page_from_elsewhere_may_not_connect(place: Place, origin: str) -> None:
    """Whatever token it has: a browser says where a page is from, and the page can't change that."""
    token = place.token()
    with pytest.raises(InvalidStatus, match="403"):
        as_browser(place, "halfback", token, origin=origin.format(port=place.gateway.port))
    own = f"https://localhost:{place.gateway.port}"
    with pytest.raises(InvalidStatus, match="403"):
        as_browser(place, "halfback", token, origin=own, additional_headers={"Origin": "https://example.org"})
    as_browser(place, "halfback", token, origin=own).close()


def test_a_site_s_file_turns_the_page_on(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default there is none; where it is asked for and not built, the gateway doesn't begin."""
    from halfback.deploy import gateway
    from halfback.deploy.site import SiteConfig

    monkeypatch.setattr(gateway, "check_package", lambda _: tmp_path / "package")
    said = {"listen": "127.0.0.1:0", "certificate": str(place.certificate), "key": str(place.key)}
    for more, status in (({}, 404), ({"page": False}, 404), ({"page": True}, 200)):
        monkeypatch.setattr(gateway, "built_page", lambda: tmp_path / "dist")
        site = SiteConfig.model_validate({"runtime": "device", "package": "x", "devices": said | more})
        place.gateway.close()
        place.gateway = gateway.opened(site, place.tokens)
        assert asked(place, "/")[0] == status
    monkeypatch.undo()
    monkeypatch.setattr(pages, "__file__", str(tmp_path / "halfback" / "deploy" / "browsers.py"))
    with pytest.raises(UserError, match=r"^the page is not built here: cd web && npm ci && npm run build$"):
        pages.built_page()
