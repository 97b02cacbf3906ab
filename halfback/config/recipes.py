"""From a recipe and changes to a configuration, and from a configuration back to text."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from halfback.algorithms import algorithms
from halfback.config import yaml_reading
from halfback.config.facts import Chosen
from halfback.config.rules import check
from halfback.config.schema import AlgorithmConfig, RunConfig, Tree
from halfback.errors import UserError, offer, shown
from halfback.parties.protocol import Algorithm


def recipes() -> dict[str, str]:
    """Shipped recipes: name → what it claims (the comment on its first line)."""
    folder = files("halfback") / "recipes"
    found = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return {name: found[name].read_text().splitlines()[0].lstrip("# ") for name in sorted(found)}


def resolve(recipe: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """A recipe (a shipped name or a YAML path) with `key.path=value` overrides.

    Raises:
        UserError: an unknown recipe, key or value; the message is one line and names the nearest key.
    """
    tree = read_recipe(recipe) if recipe is not None else {}
    changes = dict(parse_override(override) for override in overrides)  # of a key given twice the last counts
    return from_tree(tree, changes)


@cache
def _checked(kind: type[Algorithm]) -> TypeAdapter[Algorithm]:
    """What checks a method's options; it takes milliseconds to make."""
    return TypeAdapter(kind)


def from_tree(tree: Tree, changes: Mapping[str, Any]) -> RunConfig:
    """A tree of settings with changes by key path.

    Choosing another algorithm than the tree's drops the options of that one and takes the tree's `per_algorithm`
    settings of the chosen one; `changes` come last.
    """
    tree = _copied(tree)
    algorithm = tree.get("algorithm")
    chosen = changes.get("algorithm.name")
    if isinstance(chosen, str) and isinstance(algorithm, dict) and chosen != algorithm.get("name"):
        _spell_out(tree, algorithm)
        tree["algorithm"] = {"name": chosen}
        for path, value in _per_algorithm(tree).get(chosen, {}).items():
            _set(tree, path, value)
    for path, value in changes.items():
        _set(tree, path, value)
    _check_keys(tree, RunConfig, "")
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None
    _check_names(config)
    check(Chosen(config, build_algorithm(config)))
    # Spelt out, so that a run's folder still says what it did when a default has changed.
    options = {"name": config.algorithm.name} | _options_of(config.algorithm.name) | config.algorithm.options()
    return config.model_copy(update={"algorithm": AlgorithmConfig.model_validate(options)})


def build_algorithm(config: RunConfig) -> Algorithm:
    """The chosen algorithm with its options.

    Raises:
        UserError: an option has a value that is not allowed.
    """
    kind = algorithms()[config.algorithm.name]
    try:
        return _checked(kind).validate_python(config.algorithm.options())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Of an option that may be of several kinds, the kind that was tried is no part of its name.
        path = ".".join(str(part) for place, part in enumerate(first["loc"]) if not place or isinstance(part, int))
        raise UserError(f"algorithm.{path}={first['input']!r}: {first['msg']}") from None


def _per_algorithm(tree: Tree) -> dict[str, Tree]:
    by_name = tree.get("per_algorithm") or {}
    if not isinstance(by_name, dict) or not all(isinstance(settings, dict) for settings in by_name.values()):
        raise UserError(
            f"per_algorithm={shown(by_name)}: settings by algorithm are allowed, as `name: {{key.path: value}}`"
        )
    return by_name


def _spell_out(tree: Tree, leaving: Tree) -> None:
    """Gives every algorithm its own value of each setting that `per_algorithm` touches, and `leaving` its options.

    So the way back, and on to a third, loses nothing: what an algorithm takes does not depend on which one ran before.
    """
    by_name = _per_algorithm(tree)
    touched = {path for settings in by_name.values() for path in settings if not path.startswith("algorithm.")}
    now = {path: _value_at(tree, path) for path in sorted(touched)}
    options = {f"algorithm.{option}": value for option, value in leaving.items() if option != "name"}
    every = dict.fromkeys([*algorithms(), *by_name])
    tree["per_algorithm"] = {name: now | dict(by_name.get(name, {})) for name in every}
    tree["per_algorithm"].setdefault(str(leaving.get("name")), {}).update(options)


def _value_at(tree: Tree, path: str) -> Any:
    """The setting's value in the tree, else its default."""
    value: Any = tree
    default: Any = RunConfig.model_construct()
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
        default = getattr(default, key, None)
    return _copied(default.model_dump() if isinstance(default, BaseModel) else default) if value is None else value


def load(path: Path) -> RunConfig:
    """The configuration that a run folder holds."""
    if path.exists() and not path.is_file():  # a pipe would never end
        raise UserError(f"{path} is not a file")
    return from_tree(_read_yaml(path), {})


def to_tree(config: RunConfig) -> Tree:
    """The configuration as plain values; `from_tree` reads it back."""
    return config.model_dump(mode="json")


def dump(config: RunConfig) -> str:
    """The configuration as YAML."""
    return yaml_reading.dump(to_tree(config))


