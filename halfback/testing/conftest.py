"""Which rows of the table a check is held against, and on what: images, or texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.testing import small
from halfback.testing.observed import Observed, observe
from halfback.testing.table import ROWS, Row, rows_of
from halfback.testing.texts import sentences as sentences
from halfback.testing.texts import tiny_bert as tiny_bert

World = Callable[..., RunConfig]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--algorithm", help="Check this one alone, be it of another package.")
    parser.addoption("--setting", action="append", default=[], help="KEY=VALUE, with --algorithm.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rows(condition, on): the rows of the table that a check is about, and on what")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A check that takes `row` is run for each that its marker lets pass, and with `world` on images and texts.

    All checks of a row are run by one process of pytest-xdist, so that they can share a run.
    """
    if "row" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("rows")
    rows = [(name, row) for name, row in _chosen(metafunc.config).items() if marker is None or marker.args[0](row)]
    if "world" not in metafunc.fixturenames:
        metafunc.parametrize("row", [pytest.param(row, id=name, marks=_together("images", name)) for name, row in rows])
        return
    on = [
        (kind, name, row)
        for kind in (("images", "texts") if marker is None else marker.kwargs.get("on", ("images", "texts")))
        for name, row in rows
        if kind == "images" or (row.texts and not row.brief)
    ]
    cases = [pytest.param(row, kind, id=f"{kind}-{name}", marks=_together(kind, name)) for kind, name, row in on]
    metafunc.parametrize(("row", "world"), cases, indirect=["world"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The checks of a row follow one another, behind all other tests.

    One that is about none of the rows is no check: pytest would report it as skipped.
    """
    items[:] = [item for item in items if item.get_closest_marker("rows") is None or _row(item) is not None]
    places: dict[str, int] = {}
    for item in items:
        places.setdefault(_group(item), len(places) if _group(item) else -1)
    items.sort(key=lambda item: places[_group(item)])


def _row(item: Any) -> Row | None:
    row = item.callspec.params["row"]
    return row if isinstance(row, Row) else None


def _together(kind: str, name: str) -> pytest.MarkDecorator:
    return pytest.mark.xdist_group(f"{kind}-{name}")


def _group(item: pytest.Item) -> str:
    """Of a check of a row; none of another test."""
    mark = item.get_closest_marker("xdist_group") if "row" in getattr(item, "fixturenames", ()) else None
    return mark.args[0] if mark is not None else ""


def _chosen(config: pytest.Config) -> dict[str, Row]:
    name = config.getoption("--algorithm")
    if name is None:
        return ROWS
    return rows_of(name, dict(configuration.parse_override(text) for text in config.getoption("--setting")))


@pytest.fixture
def observed(row: Row, world: World) -> Observed:
    """The run of this row that several checks ask about."""
    return observe(world(row))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """(row, changes) → configuration: a ResNet on digits, or a BERT with LoRA, and texts of unequal length."""

    def config(row: Row, **changes: Any) -> RunConfig:
        if request.param == "images":
            return small.images(row.name, **row.changes(**changes))
        folders: list[Path] = [request.getfixturevalue(name) for name in ("tiny_bert", "sentences")]
        return small.texts(row.name, *folders, **row.changes(**changes))

    return config
