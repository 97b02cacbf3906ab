"""What settings may not say together: one table of conditions and messages.

A setting that is wrong by itself is refused where it is declared. Here stands what two settings say against each other,
or a setting against the model or the data that another one names: before these are known, and after. Only `check` walks
the table.
"""

from typing import Any

from halfback.config.cohort_rules import OF_COHORTS
from halfback.config.data_rules import OF_DATA, PRETRAINING, ROWS
from halfback.config.facts import (
    Boundaries,
    Chosen,
    Moved,
    Pretraining,
    Probed,
    Rows,
    Shallow,
    Trained,
    able,
)
from halfback.config.norm_rules import OF_NORMS
from halfback.config.optimizer_rules import MOVED, OF_OPTIMIZERS
from halfback.config.privacy_rules import HIDDEN_ROWS, OF_PRIVACY
from halfback.config.private_rules import OF_PRIVATE
from halfback.config.rule import Rule as Rule
from halfback.config.sum_rules import OF_SUMS
from halfback.errors import UserError
from halfback.zeroth.radius import least_move, swallowed


def check(facts: Any) -> None:
    """Holds facts against every rule about their kind.

    Raises:
        UserError: what the first rule says that they break: the setting, its value and what is allowed.
    """
    for rule in RULES[type(facts)]:
        if rule.broken(facts):
            raise UserError(rule.says(facts))


_BEFORE: tuple[Rule[Chosen], ...] = (
    Rule(
        "eight bits of what is trained, or of half precision",
        lambda f: (
            f.config.bottom.weights == "int8" and (f.config.bottom.train == "full" or f.config.model.dtype != "float32")
        ),
        lambda f: (
            f"bottom.weights=int8: the frozen matrices of a float32 model are stored so, and here bottom.train is "
            f"{f.config.bottom.train} and model.dtype {f.config.model.dtype}; set bottom.weights=float32"
        ),
    ),
    Rule(
        "normalize without slopes",
        lambda f: f.config.bottom.normalize and not f.method.slopes,
        lambda f: (
            f"bottom.normalize=true: {f.config.algorithm.name} has gradients, not slopes; set bottom.normalize=false"
        ),
    ),
    Rule(
        "head on the device",
        lambda f: f.config.model.head is not None and not f.method.u_shape,
        lambda f: (
            f"model.head={f.config.model.head}: {f.config.algorithm.name} can't leave the head on the device; use "
            f"model.head=null, or one of {able('u_shape')}"
        ),
    ),
    Rule(
        "mixed cuts",
        lambda f: f.mixes_cuts and not f.method.mixed_cuts,
        lambda f: (
            f"model.cut={f.config.model.cut}: {f.config.algorithm.name} has one cut for all clients; use a number, or "
            f"one of {able('mixed_cuts')}"
        ),
    ),
    Rule(
        "least cohort",
        lambda f: (f.config.deployment.min_cohort or 0) > f.config.sampled_clients,
        lambda f: (
            f"deployment.min_cohort={f.config.deployment.min_cohort}: at most sampled_clients="
            f"{f.config.sampled_clients} are allowed, or null"
        ),
    ),
    Rule(
        "spare without a least cohort",
        lambda f: f.config.deployment.spare > 0 and f.config.deployment.min_cohort is None,
        lambda f: (
            f"deployment.spare={f.config.deployment.spare}: a run that needs all of a cohort leaves nobody behind; set "
            "deployment.min_cohort, or use deployment.spare=0"
        ),
    ),
    Rule(
        "spare where each is needed",
        lambda f: f.config.deployment.spare > 0 and (f.method.one_by_one or f.method.grouped),
        lambda f: (
            f"deployment.spare={f.config.deployment.spare}: in {f.config.algorithm.name} clients "
            + ("work one after another" if f.method.one_by_one else "measure a group of layers each")
            + ", so none may be left behind; use deployment.spare=0"
        ),
    ),
    Rule(
        "more asked than there are",
        lambda f: 0 < f.config.deployment.spare > f.config.clients - f.config.sampled_clients,
        lambda f: (
            f"deployment.spare={f.config.deployment.spare}: at most clients={f.config.clients} less sampled_clients="
            f"{f.config.sampled_clients} are allowed"
        ),
    ),
    Rule(
        "more sampled than there are",
        lambda f: f.config.sampled_clients > f.config.clients,
        lambda f: f"sampled_clients={f.config.sampled_clients}: at most clients={f.config.clients} are allowed",
    ),
    *OF_COHORTS,
    *OF_SUMS,
    *OF_PRIVATE,
    *OF_PRIVACY,
    Rule(
        "exact blocks with a list of cuts",
        lambda f: f.method.exact_blocks != 0 and not isinstance(f.config.model.cut, int),
        lambda f: (
            f"algorithm.exact_blocks={f.method.exact_blocks}: one cut for all clients is needed, not "
            f"{f.config.model.cut}"
        ),
    ),
    Rule(
        "more exact blocks than there are",
        lambda f: not isinstance(f.method.exact_blocks, str) and 1 <= f.config.model.cut_of(0) < f.method.exact_blocks,
        lambda f: (
            f"algorithm.exact_blocks={f.method.exact_blocks}: with model.cut={f.config.model.cut}, 0 to "
            f"{f.config.model.cut_of(0)} are allowed, or all"
        ),
    ),
    *OF_OPTIMIZERS,
    Rule(
        "in rows where a graph is built",
        lambda f: f.room is not None and f.method.backpropagates,
        lambda f: (
            f"{f.room}: devices of {f.config.algorithm.name} backpropagate, and a graph needs all rows; leave it null, "
            "or use a method whose devices don't"
        ),
    ),
    Rule(
        "rows from memory and by themselves",
        lambda f: f.config.client.memory is not None and f.config.client.rows_at_once is not None,
        lambda f: (
            f"client.rows_at_once={f.config.client.rows_at_once}: client.memory={f.config.client.memory:g} chooses it; "
            "set one of the two"
        ),
    ),
    Rule(
        "memory that samples fill",
        lambda f: f.config.client.memory is not None and f.remembering_links != [],
        lambda f: (
            f"client.memory={f.config.client.memory:g}: codecs.{f.remembering_links[0]} remembers samples, more with "
            "each step; use client.rows_at_once, or a codec that remembers none"
        ),
    ),
    Rule(
        "device packages in one pass",
        lambda f: f.config.client.runtime == "device" and f.config.one_pass is True,
        lambda f: (
            "one_pass=true: clients on device packages (client.runtime=device) run alone; use one_pass=null or "
            "one_pass=false"
        ),
    ),
    *OF_DATA,
    *OF_NORMS,
    Rule(
        "codecs where nothing goes",
        lambda f: f.idle_links != [],
        lambda f: f"codecs.{f.idle_links[0][0]}: nothing goes this way without {f.idle_links[0][1]}",
    ),
)

