"""YAML as we read it everywhere: recipes, settings on the command line, run folders, a site's file.

Plain words mean what YAML 1.2's core schema says: `yes`, `no`, `on`, `off` and dates are text, `1e-3` is a number. A
plain word that would be a number or true/false is text where the setting takes text, so a column can be called `1`.
Files come from other people, so what they may hold is bounded: a file's size, its values with every alias counted as
often as it stands for something, its depth, and the size of a number.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, final, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from halfback.errors import UserError

MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1 << 20, 20_000, 50
_MOST = 1 << 63  # of a whole number
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = {  # tag → the plain words that have it, and the characters that they begin with
    "tag:yaml.org,2002:null": (_NULL, ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (_BOOL, list("tTfF")),
    "tag:yaml.org,2002:int": (_INT, list("-+0123456789")),
    "tag:yaml.org,2002:float": (_FLOAT, list("-+.0123456789")),
    "tag:yaml.org,2002:merge": (re.compile("<<"), ["<"]),
}
_KEYS = ("str", "null", "bool", "int", "float")  # a plain word that is a key is text, whatever it reads as
_MERGE, _MAP, _SEQ = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "map", "seq"))


@final
@dataclasses.dataclass(frozen=True)
class Word:
    """A plain word that reads as a number or as true or false: `settled` says which of the two a setting takes."""

    text: str
    value: bool | int | float


def read(path: Path, name: str) -> Any:
    """What a file holds, with a `Word` for each plain word that is a number or true or false.

    Raises:
        UserError: it can't be read, or is not the YAML that we take; begins with `name`.
    """
    try:
        with path.open("rb") as file:
            found = file.read(MAX_BYTES + 1)
        if len(found) > MAX_BYTES:
            raise UserError(f"{name} is too large: up to {MAX_BYTES:,} bytes are allowed")
        text = found.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    return parse(text, name)


def parse(text: str, name: str) -> Any:
    """What a text holds, as `read`; NoYaml where it breaks YAML's own rules."""
    try:
        return _value(_Loader(text).get_single_node())
    except ValueError:  # of PyYAML, for an escape beyond Unicode
        raise NoYaml(f"{name} is no YAML: an escape such as \\U00110000 names no character") from None
    except _Refused as error:
        raise UserError(f"{name}, line {error.line}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise NoYaml(f"{name} is no YAML: line {line}") from None


def check_plain(value: Any, name: str, depth: int = 1) -> int:
    """How many values there are in what came by another way than YAML, a job's JSON say.

    Raises:
        UserError: it is more, or something else, than a YAML file may hold; begins with `name`.
    """
    if depth > MAX_DEPTH:
        raise UserError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, int) and abs(value) >= _MOST:
        raise UserError(f"{name}: a number is out of range")
    if isinstance(value, str) and _has_no_text(value):
        raise UserError(f"{name}: {value[:40]!r} has a character that no text may have")
    found, inside = 1, []
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        inside = list(value)
    for inner in inside:
        found += check_plain(inner, name, depth + 1)
        if found > MAX_VALUES:
            raise UserError(f"{name}: more than {MAX_VALUES:,} values")
    return found


