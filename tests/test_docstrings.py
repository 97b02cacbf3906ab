"""Public names say, in one form, what they take, give and hold: reference pages are made of it."""

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import halfback

_REFERENCE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
_SEAMS = _REFERENCE.partition("## What methods are written against")[2]
SEAMS = re.findall(r"^::: halfback\.(\S+)$", _SEAMS, re.MULTILINE)
_ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:", re.MULTILINE)


def public() -> Iterator[tuple[str, Any]]:
    """(path, thing), each once: what the seams define, and what `import halfback` gives."""
    seen = set()
    modules = [(seam, importlib.import_module(f"halfback.{seam}")) for seam in SEAMS]
    for root, thing in [*modules, *((name, getattr(halfback, name)) for name in getattr(halfback, "__all__", ()))]:
        for path, found in _of(root, thing):
            if id(found) not in seen:
                seen.add(id(found))
                yield path, found


def _of(path: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """A thing, and what it holds: a module's own names, a class's public methods.

    What a protocol of a module says of a method, a class beside it need not say again.
    """
    if isinstance(thing, ModuleType):
        own = {name: inner for name, inner in vars(thing).items() if getattr(inner, "__module__", "") == thing.__name__}
        said = {method for inner in own.values() if getattr(inner, "_is_protocol", False) for method in vars(inner)}
        for name in (name for name in own if not name.startswith("_")):
            again = set() if getattr(own[name], "_is_protocol", False) else said
            yield from (
                (found, inner)
                for found, inner in _of(f"{path}.{name}", own[name])
                if inner is own[name] or found.rpartition(".")[2] not in again
            )
    elif inspect.isclass(thing):
        yield path, thing
        for name, inner in vars(thing).items():
            if not name.startswith("_") and inspect.isfunction(_bare(inner)):
                yield f"{path}.{name}", inner
    elif inspect.isfunction(thing):
        yield path, thing


def _bare(thing: Any) -> Any:
    return thing.__func__ if isinstance(thing, (staticmethod, classmethod)) else thing


def section(doc: str, title: str) -> set[str]:
    """The names of a section's entries."""
    found = re.search(rf"^{title}:\n((?:(?:    .*)?\n?)*)", doc, re.MULTILINE)
    return {name.strip(" *") for names in _ENTRY.findall(found[1]) for name in names.split(",")} if found else set()


def missing(thing: Any) -> list[str]:
    """What a docstring doesn't say."""
    thing = _bare(thing.fget if isinstance(thing, property) else thing)
    doc = inspect.cleandoc(thing.__doc__ or "") + "\n"
    summary = doc.split("\n\n")[0].strip()
    lacking = [] if summary.endswith((".", ":")) and summary else ["a first sentence"]
    if inspect.isclass(thing):
        fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        lacking += [f"Attributes: {f.name}" for f in fields if f.name not in section(doc, "Attributes") and f.init]
        if "__init__" in vars(thing) and not fields and not getattr(thing, "_is_protocol", False):
            made = inspect.cleandoc(vars(thing)["__init__"].__doc__ or "")
            attributes = {f"Args: {name}" for name in section(doc, "Attributes")}
            lacking += [name for name in _arguments(vars(thing)["__init__"], f"{made}\n") if name not in attributes]
        return lacking
    lacking += _arguments(thing, doc)
    gives = thing.__annotations__.get("return")
    if gives not in (None, "None", type(None), typing.NoReturn) and not re.search(r"^(Returns|Yields):$", doc, re.M):
        lacking.append("Returns")
    return lacking


def _arguments(function: Callable[..., Any], doc: str) -> list[str]:
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    return [f"Args: {name}" for name in names if name not in section(doc, "Args")]


@pytest.mark.parametrize(("path", "thing"), [pytest.param(path, thing, id=path) for path, thing in public()])
def test_a_public_name_says_what_it_takes_gives_and_holds(path: str, thing: Any) -> None:
    assert missing(thing) == [], path


def test_the_test_sees_what_is_missing() -> None:
    def silent(one: int, *, two: int) -> int:
        """Adds.

        Args:
            one: a number.
        """
        return one + two

    assert missing(silent) == ["Args: two", "Returns"]

    @dataclasses.dataclass
    class Silent:
        """Holds.

        Attributes:
            one: a number.
        """

        one: int
        two: int

    assert missing(Silent) == ["Attributes: two"]
