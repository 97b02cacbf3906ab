"""A site with a missing, forged or expired certificate gets no further than the handshake, and leaves one line."""

import datetime
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.deploy.federation import PATIENCE, SERVER, Federation

pytestmark = pytest.mark.slow
SAYS = {
    "missing": "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    "forged": "certificate signature failure",
    "expired": "certificate has expired",
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """With site-1, which is honest; nobody with a good certificate is site-2."""
    made = Federation(tmp_path_factory.mktemp("federation"), ["site-1", "site-2"])
    try:
        made.start(SERVER)
        made.start("site-1")
        made.wait_for(["site-1"])
        yield made
    finally:
        made.close()


def kit_of(federation: Federation, flaw: str) -> Path:
    """The startup kit of site-2, with this flaw."""
    kit = federation.folder / flaw
    shutil.copytree(federation.kits / "site-2", kit, dirs_exist_ok=True)
    if flaw == "good":
        return kit
    certificate, key = kit / "startup" / "client.crt", kit / "startup" / "client.key"
    if flaw == "missing":
        certificate.unlink()
        key.unlink()
        return kit
    own = rsa.generate_private_key(65537, 2048)
    root = serialization.load_pem_private_key(federation.state["root_pri_key"].encode(), None)
    assert isinstance(root, rsa.RSAPrivateKey)
    theirs = x509.load_pem_x509_certificate(certificate.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(theirs.issuer, theirs.subject, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=-1 if flaw == "expired" else 1))
        .sign(root if flaw == "expired" else rsa.generate_private_key(65537, 2048), hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.TraditionalOpenSSL
    key.write_bytes(own.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return kit


def greeting(federation: Federation, kit: Path) -> bytes:
    """What the server says to who comes with this kit: the beginning of HTTP/2, or nothing."""
    startup = kit / "startup"
    context = ssl.create_default_context(cafile=startup / "rootCA.pem")
    context.set_alpn_protocols(["h2"])
    if (startup / "client.crt").exists():
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        with (
            socket.create_connection(("127.0.0.1", federation.port), timeout=PATIENCE) as line,
            context.wrap_socket(line, server_hostname=SERVER) as secure,
        ):
            return secure.recv(9)
    except (ssl.SSLError, ConnectionError):
        return b""


def refusals(federation: Federation) -> list[str]:
    return [line for line in federation.log(SERVER).read_text().splitlines() if "Handshake failed" in line]


def test_a_good_certificate_is_greeted(federation: Federation) -> None:
    before = len(refusals(federation))
    assert greeting(federation, kit_of(federation, "good"))
    assert len(refusals(federation)) == before


@pytest.mark.parametrize("flaw", SAYS)
def test_a_bad_certificate_is_refused_with_one_line(federation: Federation, flaw: str) -> None:
    before = len(refusals(federation))
    assert greeting(federation, kit_of(federation, flaw)) == b""
    until = time.monotonic() + PATIENCE
    while len(refusals(federation)) == before and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)  # for a second line
    (line,) = refusals(federation)[before:]
    assert SAYS[flaw] in line


@pytest.mark.parametrize("flaw", ["forged", "expired"])
def test_a_flare_client_that_trusts_itself_never_becomes_a_site(federation: Federation, flaw: str) -> None:
    before = len(refusals(federation))
    federation.start("site-2", kit_of(federation, flaw), unchecked=True)
    until = time.monotonic() + PATIENCE
    while len(refusals(federation)) < before + 2:  # it has tried, and again
        assert time.monotonic() < until, federation.log(flaw).read_text()
        time.sleep(0.5)
    assert all(SAYS[flaw] in line for line in refusals(federation)[before:])
    assert federation.connected() == ["site-1"]
    federation.stop(flaw)


def test_a_flare_client_refuses_a_bad_kit_of_its_own(federation: Federation) -> None:
    """It says nothing, neither in its log nor to the server, and waits for ever."""
    before = len(refusals(federation))
    for flaw in SAYS:
        federation.start("site-2", kit_of(federation, flaw))
    time.sleep(15)
    for flaw in SAYS:
        federation.stop(flaw)
    assert len(refusals(federation)) == before
    assert federation.connected() == ["site-1"]
