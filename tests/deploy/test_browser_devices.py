"""Tabs of a browser as devices: a whole run in FLARE's processes, and what a page makes of a hostile server."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
pytest.importorskip("onnx", reason="the extra package is not installed")

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.browsers import built_page
from halfback.deploy.certificate import write_certificate
from halfback.deploy.folder import SEATS
from halfback.deploy.job import allow
from halfback.deploy.relay import WorkerLost
from halfback.deploy.site import FILE
from halfback.deploy.tokens import add
from halfback.engine import checkpoint
from halfback.engine.remote.frames import Frame, Longest, Prepare, frame
from halfback.runs import run
from halfback.runs.package import package
from halfback.runs.shares import write_shares
from halfback.telemetry.records import read_records
from halfback.testing import small
from tests.deploy.federation import ADMIN, SERVER, Federation, free_port
from tests.deploy.gateways import Place
from tests.deploy.tabs import Tab, browser, needs_page

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

STEPS, PATIENCE = 60, 900.0
GATEWAY, PLAIN = "gateway", "plain"
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "device")])}
SHOTS = (
    Path(os.environ["HALFBACK_SHOTS"]) if "HALFBACK_SHOTS" in os.environ else None
)  # where somebody will look at them


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def recipe() -> RunConfig:
    """The quick start's, with two clients that are tabs and one with PyTorch."""
    few = ["clients=3", "sampled_clients=3", f"steps={STEPS}", "eval_every=10", "checkpoint_every=10", "beside=[]"]
    return configuration.resolve("quickstart", few)


class Deployed:
    """`halfback deploy` of a recipe to a federation of a gateway for tabs and a site with PyTorch; all is started."""

    def __init__(self, folder: Path, recipe: RunConfig) -> None:
        self.folder, self.out = folder, folder / "out"
        self.owns = [folder / f"client-{number}" for number in range(recipe.clients)]
        for own in self.owns:
            own.mkdir()
        self.federation = Federation(folder, [GATEWAY, PLAIN])
        made, tokens, port = folder / "package", folder / "tokens.json", free_port()
        package(recipe, made)
        write_shares(small.built(recipe), self.owns)
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        write_certificate(certificate, key)
        devices = {"listen": f"127.0.0.1:{port}", "certificate": str(certificate), "key": str(key), "seats": 2}
        devices |= {"tokens": str(tokens), "page": True}
        gateway = json.dumps({"runtime": "device", "package": str(made), "devices": devices})
        for name, text in ((SERVER, "trial: true\n"), (PLAIN, "trial: true\n"), (GATEWAY, gateway)):
            allow(self.federation.kits / name)
            (self.federation.kits / name / "local" / FILE).write_text(text)
        self.links = [f"https://127.0.0.1:{port}/#{add(tokens, 2)}" for _ in range(2)]
        for name in (SERVER, GATEWAY, PLAIN):
            self.federation.start(name)
        self.federation.wait_for([GATEWAY, PLAIN])
        (folder / "recipe.yaml").write_text(configuration.dump(recipe))
        words = ["deploy", str(folder / "recipe.yaml"), "--env", "prod", "--sites", "2", "--name", "run"]
        words += ["--kit", str(self.federation.kits / ADMIN), "--user", ADMIN, "--out", str(self.out)]
        self.log = (folder / "log").open("w+")
        self.run = subprocess.Popen(
            [sys.executable, "-m", "halfback", *words], env=ENVIRONMENT, stdout=self.log, stderr=subprocess.STDOUT
        )

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        self.run.kill()
        self.log.close()
        self.federation.close()


def opened(chromium: Any, link: str, going: "subprocess.Popen[Any]") -> Tab:
    """A tab, once the gateway is there."""
    until = time.monotonic() + 300
    while True:
        try:
            return Tab(chromium, link)
        except Exception as error:
            if "ERR_CONNECTION" not in str(error) or time.monotonic() > until or going.poll() is not None:
                raise
            time.sleep(0.5)


