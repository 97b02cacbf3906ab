"""Pages as a real browser shows them: at a phone's width and a desk's, light and dark, with names that are markup."""

import copy
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_folders import records, summary, write_run

from halfback.report.audited import sentences, write_audit
from halfback.report.comparison import initial_of, summarise
from halfback.report.comparison_page import write_comparison
from halfback.report.page import write_report
from halfback.report.tradeoffs import curves_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at pages with"),
    pytest.mark.xdist_group("browser"),  # one for all
]

HOSTILE = '<img src=x onerror="document.title=1">'
SIZES = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
# Everything below is asked of the page itself, so it is told in the browser's language.
PAST_THE_EDGE = """() => [...document.querySelectorAll('body *')].filter(
  e => e.checkVisibility() && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 0.5
).map(e => e.outerHTML.slice(0, 90))"""
HEADINGS = "() => [...document.querySelectorAll('h1,h2,h3,h4')].map(e => Number(e.tagName[1]))"
NAMELESS = """() => [...document.querySelectorAll('[role=img], figure')].filter(
  e => !(e.getAttribute('aria-label') || e.querySelector('figcaption')?.innerText)).length"""
# By the Web Content Accessibility Guidelines: of text against the page's ground, which everything but `pre` stands on.
LOWEST_CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return Math.min(...[...document.querySelectorAll('body *')].filter(own).map(e => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run alone, nine runs of which some are unfinished or have markup for a name, and a comparison of a dozen."""
    root = tmp_path_factory.mktemp("pages")
    alone = write_run(root / "alone", percent(records(60)), summary())
    many = write_run(root / "many", percent(records()), summary())
    for place in range(7):
        named = summary(algorithm=f"{HOSTILE}{place}", seed=place, task=HOSTILE, up_bytes=10**place)
        write_run(many / "beside" / f"{HOSTILE.replace('/', '')}{place}", percent(records(rate=0.5 + place)), named)
    write_run(
        many / "beside" / "unfinished", percent(records(4)), None, config="</pre><script>document.title=2</script>"
    )
    return {
        "alone": write_report([alone], root / "alone.html"),
        "many": write_report([many], root / "many.html"),
        "comparison": write_comparison(comparison(), root / "comparison.html"),
        "audit": write_audit(audit(), root / "audit.html"),
    }


def percent(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    links = ("activations_up", "gradient_down")
    return [
        line | {"metric": 100 * line["metric"], "thresholds": {link: 0.9 + 0.001 * line["step"] for link in links}}
        for line in lines
    ]


def audit() -> dict[str, Any]:
    """As `audit.json` holds it: two attacks at three cuts by five ways, and one that failed its fence."""
    found: list[dict[str, Any]] = [
        {
            "about": "tokens",
            "how": how,
            "measure": "recovered",
            "value": 0.9 / (place + 1) ** 0.5 / cut**0.2,
            "chance": 0.03,
            "planted": 1.0,
            "cut": cut,
            "sent": sent,
            "row_bytes": 18816.0 / (place + 1),
            "quality": 80.0 + cut - place,
            "fence": "",
            "conclusion": "leaks",
        }
        for cut in (1, 2, 5)
        for place, sent in enumerate(("float32", "int8", "projection 128", HOSTILE, "noise 4"))
        for how in ("nearest embedding", "trained inverter of 738 k values")
    ]
    alone = {"about": "membership", "measure": "AUC", "cut": None, "sent": "", "row_bytes": None, "quality": None}
    found.append(found[0] | alone | {"fence": "planted leak not found", "conclusion": "none"})
    told = {"task": HOSTILE, "model": "all-minilm-l6-v2", "method": "ho_sfl", "shape": "plain", "is_trained": True}
    rows = {"victim_rows": 2000, "own_rows": 400, "rows_left_out_as_equal": 3, "seconds": 295.3}
    values = {**told, **rows, "cut": 2, "cuts": [1, 2, 5], "metric": "accuracy", "findings": found, "notes": [HOSTILE]}
    values["curves"] = curves_of(found)
    return {**values, "said": sentences(values)}


def comparison() -> dict[str, Any]:
    """As `compare.json` holds it: twelve methods with three seeds each."""
    labels = ["ho_sfl", "split_lora", "frozen_bottom", f"{HOSTILE}:with.settings=1e-3:and.more=[1,2]"]
    labels += [f"method_{place}" for place in range(8)]
    cells: dict[str, list[dict[str, Any]]] = {}
    for order, label in enumerate(labels):
        for seed in range(3):
            curve = percent(records(6, rate=1 + 0.1 * order + 0.05 * seed, scale=1 + order))
            last = curve[-1]["metric"]
            metric = {"name": "accuracy", "initial": curve[0]["metric"], "final": last, "best": last}
            made = summary(algorithm=label, seed=seed, metric=metric, simulated_seconds=None)
            command = f"halfback train quickstart algorithm.name={label} " + "a.long.setting=1 " * 12
            cells.setdefault(label, []).append(
                {
                    "seed": seed,
                    "status": "finished",
                    "summary": made,
                    "curve": curve,
                    "folder": f"cells/{label}-{seed}",
                    "command": command,
                }
            )
    rows = summarise(cells, target=50.0, rises=True)
    methods = {label: row | {"cells": copy.deepcopy(cells[label])} for label, row in rows.items()}
    grids = {"values": ["1e-4", "1e-3", "1e-2"], "widened": {}, "name": "lr", "seed": 0}
    scores = {label: {"1e-4": 40.0, "1e-3": None, "1e-2": 60.0} for label in labels}
    chosen = {"chosen": dict.fromkeys(labels, "1e-2"), "edge": dict.fromkeys(labels, "upper"), "scores": scores}
    held = {"steps": dict.fromkeys(labels, 200), "held_back": dict.fromkeys(labels, 0.1)}
    return {
        "command": "halfback compare quickstart " + "a.long.setting=1 " * 20,
        "task": HOSTILE,
        "seeds": [0, 1, 2],
        "algorithms": {label: {"name": label, "settings": []} for label in labels},
        "metric": {"name": "accuracy", "rises": True, "initial": initial_of(cells)},
        "target": {"value": 50.0, "said": "Target accuracy: 50, as asked for."},
        "tuning": grids | chosen | held,
        "parts": [{"equal": "steps", "notes": [], "methods": methods}],
        "versions": {"halfback": "0.0"},
    }


@pytest.mark.parametrize("name", ["alone", "many", "comparison", "audit"])
def test_a_page_fits_and_says_everything(browser: Any, pages: dict[str, Path], name: str) -> None:
    address = pages[name].as_uri()
    for width, scheme in SIZES:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(address)
        title = page.title()
        assert page.locator("script, img, iframe, link, object").count() == 0
        for details in page.locator("details").all():
            details.evaluate("e => e.open = true")
        assert page.evaluate(PAST_THE_EDGE) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        levels = page.evaluate(HEADINGS)
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.evaluate(NAMELESS) == 0
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.evaluate(LOWEST_CONTRAST) >= 4.5
        assert page.title() == title  # which the names would change, were they markup
        assert HOSTILE in page.locator("body").inner_text() or name == "alone"
        assert said == []
        assert asked == [address]
        context.close()


def test_what_folds_is_reached_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["comparison"].as_uri())
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.close()
