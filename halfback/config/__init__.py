"""The configuration: typed and strict."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from halfback.algorithms import algorithms
from halfback.config import yaml_reading
from halfback.data.options import TaskOptions
from halfback.errors import UserError, offer, shown
from halfback.models.adapters import BottomTrained, Lora
from halfback.parties.cohort import Robust
from halfback.zeroth.replay import Shape

Tree = dict[str, Any]

_MANY = 1_000_000_000  # of whatever is counted
_CLIENTS = 1_000_000  # each has a place in lists


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AlgorithmConfig(BaseModel):
    """Which algorithm; the other keys are the options that it declares."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    def options(self) -> Tree:
        """The options alone."""
        return dict(self.model_extra or {})


class PretrainConfig(_Section):
    """The server's own training of the whole model before it is cut and handed out."""

    task: str
    steps: int = Field(ge=1, le=_MANY)
    batch_size: int = Field(default=64, ge=1, le=_MANY)
    lr: float = Field(default=1e-3, gt=0, le=1e4)


class ModelConfig(_Section):
    """The model and where it is cut."""

    name: str
    """A packaged model, a ResNet, a local folder or file, or a Hugging Face name; see `halfback models`."""
    cut: int | list[int]
    """How many of the model's blocks run on the device; a list gives client i the entry i modulo its length."""
    head: int | None = None
    """U-shape: how many of the last blocks run on the device too, with the final norm and the head layer, so that
    labels are not sent (the gradients that are tell them: docs/privacy.md). Null: all after the cut is the server's."""
    auxiliary: Literal["linear"] | int = "linear"
    """What gives a device a loss of its own, for methods that need one (CSE-FSL, FSL-SAGE, HERON-SFL): a linear layer
    on pooled activations, or a copy of that many of the top's first blocks with its norm and head layer."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pretrain: PretrainConfig | None = None

    def cut_of(self, client: int) -> int:
        """Blocks that run on this client."""
        return self.cut if isinstance(self.cut, int) else self.cut[client % len(self.cut)]

    @field_validator("cut", mode="before")
    @classmethod
    def _one_or_a_list(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) and value else [value]
        if not all(type(entry) is int for entry in entries):
            raise PydanticCustomError(
                "cut", "a number of blocks, or a list of them for the clients in turn, is allowed"
            )
        return value

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _linear_or_blocks(cls, value: Any) -> Any:
        if value != "linear" and type(value) is not int:
            # A union would answer with one line for each of its kinds.
            raise PydanticCustomError("auxiliary", "'linear' or a number of blocks is allowed")
        return value


class BottomConfig(_Section):
    """How the device's part is trained."""

    train: BottomTrained = "lora"
    """What of it; see `models.adapters.set_trainable`."""
    optimizer: Literal["sgd", "momentum", "adamw", "sign"] = "adamw"
    """`sign`: of the estimate, for algorithms that replay slopes."""
    lr: float = Field(default=1e-3, gt=0, le=1e4)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1e4)
    schedule: Shape = "constant"
    """How the learning rate goes on behind the warm-up, to nothing at the last step unless it is constant."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises."""
    clip: float | None = Field(default=None, gt=0)
    normalize: bool = False
    """Divide each update by the norm of its own slopes; for algorithms that replay slopes."""
    law: Literal["rademacher", "gaussian"] = "rademacher"
    """Law of the directions, for algorithms that replay slopes."""