def settled(value: Any, kind: Any) -> Any:
    """The value with every `Word` as a setting of this type takes it: the text as it stands where the type is text.

    `kind`: a type, a section (pydantic model or dataclass) or None where nothing is known, and then a number is one.
    """
    if isinstance(value, Word):
        is_text = _takes_text(kind) or (isinstance(value.value, bool) and _takes_numbers(kind))  # true is no 1
        return value.text if is_text else value.value
    if isinstance(value, dict):
        kinds = keys_of(kind)
        return {key: settled(inner, kinds.get(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [settled(inner, _entry_of(kind)) for inner in value]
    return value


def keys_of(kind: Any) -> dict[str, Any]:
    """Key → type of a section, of `X | None` that of X; empty for what is no section or has keys of any name."""
    for inner in _members(kind):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if inner.model_config.get("extra") == "allow":
                return {}
            return {name: field.annotation for name, field in inner.model_fields.items()}
        if dataclasses.is_dataclass(inner):
            return dict(get_type_hints(inner))
    return {}


def dump(tree: Mapping[str, Any]) -> str:
    """Plain values as YAML, which `read` and readers of YAML 1.1 take for the same."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _takes_text(kind: Any) -> bool:
    return {*_members(kind)} - {type(None)} == {str}


def _takes_numbers(kind: Any) -> bool:
    return {*_members(kind)} - {type(None)} in ({int}, {float})


def _entry_of(kind: Any) -> Any:
    """The type of a list's entries; None where it is not known."""
    lists = [inner for inner in _members(kind) if get_origin(inner) in (list, tuple)]
    return get_args(lists[0])[0] if len(lists) == 1 else None


class NoYaml(UserError):
    """A text that is no YAML at all."""


class _Refused(Exception):
    """YAML, but none that we take."""

    def __init__(self, start: yaml.Mark, why: str) -> None:
        super().__init__(why)
        self.line = start.line + 1


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """To nodes alone: `_value` makes the values."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._sizes: dict[int, tuple[int, int]] = {}  # id of a complete node → values in it, levels of it
        self._opened: list[tuple[int, int]] = [(0, 0)]  # of each node on the way to this one, as far as it was seen

    def compose_node(self, parent: Any, index: Any) -> Any:
        start = self.peek_event().start_mark
        anchor = self.peek_event().anchor if self.check_event(yaml.AliasEvent) else None
        if len(self._opened) > MAX_DEPTH + 1:
            raise _Refused(start, f"nested deeper than {MAX_DEPTH} levels")
        self._opened.append((1, 1))
        node = super().compose_node(parent, index)
        values, levels = self._opened.pop()
        if anchor is not None:
            if id(node) not in self._sizes:
                raise _Refused(start, f"*{anchor} refers to what it stands in")
            values, levels = self._sizes[id(node)]
        self._sizes[id(node)] = (values, levels)
        before, deepest = self._opened[-1]
        self._opened[-1] = (before + values, max(deepest, levels + 1))
        if before + values > MAX_VALUES:
            raise _Refused(start, f"more than {MAX_VALUES:,} values, with what aliases stand for")
        if len(self._opened) + levels > MAX_DEPTH + 2:
            raise _Refused(start, f"nested deeper than {MAX_DEPTH} levels")
        return node


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that YAML 1.1 or we would read as something else."""


for _tag, (_pattern, _first) in _PLAIN.items():
    _whole = re.compile(f"(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(_tag, _whole, _first)
    _Dumper.add_implicit_resolver(_tag, _whole, _first)


def _value(node: Node | None) -> Any:
    if node is None:
        return None
    if isinstance(node, MappingNode) and node.tag == _MAP:
        return _mapping(node)
    if isinstance(node, SequenceNode) and node.tag == _SEQ:
        return [_value(inner) for inner in node.value]
    if isinstance(node, ScalarNode):
        return _scalar(node)
    raise _Refused(node.start_mark, f"the tag {node.tag!r} is not allowed")


def _mapping(node: MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, inner in node.value:
        if not isinstance(key, ScalarNode):
            raise _Refused(key.start_mark, "a key must be text")
        if key.tag == _MERGE:
            for section in reversed(inner.value) if isinstance(inner, SequenceNode) else [inner]:
                if not isinstance(section, MappingNode):
                    raise _Refused(section.start_mark, "<< takes a section, or a list of them")
                merged |= _mapping(section)
            continue
        if not key.tag.startswith("tag:yaml.org,2002:") or key.tag.partition("2002:")[2] not in _KEYS:
            raise _Refused(key.start_mark, f"the tag {key.tag!r} is not allowed")
        name = _text(key)
        if name in found:
            raise _Refused(key.start_mark, f"key {name!r} is there twice")
        found[name] = _value(inner)
    return merged | found


def _scalar(node: ScalarNode) -> Any:
    text = _text(node)
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "null" if _NULL.fullmatch(text):
            return None
        case "bool" if _BOOL.fullmatch(text):
            return Word(text, text.lower() == "true")
        case "int" if _INT.fullmatch(text):
            if len(text) > 50 or abs(number := int(text, 0 if text[:2] in ("0o", "0x") else 10)) >= _MOST:
                raise _Refused(
                    node.start_mark, f"the number {text[:12]}… has {len(text)} digits, which is out of range"
                )
            return Word(text, number)
        case "float" if _FLOAT.fullmatch(text) or _INT.fullmatch(text):
            if text[:2] in ("0o", "0x"):
                real = float(int(text, 0)) if len(text) <= 50 else math.inf
            else:
                plain = text.lower().replace(".inf", "inf").replace(".nan", "nan")
                real = float(plain) if len(text) < 400 else math.inf
            if math.isinf(real) and "inf" not in text.lower():
                raise _Refused(node.start_mark, f"the number {text[:40]} is out of range")
            return Word(text, real)
        case "str" | "merge":
            return text
    raise _Refused(node.start_mark, f"the tag {node.tag!r} is not allowed" + (f" for {text[:40]!r}" if text else ""))


def _text(node: ScalarNode) -> str:
    """A scalar's text; refused where no file name or file could hold it."""
    text = str(node.value)
    if _has_no_text(text):
        raise _Refused(node.start_mark, f"{text[:40]!r} has a character that no text may have")
    return text


def _has_no_text(text: str) -> bool:
    return "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)