def test_two_tabs_and_a_site_with_pytorch_train_the_quick_start(
    chromium: Any, recipe: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS, and one tab is closed and opened again in the middle: θ has the server's bits in both."""
    for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    (tmp_path / "federation").mkdir()
    deployed = Deployed(tmp_path / "federation", recipe)
    try:
        # Seats go round by the names of sites: the gateway's first place, the plain site, the gateway's second.
        files = [deployed.owns[0] / "rows.npz", deployed.owns[2] / "rows.npz"]
        tabs = [opened(chromium, link, deployed.run) for link in deployed.links]
        tabs[0].look(SHOTS, "before")
        for tab, file in zip(tabs, files, strict=True):
            tab.join(file)
        until, is_closed, has_looked = time.monotonic() + PATIENCE, False, False
        while not all(tab.page.get_attribute("#state", "data-state") == "finished" for tab in tabs):
            assert time.monotonic() < until, (deployed.said()[-2000:], [tab.page.inner_text("#run") for tab in tabs])
            assert deployed.run.poll() in (None, 0), deployed.said()[-3000:]
            tabs[0].page.wait_for_timeout(100)
            if not is_closed and tabs[1].step() >= STEPS // 3:
                tabs[1].page.close()
                is_closed = True
                tabs[1].open()
                tabs[1].join(files[1])
            if not has_looked and is_closed and tabs[0].step() >= STEPS // 2:
                tabs[0].look(SHOTS, "while")
                has_looked = True
        assert (is_closed, has_looked) == (True, True)
        assert deployed.run.wait(120) == 0, deployed.said()[-3000:]
        tabs[0].look(SHOTS, "after")
        assert json.loads((deployed.out / SEATS).read_text()) == {GATEWAY: [0, 2], PLAIN: [1]}
        found = checkpoint.load(deployed.out / "checkpoint")
        assert found is not None
        bottom = {
            f"theta.{name.removeprefix('bottom.')}": hashlib.sha256(values.numpy().tobytes()).hexdigest()
            for name, values in found[1].items()
            if name.startswith("bottom.")
        }
        for tab, client in zip(tabs, (0, 2), strict=True):
            last = tab.states()[-1]
            assert (last["client"], last["rounds"], last["position"]) == (client, STEPS, STEPS)
            theta = {name: digest for name, digest in last["arrays"].items() if name.startswith("theta.")}
            assert theta == bottom
            assert len(bottom) > 10
            text = tab.page.inner_text("#tile-accuracy")
            assert text == f"{read_records(deployed.out)[-1].metric:.1f} %"
            assert [line for line in tab.said if line.startswith(("error", "warning"))] == [], tab.said
            assert set(tab.asked) == {address for address in tab.asked if address.startswith(tab.link.split("#")[0])}
        assert "gone" not in tabs[0].page.inner_text("#problem")
    finally:
        deployed.close()
    run.train(recipe, tmp_path / "one")
    apart = [
        (mine.step, mine.metric, theirs.metric)
        for mine, theirs in zip(read_records(tmp_path / "one"), read_records(deployed.out), strict=True)
    ]
    print(apart)
    assert all(abs(mine - theirs) < 2.5 for _, mine, theirs in apart if mine is not None and theirs is not None)


@pytest.mark.xdist_group("flare")
def test_the_command_prints_links_that_work(chromium: Any, tmp_path: Path) -> None:
    """A tab and a native device beside it; whatever ends the command ends them."""
    few = {"clients": 4, "sampled_clients": 2, "steps": 6, "eval_every": 2, "checkpoint_every": 2, "threads": 1}
    (tmp_path / "recipe.yaml").write_text(configuration.dump(small.images("ho_sfl", **few)))
    words = ["deploy", str(tmp_path / "recipe.yaml"), "--env", "poc", "--browser", "--devices", "1"]
    going = subprocess.Popen(
        [sys.executable, "-m", "halfback", *words, "clients=2", "--out", str(tmp_path / "out")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert going.stdout is not None
        lines = []
        while not (match := re.search(r"open in a browser: (https://\S+) and choose there: (\S+)", "".join(lines))):
            lines.append(going.stdout.readline())
            assert lines[-1], lines
        tab = opened(chromium, match[1], going)
        assert tab.page.url.endswith("/")  # the token is not in the address any more
        tab.join(Path(match[2]))
        tab.wait("finished", 300)
        said, _ = going.communicate(timeout=120)
        assert going.returncode == 0, said
        assert "client 1 (site-1:1) joined" in said
    finally:
        going.send_signal(signal.SIGTERM)
        going.wait(120)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A gateway with the page and a package of images."""
    needs_page()
    package(small.images("ho_sfl", clients=2, sampled_clients=2, steps=4), tmp_path / "package")
    made = Place(tmp_path / "site", tmp_path / "package", page=built_page())
    yield made
    made.gateway.close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    own = [tmp_path / f"rows-{number}" for number in range(2)]
    for each in own:
        each.mkdir()
    write_shares(small.built(small.images("ho_sfl", clients=2, sampled_clients=2, steps=4)), own)
    return own[0] / "rows.npz"


def link_of(place: Place) -> str:
    return f"https://localhost:{place.gateway.port}/#{place.token()}"


def test_everything_is_done_by_keyboard_alone(chromium: Any, place: Place, rows: Path, tmp_path: Path) -> None:
    link = link_of(place)
    tab = Tab(chromium, link.split("#")[0])  # without its token, which is typed
    page = tab.page

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id"))

    def to(name: str, key: str = "Tab") -> None:
        for _ in range(20):
            page.keyboard.press(key)
            if focused() == name:
                outline = page.evaluate("""() => {
                    const of = e => getComputedStyle(e).outlineStyle;
                    const e = document.activeElement;
                    return of(e) !== 'none' || of(e.closest('.button') ?? e) !== 'none';
                }""")
                assert outline, f"the focus on {name} can't be seen"
                return
        raise AssertionError(f"{name} is not reached")

    to("token")
    page.keyboard.insert_text(link)
    page.keyboard.press("Tab")
    assert page.locator("#linked").is_visible()
    to("file")
    page.set_input_files("#file", rows)  # the system's own dialog, which no test can reach
    page.wait_for_selector("#preview canvas")
    to("folder")
    to("preview")
    to("keep-labels")
    page.keyboard.press("Space")
    assert page.is_checked("#keep-labels")
    page.keyboard.press("Space")
    to("join")
    page.keyboard.press("Enter")
    tab.wait("waiting")
    assert focused() == "pause"
    page.keyboard.press("Enter")
    tab.wait("paused")
    assert page.inner_text("#pause") == "Resume"
    page.keyboard.press("Enter")
    tab.wait("waiting")
    to("leave")
    page.keyboard.press("Enter")
    tab.wait("left")
    assert focused() == "again"
    page.keyboard.press("Enter")
    assert focused() == "join"
    assert tab.said == []


def test_what_is_wrong_is_one_sentence_and_nothing_is_lost(
    chromium: Any, place: Place, rows: Path, tmp_path: Path
) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(
        "sentence,mood\n" + "".join(f"a line of text {row},{'good' if row % 2 else 'bad'}\n" for row in range(9))
    )
    (tmp_path / "odd.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "notes.txt").write_text("x")
    tab = Tab(chromium, link_of(place).split("#")[0])
    page = tab.page

    def problem() -> str:
        page.wait_for_selector("#problem:not([hidden])")
        return str(page.inner_text("#problem"))

    page.click("#join")
    assert problem() == "Paste the link that you were given first."
    page.fill("#token", "hb1.short")
    page.keyboard.press("Tab")
    assert problem().startswith("This is no token")
    page.fill("#token", f"https://example.org/#{place.token()}")
    page.keyboard.press("Tab")
    assert problem().startswith("This link is of another gateway.")
    page.fill("#token", place.token())
    page.keyboard.press("Tab")
    assert not page.is_visible("#problem")
    page.click("#join")
    assert problem() == "Choose your rows first."
    tab.look(SHOTS, "wrong")
    page.set_input_files("#file", tmp_path / "notes.txt")
    assert "notes.txt is of no kind that can be read here" in problem()
    page.set_input_files("#file", tmp_path / "odd.npz")
    tab.until("document.querySelector('#problem').innerText.startsWith('Odd.npz can\\'t be read: it is no .npz;')")
    page.set_input_files("#file", table)
    page.wait_for_selector("#preview table")
    assert page.input_value("#text-column") == "sentence"
    assert page.input_value("#label-column") == "mood"
    page.select_option("#label-column", "sentence")
    page.click("#join")
    assert problem() == "Text and label must be different columns: choose another."
    page.select_option("#label-column", "mood")
    tab.look(SHOTS, "table")
    page.click("#join")  # the model takes images
    tab.wait("failed")
    assert "images" in problem()
    tab.look(SHOTS, "failed")
    page.click("#again")
    page.set_input_files("#file", rows)
    page.wait_for_selector("#preview canvas")
    page.click("#join")
    tab.wait("waiting")
    assert not page.is_visible("#problem")
    tab.look(SHOTS, "waiting")
    assert tab.said == []


EVIL = "globalThis.owned = 1; postMessage({type: 'state', state: 'finished', detail: 'owned'});"


@pytest.mark.parametrize("name", ["evil.js", "page.html", "worker.mjs", "embed.onnx"])
def test_no_code_of_a_package_runs(chromium: Any, place: Place, rows: Path, tmp_path: Path, name: str) -> None:
    """A file that is a script stays bytes: it is nowhere served, and a graph that is one is refused."""
    place.gateway.close()
    manifest = json.loads((tmp_path / "package" / "manifest.json").read_text())
    evil = f"<script>{EVIL}</script>" if name.endswith("html") else EVIL
    (tmp_path / "package" / name).write_text(evil)
    manifest["files"][name] = hashlib.sha256(evil.encode()).hexdigest()
    (tmp_path / "package" / "manifest.json").write_text(json.dumps(manifest))
    again = Place(tmp_path / "again", tmp_path / "package", page=built_page())
    try:
        tab = Tab(chromium, link_of(again))
        tab.join(rows)
        tab.until(
            "document.querySelector('#state').dataset.state === 'failed' || "
            "document.querySelector('#log').textContent.includes('not taking part')"
        )
        tab.page.wait_for_timeout(500)
        assert tab.page.evaluate("globalThis.owned") is None
        assert all(worker.evaluate("globalThis.owned") is None for worker in tab.page.workers)
        assert "owned" not in tab.page.inner_text("body")
        assert tab.page.get_attribute("#state", "data-state") != "finished"
        assert tab.page.evaluate(f"fetch('/{name}').then(answer => answer.status)") == 404
    finally:
        again.gateway.close()


MARKUP = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def test_what_a_server_says_is_text(chromium: Any, place: Place, rows: Path) -> None:
    tab = Tab(chromium, link_of(place))
    tab.join(rows)
    tab.wait("waiting")
    title = tab.page.title()
    for asked in (
        Frame(MARKUP),
        Frame(json.dumps({"kind": MARKUP})),
        frame(
            Prepare(run="0" * 16, client=0, config={"model": MARKUP, MARKUP: 1}, label_names=(MARKUP,), weights=MARKUP)
        ),
    ):
        with suppress(WorkerLost):
            place.gateway._seated[0]._prepared = True
            reply = place.gateway.exchange(0, asked, 20.0, Longest(1 << 20))
            assert '"kind":"refused"' in reply.header
            assert reply.body == b""
    tab.page.click("details summary")
    tab.page.wait_for_timeout(300)
    assert tab.page.title() == title
    assert tab.page.locator("main img, main script, iframe").count() == 0


def test_what_is_longer_than_allowed_ends_the_connection(chromium: Any, place: Place, rows: Path) -> None:
    """Also where a hostile gateway no longer holds itself to what the device takes."""
    tab = Tab(chromium, link_of(place))
    tab.join(rows)
    tab.wait("waiting")
    device = place.gateway._seated[0]
    device.longest = Longest(1 << 40)
    with pytest.raises(WorkerLost, match="gone"):
        place.gateway.exchange(0, Frame('{"kind":"prepare"}', bytes(1 << 25)), 20.0, Longest(1 << 20))
    tab.until("document.querySelector('#log').textContent.includes('not taking part')")
    tab.wait("waiting", 20)  # it comes again
    assert tab.page.get_attribute("#state", "data-state") == "waiting"


INLINE = """() => { const made = document.createElement('script');
  made.text = 'globalThis.owned = 2'; document.body.append(made); }"""
FETCHED = "([url]) => fetch(url).then(() => 'came', () => 'refused')"
CONNECTED = """([url, token]) => new Promise(done => { try {
  const line = new WebSocket(url, ['halfback', token]);
  line.onopen = () => done('came'); line.onerror = () => done('refused'); } catch { done('refused') } })"""


def test_the_page_is_kept_to_its_own_gateway(chromium: Any, place: Place, rows: Path) -> None:
    """No script but the built ones, no other machine, no frame around it; and it may use threads."""
    other = Place(rows.parent / "other", rows.parents[1] / "package", page=built_page())
    try:
        tab = Tab(chromium, link_of(place))
        page = tab.page
        assert page.evaluate("crossOriginIsolated") is True
        for far in (f"https://localhost:{other.gateway.port}/", f"wss://localhost:{other.gateway.port}/halfback/1"):
            tried = FETCHED if far.startswith("https") else CONNECTED
            assert page.evaluate(tried, [far, "halfback"]) == "refused"
        page.evaluate("() => { setTimeout('globalThis.owned = 1'); }")  # which is `eval`, but not the tester's own
        page.evaluate(INLINE)
        page.wait_for_timeout(200)
        assert page.evaluate("globalThis.owned") is None
        assert any("violates the following Content Security Policy" in line for line in tab.said)
        scripts = page.evaluate(
            "[...document.querySelectorAll('script[src], link[rel=stylesheet]')].map(each => each.integrity)"
        )
        assert len(scripts) >= 2
        assert all(each.startswith("sha384-") for each in scripts)
        # A page from elsewhere, which has somehow come by a token, and connects with it.
        far = Tab(chromium, link_of(other))
        far.page.route("**/*", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        far.page.goto(f"https://localhost:{other.gateway.port}/bare")
        assert far.page.evaluate(CONNECTED, [place.address, place.token()]) == "refused"
        assert place.gateway.counts()["refused_total:403"] == 1
    finally:
        other.gateway.close()
