"""The table: one row an algorithm (and its variants), with settings that make it learn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from halfback.algorithms import algorithms
from halfback.parties.protocol import Needs
from halfback.planning.traffic import Columns

Settings = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """`name` in the registry, and the settings it is checked with.

    `learns`: settings with which the loss falls within 30 rounds where the others' do not do.
    `reuses`: links with temporal reuse, and what their chain makes of rows of that width.
    `codes`: links whose codecs take a vector alone, and what their chain makes of each of its rows.
    `server_moves`: how the names begin of what the server moves itself, for each client, beside the clients' mean.
    `texts`: whether it is checked on texts too; not where another row has the same code run on them.
    `brief`: a variant of options, checked on images alone and only for what they can spoil.
    `devices`: whether its clients are checked on device packages too.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    learns: Settings = field(default_factory=dict)
    reuses: dict[str, Callable[[int], Columns]] = field(default_factory=dict)
    codes: dict[str, Columns] = field(default_factory=dict)
    server_moves: str | None = None
    texts: bool = True
    brief: bool = False
    devices: bool = False

    @property
    def needs(self) -> Needs:
        """Those of its algorithm with the default options."""
        return algorithms()[self.name]().needs

    def changes(self, **changes: Any) -> dict[str, Any]:
        """Its settings with changes, both as `key__path=value`."""
        return {key.replace(".", "__"): value for key, value in self.settings.items()} | changes


def rows_of(name: str, settings: Mapping[str, Any]) -> dict[str, Row]:
    """The rows of one algorithm, with these settings on top of each one's own; one of defaults, where it has none."""
    found = {key: row for key, row in ROWS.items() if row.name == name} or {name: Row(name)}
    return {key: replace(row, settings=row.settings | dict(settings)) for key, row in found.items()}


def _values(width: int) -> Columns:
    return [(width, 4)]


def _int8(width: int) -> Columns:
    return [(width, 1), (1, 4)]


