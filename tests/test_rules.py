"""What settings may not say together: each rule of the table, where it is broken and where it is just kept."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from halfback import config
from halfback.config.facts import Boundaries, Moved, Pretraining, Probed, Rows, Shallow, Trained, method_of
from halfback.config.rules import RULES, check
from halfback.config.values import first_difference
from halfback.errors import UserError
from halfback.zeroth.radius import default_radius


def chosen(*settings: str) -> config.RunConfig:
    digits = ["algorithm.name=ho_sfl", "task.name=digits", "model={name: resnet8, cut: 2}"]
    return config.resolve(None, [*digits, *settings])


def weights(count: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"w": torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)}


def trained(tensors: int, exact: int, groups: int, *settings: str) -> Trained:
    own = chosen(*settings)
    return Trained(own, method_of(config.build_algorithm(own)), tensors, exact, groups)


def shallow(groups: int, *settings: str) -> Shallow:
    own = chosen("model.cut=[1, 2]", *settings)
    return Shallow(own, method_of(config.build_algorithm(own)), 1, 3, groups)


def moved(dtype: torch.dtype, replays: bool = False, normalize: bool = False, **settings: Any) -> Moved:
    return Moved("top", config.TopConfig(**settings), weights(64, dtype), replays, normalize)


TEXTS = Rows(chosen("task.generated_rows=1", "task.objective=generation"), 20, 10, 74, None, None, 2, 2)
IMAGES = replace(TEXTS, longest=0, longest_prompt=0, positions=None, size=(32, 32), wanted=(32, 32), kinds=0)
DIGITS = Pretraining("mnist", 1, 10, "digits", 1, 10)
AUGMENTED = chosen("task.augment=[flip]")
MISLABELLED = chosen("attack.name=label_flip")
NORMED = "algorithm.name=split_lora", "bottom={batch_norm: train, train: full}", "top={batch_norm: train, train: full}"
SPRY = "algorithm.name=spry", "sampled_clients=4", "robust.name=median"

BEFORE: dict[str, tuple[list[str], list[str], str]] = {
    "eight bits of what is trained, or of half precision": (
        ["bottom.weights=int8", "bottom.train=full"],
        ["bottom.weights=int8", "bottom.train=norm"],
        "bottom.weights=int8: the frozen matrices of a float32 model are stored so, and here bottom.train is full",
    ),
    "normalize without slopes": (
        ["bottom.normalize=true", "algorithm.name=split_lora"],
        ["bottom.normalize=true", "algorithm.name=ho_fl"],
        "bottom.normalize=true: split_lora has gradients, not slopes; set bottom.normalize=false",
    ),
    "head on the device": (
        ["model.head=0", "algorithm.name=zo_sfl"],
        ["model.head=0"],
        "model.head=0: zo_sfl can't leave the head on the device; use model.head=null, or one of ho_sfl, split_lo",
    ),
    "mixed cuts": (
        ["model.cut=[1, 2]", "algorithm.name=split_lora"],
        ["model.cut=[1, 1]", "algorithm.name=split_lora"],
        "model.cut=[1, 2]: split_lora has one cut for all clients; use a number, or one of ho_sfl, ",
    ),
    "least cohort": (
        ["deployment.min_cohort=4"],
        ["deployment.min_cohort=3"],
        "deployment.min_cohort=4: at most sampled_clients=3 are allowed, or null",
    ),
    "spare without a least cohort": (
        ["deployment.spare=1"],
        ["deployment.spare=1", "deployment.min_cohort=1"],
        "deployment.spare=1: a run that needs all of a cohort leaves nobody behind; set deployment.min_cohort, or use",
    ),
    "spare where each is needed": (
        ["deployment.spare=1", "deployment.min_cohort=1", "algorithm.name=vanilla_split"],
        ["deployment.spare=1", "deployment.min_cohort=1", "algorithm.name=sfl_v2"],
        "deployment.spare=1: in vanilla_split clients work one after another, so none may be left behind; use",
    ),
    "more asked than there are": (
        ["deployment.spare=2", "deployment.min_cohort=1", "clients=4"],
        ["deployment.spare=1", "deployment.min_cohort=1", "clients=4"],
        "deployment.spare=2: at most clients=4 less sampled_clients=3 are allowed",
    ),
    "more sampled than there are": (
        ["sampled_clients=4", "clients=3"],
        ["sampled_clients=3", "clients=3"],
        "sampled_clients=4: at most clients=3 are allowed",
    ),
    "robust without slopes that meet": (
        ["robust.name=median", "algorithm.name=split_lora"],
        ["robust.name=median", "algorithm.name=zo_sfl"],
        "robust.name=median: no slopes of several clients come together in split_lora; use robust.name=none, or one of",
    ),
    "robust among too few": (
        ["robust={name: trimmed_mean, trim: 2}", "sampled_clients=4"],
        ["robust={name: trimmed_mean, trim: 2}", "sampled_clients=5"],
        "sampled_clients=4: too few to tell who lies; robust.name=trimmed_mean with robust.trim=2 needs 5 or more",
    ),
    "robust by rows": (
        ["robust.name=clip", "algorithm.aggregation=rows"],
        ["robust.name=clip"],
        "algorithm.aggregation=rows: robust.name=clip counts clients alike; use algorithm.aggregation=uniform, or robu",
    ),
    "server step without an average": (
        ["server_step.name=fedadam"],
        ["server_step.name=fedadam", "algorithm.name=sfl_v2"],
        "server_step.name=fedadam: ho_sfl takes no mean of its clients' weights; use server_step.name=none, or one of ",
    ),
    "attack on one machine": (
        ["attack.name=label_flip", "algorithm.name=mezo"],
        ["attack.name=label_flip", "algorithm.name=frozen_bottom"],
        "attack.name=label_flip: mezo runs on one machine, without clients; use attack.name=none",
    ),
    "attack by what nobody says": (
        ["attack.name=scale", "algorithm.name=vanilla_split"],
        ["attack.name=scale", "algorithm.name=fedavg"],
        "attack.name=scale: neither slopes nor weights of several clients come together in vanilla_split; use attack.n",
    ),
    "liars that are not there": (
        ["attack={name: noise, clients: [1, 10]}"],
        ["attack={name: noise, clients: 10}"],
        "attack.clients=[1, 10]: there is no client 10; 0 to 9 are allowed",
    ),
    "a secure sum of what is not summed": (
        ["secure.sum=true", "algorithm.name=zo_sfl"],
        ["secure.sum=true"],
        "secure.sum=true: zo_sfl takes no mean that is all its server needs and knows of what clients say of θ; use",
    ),
    "a secure sum of too few": (
        ["secure.sum=true", "sampled_clients=2"],
        ["secure.sum=true", "sampled_clients=3"],
        "sampled_clients=2: a sum of one is its value, and each of two reads the other's from it; secure.sum=true need",
    ),
    "a secure sum with a defence against liars": (
        ["secure.sum=true", "robust.name=median"],
        ["secure.sum=true", "robust.name=none"],
        "robust.name=median: it compares what each client says, which with secure.sum=true nobody knows; use one of",
    ),
    "a secure sum of lies": (
        ["secure.sum=true", "attack.name=noise"],
        ["secure.sum=true", "attack.name=label_flip"],
        "attack.name=noise: lies are told where the server hears each client, and with secure.sum=true it hears none; ",
    ),
    "a secure sum of parts": (
        ["secure.sum=true", "model.cut=[1, 2]"],
        ["secure.sum=true", "model.cut=[2, 2]"],
        "model.cut=[1, 2]: clients with other cuts measure other parts of θ, and secure.sum=true adds up one vector of",
    ),
    "a secure sum of what codecs make": (
        ["secure.sum=true", "codecs.slopes_up=[int8]", "algorithm.exact_blocks=1"],
        ["secure.sum=true", "codecs.slopes_down=[int8]", "algorithm.exact_blocks=1"],
        "codecs.slopes_up: a sum of what codecs make is not what they make of a sum, and secure.sum=true sends whole",
    ),
    "threshold of a secure sum": (
        ["secure={sum: true, threshold: 2}", "sampled_clients=4"],
        ["secure={sum: true, threshold: 3}", "sampled_clients=4"],
        "secure.threshold=2: more than half of sampled_clients=4 and no more than all are allowed, or null",
    ),
    "a least cohort below a secure sum's": (
        ["secure.sum=true", "deployment.min_cohort=3", "sampled_clients=5"],
        ["secure.sum=true", "deployment.min_cohort=4", "sampled_clients=5"],
        "deployment.min_cohort=3: a secure sum needs 4 of sampled_clients=5 (secure.threshold); use as many or more",
    ),
    "exact blocks with a list of cuts": (
        ["algorithm.exact_blocks=1", "model.cut=[2, 2]"],
        ["algorithm.exact_blocks=0", "model.cut=[2, 2]"],
        "algorithm.exact_blocks=1: one cut for all clients is needed, not [2, 2]",
    ),
    "more exact blocks than there are": (
        ["algorithm.exact_blocks=3"],
        ["algorithm.exact_blocks=2"],
        "algorithm.exact_blocks=3: with model.cut=2, 0 to 2 are allowed, or all",
    ),
    "sign of gradients": (
        ["bottom.optimizer=sign", "algorithm.name=ho_fl"],
        ["bottom.optimizer=sign", "algorithm.name=frozen_bottom"],
        "bottom.optimizer=sign: it is for replayed slopes; use adamw, or another of docs/optimizers.md",
    ),
    "bottom replayed by an optimiser of gradients": (
        ["bottom.optimizer=apollo"],
        ["bottom.optimizer=apollo", "algorithm.name=split_lora"],
        "bottom.optimizer=apollo: ho_sfl replays slopes; sgd, momentum, adamw or sign are allowed",
    ),
    "top replayed by an optimiser of gradients": (
        ["top.optimizer=muon", "algorithm.name=zo_sfl"],
        ["top.optimizer=muon"],
        "top.optimizer=muon: zo_sfl replays slopes there too; sgd, momentum or adamw are allowed",
    ),
    "option of another optimiser": (
        ["top={optimizer: apollo_mini, options: {rank: 4}}"],
        ["top={optimizer: apollo, options: {rank: 4}}"],
        "top.options.rank with top.optimizer=apollo_mini: it has no such option; set it to null",
    ),
    "milestones of another schedule": (
        ["bottom.milestones=[10, 20]"],
        ["bottom.milestones=[10, 20]", "bottom.schedule=multistep"],
        "bottom.schedule=constant with bottom.milestones=[10, 20]: milestones and schedule=multistep go together; set",
    ),
    "milestones out of order": (
        ["top.milestones=[20, 20]", "top.schedule=multistep"],
        ["top.milestones=[20, 21]", "top.schedule=multistep"],
        "top.milestones=[20, 20]: steps from 1 on in rising order are allowed, each once",
    ),
    "clipping what is never there at once": (
        ["top={optimizer: adalomo, clip: 1.0}"],
        ["top={optimizer: adafactor, clip: 1.0}"],
        "top.clip: adalomo uses each gradient as it comes, so there is no norm of all of them; set top.clip=null, or a",
    ),
    "in rows where a graph is built": (
        ["client.rows_at_once=4", "algorithm.name=split_lora"],
        ["client.rows_at_once=4"],
        "client.rows_at_once=4: devices of split_lora backpropagate, and a graph needs all rows; leave it null, or use",
    ),
    "rows from memory and by themselves": (
        ["client={rows_at_once: 4, memory: 2.5}"],
        ["client.memory=2.5"],
        "client.rows_at_once=4: client.memory=2.5 chooses it; set one of the two",
    ),
    "memory that samples fill": (
        ["client.memory=2.5", "codecs.gradient_down=[{name: topk, ratio: 0.5, feedback: true}]"],
        [
            "client.memory=2.5",
            "codecs={gradient_down: [{name: sign, feedback: false}], slopes_up: [sign]}",
            "algorithm.exact_blocks=1",
        ],
        "client.memory=2.5: codecs.gradient_down remembers samples, more with each step; use client.rows_at_once, or a",
    ),
    "device packages in one pass": (
        ["client.runtime=device", "one_pass=true"],
        ["client.runtime=device", "one_pass=false"],
        "one_pass=true: clients on device packages (client.runtime=device) run alone; use one_pass=null or one_pass=fa",
    ),
    "augmentation of samples that are remembered": (
        ["task.augment=[flip]", "codecs.activations_up=[temporal]"],
        ["task.augment=[flip]", "codecs.activations_up=[int8]"],
        "task.augment: codecs.activations_up remembers what it sent of each sample, and an augmented one is another in",
    ),
    "batch norm of devices that don't backpropagate": (
        ["bottom={batch_norm: train, train: full}"],
        ["bottom={batch_norm: train, train: full}", "algorithm.name=cse_fsl"],
        "bottom.batch_norm=train: devices of ho_sfl run forward only, or in part, and a probe must find what the pass ",
    ),
    "batch norm of a top that runs more than once": (
        ["top={batch_norm: train, train: full}", "algorithm.name=hosl"],
        ["top={batch_norm: train, train: full}"],
        "top.batch_norm=train: hosl doesn't run the top once for each batch, or not in one place; use top.batch_norm=f",
    ),
    "batch norm of what is frozen": (
        ["bottom={batch_norm: train, train: norm}", "algorithm.name=fedavg"],
        ["bottom={batch_norm: train, train: full}", "algorithm.name=fedavg"],
        "batch_norm=train is for a part that is trained in full: bottom.train=norm here; use batch_norm=frozen, or tra",
    ),
    "batch norm of samples that are remembered": (
        [*NORMED, "codecs.activations_up=[temporal]"],
        [*NORMED, "codecs.activations_up=[int8]"],
        "bottom.batch_norm=train: codecs.activations_up remembers what it sent of each sample, which then differs with",
    ),
    "batch norm of several batches in one pass": (
        [*NORMED, "one_pass=true"],
        [*NORMED, "one_pass=false"],
        "one_pass=true: top.batch_norm=train goes by each client's own batch; use one_pass=false, or frozen",
    ),
    "batch norm that runs again": (
        [*NORMED, "algorithm.checkpointing=true"],
        [*NORMED, "algorithm.checkpointing=false"],
        "algorithm.checkpointing=true: blocks run again in the backward pass, and bottom.batch_norm=train would follow",
    ),
    "lies about batch norm": (
        [*NORMED, "attack.name=noise"],
        [*NORMED, "attack.name=label_flip"],
        "attack.name=noise: a lie about a running variance may leave none that is one; use bottom.batch_norm=frozen",
    ),
    "codecs where nothing goes": (
        ["codecs.gradient_up=[int8]"],
        ["codecs.gradient_up=[int8]", "model.head=0"],
        "codecs.gradient_up: nothing goes this way without a head on the device (model.head)",
    ),
}

AFTER: dict[str, tuple[Any, Any, str]] = {
    "rows longer than positions": (
        replace(TEXTS, longest=75),
        TEXTS,
        "task.max_length=128: a row has 75 tokens; resnet8 takes up to 74",
    ),
    "answers longer than positions": (
        replace(TEXTS, positions=73),
        TEXTS,
        "task.max_new_tokens=64: a prompt has 10 tokens; resnet8 takes up to 73 in all",
    ),
    "images of another size": (
        replace(IMAGES, wanted=(32, 64)),
        IMAGES,
        "task.image_size: images are 32×32; resnet8 takes 32×64",
    ),
    "tokenizer of another model": (
        replace(TEXTS, known_kinds=1),
        replace(TEXTS, known_kinds=None),
        "model.name=resnet8: the tokenizer tells 2 texts of a pair apart, the model 1: they don't fit",
    ),
    "augmentation of texts": (
        replace(TEXTS, config=AUGMENTED),
        replace(IMAGES, config=AUGMENTED),
        "task.augment: digits has no images; leave it empty",
    ),
    "labels flipped where there are none": (
        replace(IMAGES, config=MISLABELLED),
        replace(IMAGES, config=MISLABELLED, classes=2),
        "attack.name=label_flip: digits has no classes; use another, or attack.name=none",
    ),
    "window beside the image": (
        replace(IMAGES, padding=32),
        replace(IMAGES, padding=31),
        "task.augment: crop with padding=32: images are 32×32, so 1 to 31 are allowed",
    ),
    "pretraining on other images": (
        replace(DIGITS, channels=None, target_channels=None),
        DIGITS,
        "model.pretrain.task='mnist': images with None channels are allowed, like those of digits",
    ),
    "pretraining on more classes": (
        replace(DIGITS, classes=11),
        replace(DIGITS, classes=9),
        "model.pretrain.task='mnist' has 11 classes; at most 10 are allowed, like those of digits",
    ),
    "nothing to train": (
        trained(0, 0, 1),
        trained(0, 0, 1, "algorithm.name=frozen_bottom"),
        "bottom.train='lora': ho_sfl needs something to train on the device; any other value is allowed, or algorithm.",
    ),
    "batch norm where there is none": (
        replace(trained(2, 0, 1), normless="top"),
        trained(2, 0, 1),
        "top.batch_norm=train: this part of resnet8 has no batch norm of images; use top.batch_norm=frozen",
    ),
    "robust among too few of a group": (
        trained(2, 0, 2, *SPRY),
        trained(2, 0, 1, *SPRY),
        "robust.name=median: spry has 2 of sampled_clients=4 measure a group of layers, and 3 are needed to tell who l",
    ),
    "exact blocks with nothing to train": (
        trained(2, 0, 1, "algorithm.exact_blocks=1"),
        trained(2, 1, 1, "algorithm.exact_blocks=1"),
        "algorithm.exact_blocks=1: bottom.train=lora has nothing to train in these blocks; use algorithm.exact_blocks=",
    ),
    "directions along nothing": (
        trained(2, 2, 1, "algorithm.exact_blocks=all"),
        trained(2, 2, 1, "algorithm.exact_blocks=all", "algorithm.directions=0"),
        "algorithm.directions=2: all that bottom.train=lora trains on the device is in its exact blocks; use algorithm",
    ),
    "cut before anything to train": (
        shallow(0),
        shallow(0, "algorithm.name=frozen_bottom"),
        "model.cut=[1, 2]: with 1 of 3 blocks a device trains nothing; use a deeper cut, or other lora.targets",
    ),
    "squares in float16": (
        moved(torch.float16, lr=1e-2),
        moved(torch.float16, lr=1e-2, optimizer="foam"),
        "top.optimizer=adamw: its squared gradients vanish in float16; use model.dtype=bfloat16 or float32, or top.opt",
    ),
    "rate that rounds away": (
        moved(torch.bfloat16, lr=1e-6, optimizer="sgd", normalize=True),
        moved(torch.bfloat16, lr=1e-6, optimizer="sgd"),
        "top.lr=1e-06 is too small for bfloat16: a step rounds away in 100% of the weights; use at least 0.01, or trai",
    ),
    "radius that rounds away": (
        Probed(weights(64), 1e-12),
        Probed(weights(64), 1e-4),
        "algorithm.radius=1e-12 is too small for float32: θ+μu rounds to θ in 100% of the weights; use at least 1e-07",
    ),
    "boundary outside of the model": (
        Boundaries((0, 4), "Resnet", 3),
        Boundaries((0, 3), "Resnet", 3),
        "algorithm.boundaries=[0, 4]: Resnet has 3 blocks, so 0 to 3 are allowed",
    ),
}


def test_every_rule_has_a_row() -> None:
    assert [rule.name for rules in RULES.values() for rule in rules] == [*BEFORE, *AFTER]


@pytest.mark.parametrize("name", BEFORE)
def test_a_rule_about_settings(name: str) -> None:
    broken, kept, says = BEFORE[name]
    chosen(*kept)
    with pytest.raises(UserError, match=f"^{re.escape(says)}"):
        chosen(*broken)


@pytest.mark.parametrize("name", AFTER)
def test_a_rule_about_the_model_or_the_rows(name: str) -> None:
    broken, kept, says = AFTER[name]
    check(kept)
    with pytest.raises(UserError, match=f"^{re.escape(says)}"):
        check(broken)


def test_the_default_radius_is_large_enough() -> None:
    parameters = weights(4096) | {"bias": torch.zeros(16), "none": torch.zeros(0)}
    check(Probed(parameters, default_radius(parameters, torch.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_radius_that_is_advised_is_just_large_enough(dtype: torch.dtype) -> None:
    """Whatever the weights are, θ+μu is a float32 sum."""
    parameters = {"fine": torch.zeros(3, dtype=dtype)} | weights(4096, dtype)
    before = parameters["w"].clone()
    with pytest.raises(UserError) as error:
        check(Probed(parameters, 1e-3 * torch.finfo(torch.float32).eps))
    found = re.search(r"for float32: .* in \d+% of .* use at least ([0-9.e-]+)", str(error.value))
    assert found
    check(Probed(parameters, float(found[1])))
    with pytest.raises(UserError):
        check(Probed(parameters, float(found[1]) / 16))
    assert torch.equal(parameters["w"], before)
    assert math.isfinite(float(found[1]))


def test_the_first_difference_of_two_configurations() -> None:
    """How long a server waits for its clients makes no difference."""
    one = chosen()
    same, other = config.to_tree(one), config.to_tree(one) | {"steps": 1, "deployment": {}, "seed": 4}
    assert first_difference(one, same) is None
    assert first_difference(one, other) == ("steps", 300, 1)
    assert first_difference(one, {**same, "deployment": {}}) is None
    before = {key: value for key, value in same.items() if key not in ("client", "threads", "one_pass", "sinks")}
    assert first_difference(one, before) is None, "settings that came later are at their defaults"
    older = {key: value for key, value in same.items() if key not in ("attack", "server_step")}
    for section, setting in (("bottom", "batch_norm"), ("robust", "liars"), ("task", "augment")):
        older[section] = {name: value for name, value in same[section].items() if name != setting}
    assert first_difference(one, older) is None, "in sections too"
    assert first_difference(one, older | {"bottom": older["bottom"] | {"lr": 7.0}}) is not None
    later = one.model_copy(update={"client": one.client.model_copy(update={"rows_at_once": 2})})
    assert first_difference(later, before) == (
        "client",
        {"rows_at_once": 2, "memory": None, "runtime": "torch"},
        {"rows_at_once": None, "memory": None, "runtime": "torch"},
    )
    without = {key: value for key, value in same.items() if key != "clients"}
    assert first_difference(one.model_copy(update={"clients": 11}), without) == ("clients", 11, 10)
    assert first_difference(one, {}) == ("algorithm", same["algorithm"], None), "which has no default"