def read_recipe(recipe: str) -> Tree:
    """The settings of a recipe, by a shipped name or the path of a YAML file, as they stand there.

    Raises:
        UserError: nobody knows it, or its text is none that we take.
    """
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        return _read_yaml(Path(recipe))
    known = recipes()
    if recipe not in known:
        raise UserError(f"recipe {shown(recipe)} is unknown; {offer(recipe, known)} (or the path of a YAML file)")
    return _parse_yaml(recipe_text(recipe), recipe)


def recipe_text(name: str) -> str:
    """The text of a shipped recipe."""
    return (files("halfback") / "recipes" / f"{name}.yaml").read_text()


def _read_yaml(path: Path) -> Tree:
    return _section_of(yaml_reading.read(path, f"recipe {str(path)!r}"), str(path))


def _parse_yaml(text: str, name: str) -> Tree:
    return _section_of(yaml_reading.parse(text, f"recipe {name!r}"), name)


def _section_of(found: Any, name: str) -> Tree:
    if not isinstance(found, dict):
        raise UserError(f"recipe {name!r} must be a mapping of settings")
    return {key: _settled(value, key) for key, value in found.items()}


def parse_override(text: str) -> tuple[str, Any]:
    """The key path and the value of `key.path=value`; UserError if it is not of this form."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise UserError(f"{shown(text)} is not of the form key=value")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}={shown(value)} is not UTF-8") from None
    try:
        parsed = yaml_reading.parse(value, path)
    except yaml_reading.NoYaml:
        return path, value
    if isinstance(parsed, str) and value.lstrip()[:1] not in ("'", '"'):
        parsed = value
    return path, _settled(parsed, path)


def _settled(value: Any, path: str) -> Any:
    """A setting's value with each plain word as the setting at this path takes it."""
    if path == "per_algorithm" and isinstance(value, dict):
        return {name: _settled(settings, f"{path}.{name}") for name, settings in value.items()}
    if path.startswith("per_algorithm.") and isinstance(value, dict):
        return {inner: _settled(setting, inner) for inner, setting in value.items()}
    kind: Any = RunConfig
    for key in path.split("."):
        kind = yaml_reading.keys_of(kind).get(key)
    return yaml_reading.settled(value, kind)


def _copied(value: Any) -> Any:
    """A copy in which nothing is shared, though YAML's anchors share parts: a change of one must not change another."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _set(tree: Tree, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        inner = tree.setdefault(parent, {})
        if inner is None:
            inner = tree[parent] = {}
        if not isinstance(inner, dict):
            raise UserError(f"{path}: {parent} is a single value, not a section")
        tree = inner
    tree[last] = value


def _check_keys(tree: Any, kind: Any, path: str) -> None:
    keys = yaml_reading.keys_of(kind)
    if not keys or tree is None:
        return
    if not isinstance(tree, dict):
        raise UserError(f"{path.rstrip('.')}={shown(tree)} is a single value; it has the keys {', '.join(keys)}")
    for key, value in tree.items():
        if key not in keys:
            raise UserError(f"key {shown(path + str(key))} is unknown; {offer(str(key), keys)}")
        _check_keys(value, keys[key], f"{path}{key}.")


def _options_of(algorithm: str) -> Tree:
    """The options that an algorithm declares, with their defaults."""
    declared: Any = algorithms()[algorithm]
    return {option.name: option.default for option in dataclasses.fields(declared)}


def _check_names(config: RunConfig) -> None:
    """UserError for an algorithm that nobody knows, or a key that one doesn't have."""
    known = algorithms()
    for name in (config.algorithm.name, *config.beside, *config.per_algorithm):
        if name not in known:
            raise UserError(f"algorithm {shown(name)} is unknown; {offer(name, known)}")
    for name, settings in config.per_algorithm.items():
        for path in settings:
            _check_path(path, f"per_algorithm.{name}", name)
    allowed = list(_options_of(config.algorithm.name))
    for option in config.algorithm.options():
        if option not in allowed:
            has = offer(option, ["name", *allowed]) if allowed else "it has no options"
            raise UserError(f"key 'algorithm.{option}' is unknown to {config.algorithm.name}; {has}")


def _check_path(path: str, where: str, algorithm: str) -> None:
    keys = yaml_reading.keys_of(RunConfig)
    for key in path.split("."):
        if keys and key not in keys:
            raise UserError(f"{where}: key {shown(path)} is unknown; {offer(key, keys)}")
        kind = keys.get(key)
        keys = {**_options_of(algorithm), "name": None} if kind is AlgorithmConfig else yaml_reading.keys_of(kind)


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{path} is missing: set {path}=…, or name a recipe first (`halfback recipes`)"
    message = first["msg"][0].lower() + first["msg"][1:]
    hint = ""
    if first["type"] == "tuple_type":
        hint = f"; write a list, as in {path}=[{str(first['input'])[:200]}]"
    elif first["type"] == "string_type":
        hint = "; put text that YAML reads as something else (null) in quotes"
    return f"{path}={shown(first['input'])}: {message}{hint}"
