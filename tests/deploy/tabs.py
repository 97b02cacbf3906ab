"""Tabs of a real browser that are devices, and what is asked of them."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from halfback.deploy.browsers import built_page
from halfback.errors import UserError

WEB = Path(__file__).parents[2] / "web"
CHROMIUM = shutil.which("chromium")
SIZES = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
# What follows is asked of the page itself, so it is told in the browser's language.
_PAST_THE_EDGE = """() => [...document.querySelectorAll('body *')].filter(
  e => e.checkVisibility() && !e.closest('svg, .preview, .button') && e.getBoundingClientRect().right > innerWidth + 0.5
).map(e => e.outerHTML.slice(0, 90))"""
_STATES = """async () => {
  const asked = request => new Promise((done, fail) => {
    request.onsuccess = () => done(request.result); request.onerror = () => fail(request.error); });
  const database = await asked(indexedDB.open('halfback-device'));
  const states = database.transaction('states').objectStore('states');
  const [keys, values] = [await asked(states.getAllKeys()), await asked(states.getAll())];
  database.close();
  const digest = async data => [...new Uint8Array(await crypto.subtle.digest('SHA-256', new Uint8Array(data.buffer)))]
    .map(byte => byte.toString(16).padStart(2, '0')).join('');
  return Promise.all(values.map(async (value, at) => ({
    owner: keys[at][0], client: Number(keys[at][2]), rounds: keys[at][3],
    position: JSON.parse(value.values).position,
    arrays: Object.fromEntries(await Promise.all(value.arrays.map(async each => [each.name, await digest(each.data)]))),
  })));
}"""


def needs_page() -> None:
    """Skips the test where there is no browser, or the page isn't built."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    try:
        built_page()
    except UserError as error:
        pytest.skip(str(error))


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium on one core, where a tab's runtime has one thread.

    Playwright attaches itself to each worker before it starts, and now and then lets none of a worker's own workers
    begin: a runtime that waits for its threads would wait for ever. No browser does so by itself.
    """
    needs_page()
    from playwright.sync_api import sync_playwright

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    with sync_playwright() as driver:
        os.sched_setaffinity(0, cores)
        # Else Chromium itself keeps pages from elsewhere off this machine, and the gateway's own refusal isn't seen.
        args = ["--no-sandbox", "--disable-features=LocalNetworkAccessChecks"]
        found = driver.chromium.launch(executable_path=CHROMIUM, args=args)
        yield found
        found.close()


class Tab:
    """A tab in a profile of its own, which stays when the tab is closed and another one is opened.

    Attributes:
        said: all that its consoles said, and what went wrong in it.
        asked: the addresses that it asked for, in order.
    """

    def __init__(self, found: Any, link: str, width: int = 1280, scheme: str = "light") -> None:
        """`link`: with its token."""
        self.link, self.said, self.asked = link, list[str](), list[str]()
        viewport = {"width": width, "height": 844}
        self.profile = found.new_context(ignore_https_errors=True, viewport=viewport, color_scheme=scheme)
        self.open()

    def open(self) -> None:
        """Opens the link in a new tab."""
        self.page = self.profile.new_page()
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.link)

    def join(self, file: Path) -> None:
        """Chooses a file and takes part."""
        self.page.set_input_files("#file", file)
        self.page.wait_for_selector("#preview > *")
        self.page.click("#join")

    def wait(self, state: str, seconds: float = 60.0) -> None:
        """Until the page says that its device is in this state."""
        self.page.wait_for_selector(f"#state[data-state={state}]", timeout=seconds * 1000)

    def until(self, holds: str, seconds: float = 30.0) -> None:
        """Until an expression of the browser's language holds."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(holds):
            assert time.monotonic() < end, self.page.inner_text("body")
            self.page.wait_for_timeout(50)

    def step(self) -> int:
        """The step that the page shows, -1 before there is one."""
        text = str(self.page.inner_text("#tile-step")).split("/")[0].strip().replace(",", "")
        return int(text) if text.isdigit() else -1

    def states(self) -> list[dict[str, Any]]:
        """What is kept in its profile to go on from: owner, client, rounds, position, and digests of arrays by name."""
        return sorted(self.page.evaluate(_STATES), key=lambda each: each["rounds"])

    def look(self, shots: Path | None = None, name: str = "") -> None:
        """Holds the page against what anybody must be able to see, at a phone's width and a desk's, light and dark."""
        before = self.page.viewport_size
        for width, scheme in SIZES:
            self.page.set_viewport_size({"width": width, "height": 844})
            self.page.emulate_media(color_scheme=scheme)
            if shots is not None:
                shots.mkdir(parents=True, exist_ok=True)
                self.page.screenshot(path=shots / f"{name}-{width}-{scheme}.png", full_page=True)
            assert self.page.evaluate(_PAST_THE_EDGE) == [], (width, scheme)
            assert self.page.evaluate("document.documentElement.scrollWidth") <= width
            assert self.violations() == [], (width, scheme)
        self.page.set_viewport_size(before)

    def violations(self) -> list[Any]:
        """What axe-core finds, asked from a world of its own: the page's policy lets no script in."""
        session = self.profile.new_cdp_session(self.page)
        frame = session.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
        world = session.send("Page.createIsolatedWorld", {"frameId": frame})["executionContextId"]
        axe = (WEB / "node_modules" / "axe-core" / "axe.min.js").read_text()
        session.send("Runtime.evaluate", {"expression": f"{axe};1", "contextId": world})
        asked = "axe.run(document).then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"
        found = session.send("Runtime.evaluate", {"expression": asked, "contextId": world, "awaitPromise": True})
        session.detach()
        told: list[Any] = json.loads(found["result"]["value"])
        return told
