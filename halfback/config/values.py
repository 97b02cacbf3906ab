"""Settings as Python values: keywords and mappings instead of `key=value` texts, with the same strict errors."""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from halfback.config import RunConfig, Tree, from_tree, parse_override, read_recipe, to_tree
from halfback.config.yaml_reading import check_plain
from halfback.errors import UserError, shown

Config = str | Path | Mapping[str, Any] | RunConfig | None
"""What to run: a shipped recipe's name, a YAML file's path, a mapping of settings, or a whole configuration."""

_AS_IT_IS = ("per_algorithm",)  # its keys are algorithms and its inner keys are paths


def resolve_values(config: Config, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration `config` with `settings` in the place of its own.

    A setting is named by its path, as `{"bottom.lr": 1e-3}`, or by sections, as `{"bottom": {"lr": 1e-3}}`: both change
    this one setting and leave the section's others as they are.

    Raises:
        UserError: an unknown recipe, key or value; the message is one line and names the nearest key.
    """
    if isinstance(config, RunConfig) and not settings:
        return config  # as it is: a tree can't hold every value that is refused later, such as NaN
    return from_tree(tree_of(config), paths_of(settings))


def tree_of(config: Config) -> Tree:
    """The settings of a configuration, by section."""
    if isinstance(config, RunConfig):
        return to_tree(config)
    if isinstance(config, Mapping):
        tree: Tree = {}
        for path, value in paths_of(config).items():
            *sections, last = path.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
                if not isinstance(inner, dict):
                    raise UserError(f"{path}: {section} is a single value, not a section")
            inner[last] = value
        return tree
    return {} if config is None else read_recipe(str(config))


def paths_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting by its whole path, sections opened up and values as YAML would have them.

    Raises:
        UserError: a key is no text, or a value is nothing that a recipe can hold.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise UserError(f"key {shown(key)}: a setting's name is text, as 'bottom.lr'")
        plain = _plain(key, value)
        check_plain(plain, key)
        found |= _opened(key, plain)
    return found


def text_of(path: str, value: Any) -> str:
    """The setting as `key=value`, which `parse_override` reads back; text without quotes where that is the same."""
    if isinstance(value, str) and parse_override(f"{path}={value}") == (path, value):
        return f"{path}={value}"
    return f"{path}={json.dumps(value)}"


def first_difference(ours: RunConfig, theirs: Tree) -> tuple[str, Any, Any] | None:
    """The first setting in which a configuration differs from the settings of another, with our value and theirs.

    What theirs don't name is at its default, in a section too: it became a setting later. `deployment` doesn't count:
    how long a server waits for clients changes nothing of what is trained.
    """
    for key, value in to_tree(ours).items():
        was = _completed(key, theirs[key]) if key in theirs else _default(key)
        if key != "deployment" and value != was:
            return key, value, was
    return None


def _default(key: str) -> Any:
    """Of a setting, as a tree has it; None of one that has no default."""
    found = RunConfig.model_fields[key].get_default(call_default_factory=True)
    return None if found is PydanticUndefined else TypeAdapter(type(found)).dump_python(found, mode="json")


def _completed(key: str, section: Any) -> Any:
    """A section of a tree with the defaults of what it doesn't name; any other value, and what is none, as it is."""
    kind: Any = RunConfig.model_fields[key].annotation
    is_section = is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel))
    if not is_section or not isinstance(section, dict):
        return section
    try:
        adapter = TypeAdapter(kind)
        return adapter.dump_python(adapter.validate_python(section), mode="json") | section
    except (ValidationError, UserError):
        return section


def _opened(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value or path in _AS_IT_IS:
        return {path: value}
    return {inner: last for key, entry in value.items() for inner, last in _opened(f"{path}.{key}", entry).items()}


def _plain(path: str, value: Any) -> Any:
    """Lists for tuples and text for paths, since a recipe has neither; UserError for what it can't hold at all."""
    if isinstance(value, Mapping):
        return {_key(path, key): _plain(path, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(path, inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{path}={shown(value)}: a {type(value).__name__} is nothing that a setting can be")


def _key(path: str, key: Any) -> str:
    if not isinstance(key, str):
        raise UserError(f"{path}: the key {shown(key)} is no text")
    return key
