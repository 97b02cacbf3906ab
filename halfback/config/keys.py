"""Every setting with its kind, its default and a line about it, from the sections and options themselves."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

from pydantic import TypeAdapter

from halfback.config.schema import RunConfig
from halfback.data.options import TaskOptions
from halfback.masking.settings import Secure
from halfback.models.adapters import Lora
from halfback.parties.attack import Attack
from halfback.parties.cohort import Robust
from halfback.parties.server_step import ServerStep
from halfback.privacy.settings import Privacy

_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
_SECTIONS = (TaskOptions, Lora, Robust, Attack, ServerStep, Secure, Privacy)
_PLAIN: dict[str, type] = {kind.__name__: kind for kind in _SECTIONS}


@dataclass(frozen=True)
class Key:
    """A setting.

    Attributes:
        path: as `bottom.lr`, or an option's own name.
        kind: what is allowed, in words.
        default: as it is written in YAML; "" where one must be given.
        says: what it is, in one line.
    """

    path: str
    kind: str
    default: str
    says: str


def keys() -> list[Key]:
    """All settings of a recipe, but the options of algorithms and controllers, in the order of the sections."""
    schema = RunConfig.model_json_schema()
    return [*_below("", schema, schema["$defs"])]


def keys_of(prefix: str) -> list[Key]:
    """Those of `keys` whose path begins with a prefix."""
    return [key for key in keys() if key.path.startswith(prefix)]


def options_of(kind: type) -> list[Key]:
    """The options of an algorithm, a codec or a controller: the fields of a frozen dataclass."""
    schema = TypeAdapter(kind).json_schema()
    said, found = entries(inspect.getdoc(kind) or ""), []
    for field in fields(cast(Any, kind)):
        own = schema["properties"][field.name]
        given = field.default if field.default is not MISSING else own.get("default", MISSING)
        default = "" if given is MISSING and field.default_factory is MISSING else _written(_no_factory(given))
        found.append(Key(field.name, _kind(own, schema.get("$defs", {})), default, said.get(field.name, "")))
    return found


def entries(doc: str) -> dict[str, str]:
    """Name → what a docstring's section "Attributes" says of it, in one line."""
    _, _, section = doc.partition("\nAttributes:\n")
    return {name: _one_line(text) for names, text in _ENTRY.findall(section) for name in names.split(", ")}


def _below(path: str, schema: Mapping[str, Any], defined: Mapping[str, Any]) -> Iterator[Key]:
    required = schema.get("required", ())
    said = entries(inspect.cleandoc(inspect.getdoc(_PLAIN[schema["title"]]) or "")) if schema["title"] in _PLAIN else {}
    for name, own in schema["properties"].items():
        section = _section(own, defined)
        if section is not None:
            yield from _below(f"{path}{name}.", section, defined)
            continue
        default = "" if name in required else _written(own.get("default"))
        says = _one_line(own.get("description", "")) or said.get(name, "")
        yield Key(path + name, _kind(own, defined), default, says)


def _section(schema: Mapping[str, Any], defined: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a setting is, be it one that may be left away; None for a value."""
    for one in (schema, *schema.get("anyOf", ())):
        if "$ref" in one:
            found: Mapping[str, Any] = defined[one["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _kind(schema: Mapping[str, Any], defined: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _kind(defined[schema["$ref"].rpartition("/")[2]], defined)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one, defined) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type", "text")
    if kind == "array":
        return "list"
    words = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text", "null": "null"}
    bounds = (("minimum", "from"), ("exclusiveMinimum", "above"), ("exclusiveMaximum", "below"), ("maximum", "to"))
    said = [f"{word} {_number(schema[bound])}" for bound, word in bounds if bound in schema]
    return " ".join([words.get(kind, "mapping"), *said])


def _number(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


def _no_factory(value: Any) -> Any:
    return {} if value is MISSING else value


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