_TRAINED: tuple[Rule[Trained], ...] = (
    Rule(
        "nothing to train",
        lambda f: f.tensors == 0 and f.method.trains,
        lambda f: (
            f"bottom.train={f.config.bottom.train!r}: {f.config.algorithm.name} needs something to train on the "
            "device; any other value is allowed, or algorithm.name=frozen_bottom"
        ),
    ),
    Rule(
        "batch norm where there is none",
        lambda f: f.normless is not None,
        lambda f: (
            f"{f.normless}.batch_norm=train: this part of {f.config.model.name} has no batch norm of images; use "
            f"{f.normless}.batch_norm=frozen"
        ),
    ),
    Rule(
        "robust among too few of a group",
        lambda f: f.method.grouped and f.of_a_group < f.config.robust.needed,
        lambda f: (
            f"robust.name={f.config.robust.name}: {f.config.algorithm.name} has {f.of_a_group} of sampled_clients="
            f"{f.config.sampled_clients} measure a group of layers, and {f.config.robust.needed} are needed to tell "
            "who lies; sample more, or use robust.name=none"
        ),
    ),
    Rule(
        "exact blocks with nothing to train",
        lambda f: f.method.exact_blocks != 0 and f.exact == 0,
        lambda f: (
            f"algorithm.exact_blocks={f.method.exact_blocks}: bottom.train={f.config.bottom.train} has nothing to "
            "train in these blocks; use algorithm.exact_blocks=0, or a bottom.train that has"
        ),
    ),
    Rule(
        "directions along nothing",
        lambda f: f.method.directions > 0 and 0 < f.exact == f.tensors,
        lambda f: (
            f"algorithm.directions={f.method.directions}: all that bottom.train={f.config.bottom.train} trains on the "
            "device is in its exact blocks; use algorithm.directions=0"
        ),
    ),
)

_SHALLOW: tuple[Rule[Shallow], ...] = (
    Rule(
        "cut before anything to train",
        lambda f: f.method.trains and f.groups == 0,
        lambda f: (
            f"model.cut={f.config.model.cut}: with {f.at} of {f.blocks} blocks a device trains nothing; use a deeper "
            "cut, or other lora.targets"
        ),
    ),
)

_PROBED: tuple[Rule[Probed], ...] = (
    Rule(
        "radius that rounds away",
        lambda f: swallowed(f.parameters, f.radius, probing=True) > 0.5,
        lambda f: (
            f"algorithm.radius={f.radius:g} is too small for float32: θ+μu rounds to θ in "
            f"{swallowed(f.parameters, f.radius, probing=True):.0%} of the weights; use at least "
            f"{least_move(f.parameters, f.radius, probing=True):.2g}"
        ),
    ),
)

_BOUNDARIES: tuple[Rule[Boundaries], ...] = (
    Rule(
        "boundary outside of the model",
        lambda f: not all(0 <= at <= f.blocks for at in f.boundaries),
        lambda f: (
            f"algorithm.boundaries={list(f.boundaries)}: {f.model} has {f.blocks} blocks, so 0 to {f.blocks} are "
            "allowed"
        ),
    ),
)

RULES: dict[type[Any], tuple[Rule[Any], ...]] = {
    Chosen: _BEFORE,
    Rows: (*ROWS, *HIDDEN_ROWS),
    Pretraining: PRETRAINING,
    Trained: _TRAINED,
    Shallow: _SHALLOW,
    Moved: MOVED,
    Probed: _PROBED,
    Boundaries: _BOUNDARIES,
}
"""The table: the rules by the kind of facts that they are about, each kind's in the order in which they are asked."""
