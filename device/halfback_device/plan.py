"""What a package's recipe asks of a device: read, checked, and refused in one line where a device can't do it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from halfback_device.codecs import entries
from halfback_device.errors import PackageError
from halfback_device.facts import at, check_facts
from halfback_device.masking.rules import SumRules
from halfback_device.methods import METHODS
from halfback_device.replay import Replica, RowForm
from halfback_device.seeds import Directions, seeds_under
from halfback_device.slopes import Probe
from halfback_device.update import Falls, UpdateRule, schedule

# Slopes of a step, where the recipe leaves them to the method.
_DIRECTIONS = {"ho_sfl": 2, "ho_sfl_pipelined": 2, "hosl": 10, "zo_sfl": 1}
_U_SHAPE = ("ho_sfl",)
_EXACT = ("ho_sfl",)
_SUMMED = ("ho_sfl", "ho_sfl_pipelined")  # of whose slopes a server needs the mean alone
_LARGEST = float(1 << 20)
_LINKS = ("activations_up", "activations_down", "gradient_up", "gradient_down", "slopes_up", "slopes_down")
# What a package and a run must have alike; what else θ depends on, the digest of the weights says.
SAME = (
    "algorithm",
    "bottom",
    "codecs",
    "seed",
    "batch_size",
    "steps",
    "steps_per_round",
    "sampled_clients",
    "model.cut",
    "model.head",
    "model.dtype",
    "top.train",
    "lora",
    "task.objective",
    "task.template",
    "task.verbaliser",
    "task.max_length",
    "task.image_size",
)
# Of rows that all clients have, these say which are whose.
OF_SHARED_ROWS = ("clients", "partition", "task.name", "task.train_rows", "task.holdout")


@dataclass(frozen=True)
class Plan:
    """A recipe as far as a device's work depends on it.

    Attributes:
        method: the algorithm's name.
        probe: how it takes slopes.
        exact_blocks: the last blocks whose gradient it takes exactly, from the first that has parameters of it on.
        rule: how agreed slopes move θ. falls: of a multistep schedule. law: of the directions.
        seed: of the run. batch_size: rows of a batch. clients: of the run.
        steps: of the run; steps_per_round: at most, of a round.
        has_head: the head and the labels are on the device (U-shape).
        rows_at_once: rows that go through the bottom at a time; None for all.
        turns: clients speak one after the other, so that agreed rows are not numbered as steps.
        codecs: the chain of each link that has one.
        sums: how a cohort adds up what its clients say of θ; None where the server hears each.
    """

    method: str
    probe: Probe
    exact_blocks: int
    rule: UpdateRule
    law: Any
    shape: Any
    falls: Falls
    warmup: int
    seed: int
    batch_size: int
    clients: int
    sampled: int
    steps: int
    steps_per_round: int
    has_head: bool
    rows_at_once: int | None
    codecs: Mapping[str, Any]
    sums: SumRules | None

    @property
    def agreed_rows(self) -> int:
        """The most rows of agreed slopes that a run comes to: where clients take turns, each client's step is one."""
        return self.steps * (self.sampled if self.method == "hosl" else 1)


def check_recipe(config: Any) -> None:
    """Refuses a recipe that a device can't do, whatever the model is.

    Raises:
        PackageError: names the setting.
    """
    name, head = _one_of(config, "algorithm.name", tuple(METHODS)), at(config, "model.head")
    if head is not None and name not in _U_SHAPE:
        raise PackageError(f"model.head={head!r}: of {name} a device can't do the U-shape")
    _one_of(config, "model.dtype", ("float32",))
    sums_of(config)
    if at(config, "client.memory") is not None:
        raise PackageError("client.memory: a device counts its whole process; use client.rows_at_once")
    blocks = at(config, "algorithm.exact_blocks", 0)
    if blocks and name not in _EXACT:
        raise PackageError(f"algorithm.exact_blocks={blocks!r}: {name} takes no exact gradients")
    for link, chain in _codecs(config).items():
        if not _is_chain(chain):
            raise PackageError(f"codecs.{link}: names of codecs, or mappings of a name and options, are allowed")
        entries(chain, f"codecs.{link}")