_REPLAYED: Settings = {"bottom.optimizer": "adamw", "bottom.lr": 1e-3}
_BY_SIGNS: Settings = {"codecs.slopes_up": ["sign"], "codecs.slopes_down": ["sign"]}
_BY_ROWS: Settings = {
    "algorithm.aggregation": "rows",
    "partition.name": "dirichlet",
    "partition.alpha": 0.3,
    "sampled_clients": 3,
}
_TWO_ALIKE: dict[str, Any] = {"sampled_clients": 2, "partition.name": "iid"}  # where few rows are shared out
_SCHEDULED: Settings = {
    "steps": 40,
    "bottom.schedule": "cosine",
    "bottom.warmup": 3,
    "top.schedule": "linear",
    "top.warmup": 2,
}
_NORMED: Settings = {"bottom.batch_norm": "train", "top.batch_norm": "train"}
# An epoch is one batch, so that samples come again within the few rounds of a test.
_REUSING: Settings = {"batch_size": 32, "controller.threshold": 0.9}
_UP_AND_DOWN: Settings = _REUSING | {
    "codecs.activations_up": ["temporal", "int8"],
    "codecs.gradient_down": [{"name": "temporal", "where": "disk", "cache": "int8", "cap_mb": 0.5}],
}
_ON_FOUR_LINKS: Settings = _UP_AND_DOWN | {
    "codecs.activations_down": ["temporal"],
    "codecs.gradient_up": [{"name": "temporal", "projection": None}, "int8"],
}
ROWS: dict[str, Row] = {
    "ho_sfl": Row("ho_sfl", {"algorithm.directions": 3, **_REPLAYED}),
    "ho_sfl-central": Row(
        "ho_sfl",
        {"algorithm.directions": 2, "algorithm.estimator": "central", "bottom.optimizer": "momentum"},
        learns={"bottom.lr": 1e-3},
    ),
    "ho_sfl-forward_ad": Row(
        "ho_sfl",
        {"algorithm.directions": 2, "algorithm.estimator": "forward_ad", "bottom.law": "gaussian"},
        learns={"bottom.lr": 1e-3},
    ),
    "split_lora": Row("split_lora", {"bottom.optimizer": "adamw", "bottom.clip": 1.0}),
    "split_lora-checkpointing": Row("split_lora", {"algorithm.checkpointing": True}),
    "zo_sfl": Row(
        "zo_sfl",
        {"algorithm.directions": 2, "top.optimizer": "momentum", "top.lr": 1e-3},
        learns={"model.cut": 3, "top.optimizer": "adamw", "top.lr": 5e-3, "bottom.lr": 1e-4},
    ),
    "frozen_bottom": Row(
        "frozen_bottom",
    ),
    "ho_sfl-clipped": Row(
        "ho_sfl",
        {"algorithm.clip_samples": 0.05, **_SCHEDULED},
        learns={"bottom.lr": 1e-3},
        brief=True,
    ),
    "ho_sfl-robust": Row(
        "ho_sfl",
        {"algorithm.directions": 2, "robust.name": "median", "sampled_clients": 3, **_REPLAYED},
        learns={"clients": 3},
        brief=True,
    ),
    "ho_sfl-augmented": Row(
        "ho_sfl",
        {"algorithm.directions": 2, "task.augment": [{"name": "crop", "padding": 1}, "flip"], **_REPLAYED},
        brief=True,
    ),
    "ho_sfl-attacked": Row(
        "ho_sfl",
        {
            "model.cut": 2,
            "algorithm.directions": 2,
            "algorithm.exact_blocks": 1,
            "attack.name": "noise",
            "attack.strength": 0.3,
            "attack.clients": [1],
            **_REPLAYED,
        },
        brief=True,
    ),
    "ho_sfl-exact": Row(
        "ho_sfl",
        {"model.cut": 2, "algorithm.directions": 3, "algorithm.exact_blocks": 1, "bottom.clip": 1.0, **_REPLAYED},
        devices=True,
    ),
    "ho_sfl-exact-alone": Row(
        "ho_sfl",
        {"model.cut": 3, "algorithm.directions": 0, "algorithm.exact_blocks": 2, "bottom.normalize": True},
        learns={"bottom.lr": 1e-3},
        brief=True,
    ),
    "ho_sfl-exact-all": Row(
        "ho_sfl",
        {"model.cut": 2, "algorithm.directions": 0, "algorithm.exact_blocks": "all", **_REPLAYED, **_BY_SIGNS},
        codes={link: [(32, 1), (1, 4)] for link in ("slopes_up", "slopes_down")},
    ),
    "ho_sfl-exact-int8": Row(
        "ho_sfl",
        {
            "model.cut": 3,
            "algorithm.directions": 2,
            "algorithm.exact_blocks": 2,
            "codecs.slopes_up": ["int8"],
            "codecs.slopes_down": ["cast", "int8"],
            **_REPLAYED,
        },
        codes={link: [(256, 1), (1, 4)] for link in ("slopes_up", "slopes_down")},
        brief=True,
    ),
    "ho_sfl-rows": Row(
        "ho_sfl",
        {"algorithm.directions": 2, "model.cut": 2, "algorithm.exact_blocks": 1, **_REPLAYED, **_BY_ROWS},
        learns=_TWO_ALIKE,
        brief=True,
    ),
    "split_lora-rows": Row(
        "split_lora",
        {"model.head": 0, "bottom.optimizer": "adamw", **_BY_ROWS},
        learns=_TWO_ALIKE,
        brief=True,
    ),
    "heron_sfl-rows": Row(
        "heron_sfl",
        {"algorithm.every": 2, **_REPLAYED, **_BY_ROWS, **_SCHEDULED},
        learns={"bottom.schedule": "constant", **_TWO_ALIKE},
        brief=True,
    ),
    "hosl": Row("hosl", {"algorithm.directions": 2, **_REPLAYED}),
    "hosl-scheduled": Row(
        "hosl",
        {"algorithm.directions": 2, "bottom.optimizer": "momentum", **_SCHEDULED},
        learns={"bottom.lr": 1e-3},
        brief=True,
    ),
    "sfl_v1": Row("sfl_v1", {"bottom.optimizer": "momentum"}, learns={"bottom.lr": 1e-3}, texts=False),
    "sfl_v1-batch_norm": Row("sfl_v1", {"bottom.optimizer": "momentum", "bottom.lr": 1e-3, **_NORMED}, brief=True),
    "split_lora-batch_norm": Row("split_lora", {"bottom.optimizer": "adamw", **_NORMED}, brief=True),
    "vanilla_split-batch_norm": Row("vanilla_split", {"bottom.lr": 1e-3, **_NORMED}, brief=True),
    "sfl_v2": Row("sfl_v2", {"bottom.optimizer": "adamw", "bottom.lr": 1e-3}, texts=False),
    "sfl_v2-scheduled": Row("sfl_v2", _SCHEDULED, brief=True),
    "vanilla_split": Row("vanilla_split", {"bottom.optimizer": "adamw", "bottom.lr": 1e-3}, texts=False),
    "vanilla_split-u": Row("vanilla_split", {"model.head": 0, **_SCHEDULED}),
    "cse_fsl": Row("cse_fsl", {"bottom.optimizer": "adamw", "bottom.lr": 1e-3}, texts=False),
    "cse_fsl-every": Row("cse_fsl", {"algorithm.every": 2, "model.auxiliary": 2}, brief=True),
    "fsl_sage": Row("fsl_sage", server_moves="head.", texts=False),
    "fsl_sage-blocks": Row(
        "fsl_sage",
        {"algorithm.align_every": 2, "algorithm.every": 2, "model.auxiliary": 2},
        server_moves="head.",
    ),
    "heron_sfl": Row("heron_sfl", {"algorithm.directions": 2, **_REPLAYED}),
    "heron_sfl-central": Row(
        "heron_sfl",
        {"algorithm.estimator": "central", "algorithm.every": 2, "algorithm.clip_samples": 5.0, **_REPLAYED},
        brief=True,
    ),
    "heron_sfl-forward_ad": Row(
        "heron_sfl",
        {"algorithm.estimator": "forward_ad", "algorithm.directions": 1, **_REPLAYED},
        brief=True,
    ),
    "mu_splitfed": Row(
        "mu_splitfed",
        {"top.optimizer": "momentum", "top.lr": 1e-3},
        learns={"top.optimizer": "adamw", "top.lr": 1e-3, "bottom.lr": 1e-4},
    ),
    "mu_splitfed-steps": Row(
        "mu_splitfed",
        {"algorithm.directions": 2, "algorithm.server_steps": 3, "top.optimizer": "adamw", "top.lr": 1e-3},
        learns={"top.lr": 1e-3, "bottom.lr": 1e-4},
        brief=True,
    ),
    "decomfl": Row("decomfl", {"algorithm.directions": 3, **_REPLAYED}, learns={"bottom.lr": 3e-3}),
    "decomfl-central": Row(
        "decomfl",
        {"algorithm.estimator": "central", "algorithm.clip_samples": 5.0, **_SCHEDULED},
        learns={"bottom.lr": 1e-3},
        brief=True,
    ),
    "decomfl-forward_ad": Row(
        "decomfl",
        {"algorithm.estimator": "forward_ad", "algorithm.directions": 1, **_REPLAYED},
        brief=True,
    ),
    "spry": Row("spry", {"algorithm.directions": 2, **_REPLAYED}, learns={"bottom.lr": 3e-3}),
    "ho_fl": Row(
        "ho_fl",
        {"algorithm.directions": 3, "algorithm.boundaries": [2, 1], "bottom.optimizer": "adamw", "bottom.lr": 1e-3},
        learns={"bottom.lr": 1e-2},
    ),
    "mezo": Row("mezo", {"algorithm.directions": 2, **_REPLAYED}, learns={"bottom.lr": 3e-3}, texts=False),
    "mezo-forward_ad": Row("mezo", {"algorithm.estimator": "forward_ad", **_REPLAYED}, brief=True),
    "fedavg": Row("fedavg", {"bottom.optimizer": "adamw"}, texts=False),
    "fedavg-fedadam": Row(
        "fedavg",
        {"server_step.name": "fedadam", "server_step.lr": 3e-3, "bottom.optimizer": "adamw"},
        brief=True,
    ),
    "centralised": Row("centralised", {"bottom.clip": 1.0, **_SCHEDULED}, learns={"bottom.lr": 5e-2}),
    "fedavg-batch_norm": Row("fedavg", {"bottom.optimizer": "adamw", **_NORMED}, brief=True),
    "ho_sfl-u": Row("ho_sfl", {"algorithm.directions": 3, "model.head": 0, **_REPLAYED}),
    "ho_sfl-u-block": Row("ho_sfl", {"model.head": 1, **_REPLAYED}),
    "ho_sfl-u-exact": Row(
        "ho_sfl",
        {"model.head": 0, "model.cut": 2, "algorithm.exact_blocks": 1, **_REPLAYED},
        brief=True,
    ),
    "split_lora-u": Row("split_lora", {"model.head": 0, "bottom.optimizer": "adamw", "top.clip": 1.0}),
    "split_lora-u-block": Row(
        "split_lora",
        {"model.head": 1, "top.train": "full", "algorithm.checkpointing": True},
    ),
    "frozen_bottom-u": Row("frozen_bottom", {"model.head": 0}),
    "ho_sfl_pipelined": Row("ho_sfl_pipelined", {"algorithm.directions": 3, **_REPLAYED}),
    "ho_sfl_pipelined-central": Row(
        "ho_sfl_pipelined",
        {"algorithm.estimator": "central", "algorithm.clip_samples": 0.05, "bottom.optimizer": "momentum"},
        learns={"bottom.lr": 1e-3},
        brief=True,
    ),
    "ho_sfl_pipelined-forward_ad": Row(
        "ho_sfl_pipelined",
        {"algorithm.estimator": "forward_ad", **_SCHEDULED},
        learns={"bottom.lr": 1e-3},
        brief=True,
    ),
    "ho_sfl_pipelined-temporal": Row(
        "ho_sfl_pipelined",
        {"algorithm.directions": 3, **_REPLAYED, **_UP_AND_DOWN},
        reuses={"activations_up": _int8, "gradient_down": _values},
    ),
    "ho_sfl-temporal": Row(
        "ho_sfl",
        {"algorithm.directions": 3, **_REPLAYED, **_UP_AND_DOWN},
        reuses={"activations_up": _int8, "gradient_down": _values},
    ),
    "split_lora-temporal": Row(
        "split_lora",
        {"bottom.optimizer": "adamw", **_UP_AND_DOWN},
        reuses={"activations_up": _int8, "gradient_down": _values},
    ),
    "zo_sfl-temporal": Row(
        "zo_sfl",
        {"algorithm.directions": 2, **_REUSING, "codecs.activations_up": ["temporal", "int8"]},
        learns={"model.cut": 3, "top.optimizer": "adamw", "top.lr": 5e-3, "bottom.lr": 1e-4},
        reuses={"activations_up": _int8},
    ),
    "ho_sfl-u-temporal": Row(
        "ho_sfl",
        {"model.head": 0, **_REPLAYED, **_ON_FOUR_LINKS},
        reuses={"activations_up": _int8, "gradient_down": _values, "activations_down": _values, "gradient_up": _int8},
    ),
}