class TopConfig(_Section):
    """How the server's part is trained."""

    train: Literal["lora", "full"] = "lora"
    optimizer: Literal["sgd", "momentum", "adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, le=1e4)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1e4)
    schedule: Shape = "constant"
    warmup: int = Field(default=0, ge=0)
    clip: float | None = Field(default=None, gt=0)


class PartitionConfig(_Section):
    """Which client holds which training rows."""

    name: Literal["iid", "dirichlet", "shards"] = "iid"
    alpha: float = Field(default=0.5, gt=0)


class CodecsConfig(_Section):
    """What each link does to its values: names of codecs, or mappings of a name and options, applied in this order."""

    activations_up: tuple[str | Tree, ...] = ()
    activations_down: tuple[str | Tree, ...] = ()
    gradient_up: tuple[str | Tree, ...] = ()
    gradient_down: tuple[str | Tree, ...] = ()


class ControllerConfig(BaseModel):
    """What sets the thresholds of temporal reuse; the other keys are the options that it declares."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "fixed"

    def options(self) -> Tree:
        """The options alone."""
        return dict(self.model_extra or {})


class DeploymentConfig(_Section):
    """What the server does about clients on other machines that are late or gone; see docs/deploy.md."""

    deadline: float = Field(default=120, gt=0, le=1e6)
    """Seconds that a client has for an answer in a round; one that needs longer is dropped from the round."""
    min_cohort: int | None = Field(default=None, ge=1)
    """Clients of a cohort that are enough to go on with; null for all of them, and then a run has the bits that it
    would have in one process, whatever dies and comes back."""
    patience: float = Field(default=600, gt=0, le=1e6)
    """Seconds that a round waits for enough clients until the run stops."""


class RunConfig(_Section):
    """One run."""

    algorithm: AlgorithmConfig
    task: TaskOptions
    model: ModelConfig
    bottom: BottomConfig = BottomConfig()
    top: TopConfig = TopConfig()
    lora: Lora = Lora()
    partition: PartitionConfig = PartitionConfig()
    codecs: CodecsConfig = CodecsConfig()
    controller: ControllerConfig = ControllerConfig()
    robust: Robust = Robust()
    deployment: DeploymentConfig = DeploymentConfig()
    clients: int = Field(default=10, ge=1, le=_CLIENTS)
    sampled_clients: int = Field(default=3, ge=1, le=_CLIENTS)
    steps: int = Field(default=300, ge=1, le=_MANY)
    """Optimiser steps: one batch of each sampled client."""
    steps_per_round: int = Field(default=1, ge=1, le=_MANY)
    """Steps that a sampled cohort takes before the next one is sampled."""
    batch_size: int = Field(default=16, ge=1, le=_MANY)
    """Rows of one client's batch."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    eval_every: int = Field(default=50, ge=1, le=_MANY)
    """Rounds between two evaluations."""
    eval_batch_size: int = Field(default=128, ge=1, le=_MANY)
    checkpoint_every: int = Field(default=50, ge=1, le=_MANY)
    """Rounds between two checkpoints."""
    memory_every: int = Field(default=100, ge=1, le=_MANY)
    """Rounds between two in which memory is measured; measuring slows a round down."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False
    per_algorithm: dict[str, Tree] = Field(default_factory=dict)
    """Settings that another algorithm takes instead when it is chosen, as `key.path: value`."""
    beside: tuple[str, ...] = ()
    """Algorithms to run after this one on the same work, for the closing table."""


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
    _check_algorithm(config)
    declared = dataclasses.fields(_dataclass(config.algorithm.name))
    defaults = {option.name: option.default for option in declared if option.default is not dataclasses.MISSING}
    # Spelt out, so that a run's folder still says what it did when a default has changed.
    options = {"name": config.algorithm.name} | defaults | config.algorithm.options()
    return config.model_copy(update={"algorithm": AlgorithmConfig.model_validate(options)})


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
    """The settings of a shipped recipe, or of the YAML file at this path; UserError where there is none."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        return _read_yaml(Path(recipe))
    known = recipes()
    if recipe not in known:
        raise UserError(f"recipe {shown(recipe)} is unknown; {offer(recipe, known)} (or the path of a YAML file)")
    return _parse_yaml((files("halfback") / "recipes" / f"{recipe}.yaml").read_text(), recipe)


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


def _keys_of(kind: Any) -> dict[str, Any] | None:
    """Key → type of a section; None where the keys are free or the value is no section."""
    if get_origin(kind) is not None:  # X | None
        kind = next((inner for inner in get_args(kind) if isinstance(inner, type) and inner is not type(None)), kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.model_config.get("extra") == "forbid":
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return None


def _check_keys(tree: Any, kind: Any, path: str) -> None:
    keys = _keys_of(kind)
    if keys is None or tree is None:
        return
    if not isinstance(tree, dict):
        raise UserError(f"{path.rstrip('.')}={shown(tree)} is a single value; it has the keys {', '.join(keys)}")
    for key, value in tree.items():
        if key not in keys:
            raise UserError(f"key {shown(path + str(key))} is unknown; {offer(str(key), keys)}")
        _check_keys(value, keys[key], f"{path}{key}.")


def _dataclass(algorithm: str) -> Any:
    """The algorithm, whose fields are its options."""
    return algorithms()[algorithm]


def _check_algorithm(config: RunConfig) -> None:
    known = algorithms()
    for name in (config.algorithm.name, *config.beside, *config.per_algorithm):
        if name not in known:
            raise UserError(f"algorithm {shown(name)} is unknown; {offer(name, known)}")
    for name, settings in config.per_algorithm.items():
        for path in settings:
            _check_path(path, f"per_algorithm.{name}", known[name])
    chosen = _dataclass(config.algorithm.name)
    needs = {name: kind().needs for name, kind in known.items()}  # of their defaults
    mine = needs[config.algorithm.name]
    allowed = [field.name for field in dataclasses.fields(chosen)]
    for option in config.algorithm.options():
        if option not in allowed:
            has = offer(option, ["name", *allowed]) if allowed else "it has no options"
            raise UserError(f"key 'algorithm.{option}' is unknown to {config.algorithm.name}; {has}")
    if config.bottom.normalize and mine.backpropagates and mine.boundaries is None:
        raise UserError(
            f"bottom.normalize=true: {config.algorithm.name} has gradients, not slopes; set bottom.normalize=false"
        )
    if config.model.head is not None and "u_shape" not in mine.fits:
        able = ", ".join(name for name, other in needs.items() if "u_shape" in other.fits)
        raise UserError(
            f"model.head={config.model.head}: {config.algorithm.name} can't leave the head on the device; "
            f"use model.head=null, or one of {able}"
        )
    mixed = len({config.model.cut_of(client) for client in range(config.clients)}) > 1
    if mixed and "mixed_cuts" not in mine.fits:
        able = ", ".join(name for name, other in needs.items() if "mixed_cuts" in other.fits)
        raise UserError(
            f"model.cut={config.model.cut}: {config.algorithm.name} has one cut for all clients; use a number, or "
            f"one of {able}"
        )
    least = config.deployment.min_cohort
    if least is not None and least > config.sampled_clients:
        raise UserError(
            f"deployment.min_cohort={least}: at most sampled_clients={config.sampled_clients} are allowed, or null"
        )
    if config.sampled_clients > config.clients:
        raise UserError(f"sampled_clients={config.sampled_clients}: at most clients={config.clients} are allowed")
    if config.robust.name != "none":
        _check_robust(config.robust, config.algorithm.name, config.sampled_clients)
        if config.algorithm.options().get("aggregation", mine.agreement.aggregation) == "rows":
            raise UserError(
                f"algorithm.aggregation=rows: robust.name={config.robust.name} counts clients alike; use "
                "algorithm.aggregation=uniform, or robust.name=none"
            )


def _check_robust(robust: Robust, algorithm: str, sampled_clients: int) -> None:
    needs = {name: kind().needs for name, kind in algorithms().items()}
    able = [n for n, each in needs.items() if each.agreement.keeps_history and each.turns != "one_by_one"]
    if algorithm not in able:
        raise UserError(
            f"robust.name={robust.name}: no slopes of several clients come together in {algorithm}; use "
            f"robust.name=none, or one of {', '.join(able)}"
        )
    if sampled_clients < robust.needed:
        trim = f" with robust.trim={robust.trim}" if robust.name == "trimmed_mean" else ""
        raise UserError(
            f"sampled_clients={sampled_clients}: too few to tell who lies; robust.name={robust.name}{trim} needs "
            f"{robust.needed} or more"
        )


def _check_path(path: str, where: str, algorithm: Any) -> None:
    keys: dict[str, Any] | None = _keys_of(RunConfig)
    for key in path.split("."):
        if keys is not None and key not in keys:
            raise UserError(f"{where}: key {shown(path)} is unknown; {offer(key, keys)}")
        kind = None if keys is None else keys[key]
        own = {field.name: None for field in dataclasses.fields(algorithm)} | {"name": None}
        keys = own if kind is AlgorithmConfig else _keys_of(kind)


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