def sums_of(config: Any) -> SumRules | None:
    """How a cohort of a recipe adds up what its clients say of θ; None where the server hears each.

    Raises:
        PackageError: names the setting that can't be.
    """
    wanted = at(config, "secure.sum", False)
    if not isinstance(wanted, bool):
        raise PackageError(f"secure.sum={wanted!r:.40}: true or false is allowed")
    if not wanted:
        return None
    if (name := at(config, "algorithm.name")) not in _SUMMED:
        raise PackageError(f"secure.sum=true: of {name!r:.40} a device can't do it; of {', '.join(_SUMMED)} it can")
    if at(config, "codecs.slopes_up"):
        raise PackageError("codecs.slopes_up: secure.sum=true sends whole numbers; leave it empty")
    cohort = _whole(config, "sampled_clients", 3)
    bits = _whole(config, "secure.bits", 32, 64, otherwise=64)
    if bits not in (32, 64):
        raise PackageError(f"secure.bits={bits}: 32 or 64 is allowed")
    if (largest := _positive(config, "secure.range")) is None or largest > _LARGEST:
        raise PackageError(f"secure.range={largest!r}: more than 0 and at most {_LARGEST:.0f} is allowed")
    threshold = max(-(-2 * cohort // 3), 3)
    if at(config, "secure.threshold") is not None:
        threshold = _whole(config, "secure.threshold", cohort // 2 + 1, cohort)
    return SumRules(threshold, bits, largest, cohort, at(config, "algorithm.aggregation") == "rows")


def check_client(config: Any, client: int) -> None:
    """Refuses the number of a client that a recipe has not.

    Raises:
        PackageError: says which it has.
    """
    clients = _whole(config, "clients", 1)
    if not 0 <= client < clients:
        raise PackageError(
            f"client {client!s:.40}: the package's recipe has {clients}, so 0 to {clients - 1} are allowed"
        )


def check_cut(config: Any, client: int, blocks: int) -> None:
    """Refuses a client whose part of the model is not the package's, which has so many blocks.

    Raises:
        PackageError: says which cuts there are.
    """
    cuts = at(config, "model.cut")
    if isinstance(cuts, list) and cuts and cuts[client % len(cuts)] != blocks:
        raise PackageError(f"the package has {blocks} blocks, and client {client} of model.cut={cuts!r:.60} others")


def plan_of(manifest: Mapping[str, Any]) -> Plan:
    """The plan of a package.

    Raises:
        PackageError: names the setting that a device can't do, or that is none, or what else the manifest says wrongly.
    """
    check_facts(manifest)
    config = manifest.get("config")
    check_recipe(config)
    name, head = at(config, "algorithm.name"), at(config, "model.head")
    if head is not None and at(manifest, "graphs.head") is None:
        raise PackageError(f"model.head={head!r:.20}: the manifest's graphs have no head")
    blocks = at(config, "algorithm.exact_blocks", 0)
    if blocks != "all":
        _whole(config, "algorithm.exact_blocks", 0, manifest["model"]["cut"], otherwise=0)
    if bool(blocks) != bool(manifest["exact"]):
        count = len(manifest["exact"])
        raise PackageError(f"algorithm.exact_blocks={blocks!r:.20}, but the manifest's exact names {count} parameters")
    return Plan(
        method=name,
        probe=_probe(config, name, fewest=0 if blocks else 1),
        exact_blocks=_noted(manifest),
        rule=_rule(config),
        law=_one_of(config, "bottom.law", ("rademacher", "gaussian")),
        shape=_one_of(config, "bottom.schedule", ("constant", "linear", "cosine", "multistep")),
        falls=_falls(config),
        warmup=_whole(config, "bottom.warmup", 0),
        seed=_whole(config, "seed", 0, (1 << 63) - 1),
        batch_size=_whole(config, "batch_size", 1),
        clients=_whole(config, "clients", 1),
        sampled=_whole(config, "sampled_clients", 1),
        steps=_whole(config, "steps", 1),
        steps_per_round=_whole(config, "steps_per_round", 1),
        has_head=head is not None,
        rows_at_once=None if at(config, "client.rows_at_once") is None else _whole(config, "client.rows_at_once", 1),
        codecs=_codecs(config),
        sums=sums_of(config),
    )


def _noted(manifest: Mapping[str, Any]) -> int:
    """How many of the last blocks exact gradients go through: below the first that is trained no block has a graph."""
    exact = {f"0.{name}" for name in manifest["exact"]}
    inside = [not exact.isdisjoint(block["weights"]) for block in manifest["graphs"]["blocks"]]
    return len(inside) - inside.index(True) if True in inside else 0


def _probe(config: Any, name: str, *, fewest: int) -> Probe:
    own = name in ("hosl", "zo_sfl")  # whose estimator is not to be chosen
    estimator = "central" if own else _one_of(config, "algorithm.estimator", ("forward", "central"), "forward")
    return Probe(
        _whole(config, "algorithm.directions", fewest, otherwise=_DIRECTIONS[name]),
        _positive(config, "algorithm.radius"),
        "central" if estimator == "central" else "forward",
        None if own else _positive(config, "algorithm.clip_samples"),
    )


def _rule(config: Any) -> UpdateRule:
    optimizer: Any = _one_of(config, "bottom.optimizer", ("sgd", "momentum", "adamw", "sign"))
    normalize = at(config, "bottom.normalize", False)
    if not isinstance(normalize, bool):
        raise PackageError(f"bottom.normalize={normalize!r:.40}: true or false is allowed")
    return UpdateRule(
        optimizer=optimizer,
        lr=_number(config, "bottom.lr"),
        momentum=_number(config, "bottom.momentum"),
        weight_decay=_number(config, "bottom.weight_decay"),
        normalize=normalize,
        clip=_positive(config, "bottom.clip"),
    )


def _falls(config: Any) -> Falls:
    milestones, gamma = at(config, "bottom.milestones", []), at(config, "bottom.gamma", 0.1)
    if not isinstance(milestones, list) or not all(type(each) is int and each >= 0 for each in milestones):
        raise PackageError(f"bottom.milestones={milestones!r:.60}: a list of steps is allowed")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise PackageError(f"bottom.gamma={gamma!r:.40}: above 0, up to 1, is allowed")
    return Falls(milestones, gamma)


def replica_of(plan: Plan, manifest: Mapping[str, Any], theta: Mapping[str, Any]) -> Replica:
    """θ as a run begins with it, and what moves it."""
    return Replica(
        theta,
        plan.rule,
        Directions(seeds_under(plan.seed, "direction", "bottom"), plan.law),
        schedule=schedule(plan.shape, warmup=plan.warmup, total=plan.steps, falls=plan.falls),
        form=RowForm(manifest.get("groups"), manifest["exact"]),
    )


def _codecs(config: Any) -> dict[str, Any]:
    """The chain of each link that has one, as the recipe has it."""
    return {link: at(config, f"codecs.{link}") for link in _LINKS if at(config, f"codecs.{link}")}


def _is_chain(chain: Any) -> bool:
    """Whether it is a list of names, or of mappings that have one."""
    if not isinstance(chain, list):
        return False
    return all(isinstance(each.get("name") if isinstance(each, Mapping) else each, str) for each in chain)


def _one_of(config: Any, path: str, allowed: tuple[str, ...], otherwise: str | None = None) -> str:
    value = at(config, path, otherwise)
    if not isinstance(value, str) or value not in allowed:
        raise PackageError(f"{path}={value!r:.60}: a device can do {', '.join(allowed)}")
    return value


def _whole(config: Any, path: str, least: int, most: int = 1_000_000_000, *, otherwise: int | None = None) -> int:
    value = at(config, path, otherwise)
    if type(value) is not int or not least <= value <= most:
        raise PackageError(f"{path}={value!r:.40}: {least} to {most} are allowed")
    return value


def _number(config: Any, path: str) -> float:
    value = at(config, path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _within(value, lambda v: 0 <= v <= 1e4):
        raise PackageError(f"{path}={value!r:.40}: a number from 0 to 10000 is allowed")
    return float(value)


def _positive(config: Any, path: str) -> float | None:
    value = at(config, path)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _within(value, lambda v: v > 0):
        raise PackageError(f"{path}={value!r:.40}: a positive number or null is allowed")
    return float(value)


def _within(value: float, holds: Callable[[float], bool]) -> bool:
    return abs(value) < 1e300 and math.isfinite(value) and holds(value)
