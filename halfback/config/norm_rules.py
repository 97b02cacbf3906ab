"""The rules about batch norm that trains: where a pass of training is one that is backpropagated, and no other is."""

from halfback.config.facts import Chosen, able
from halfback.config.rule import Rule

OF_NORMS: tuple[Rule[Chosen], ...] = (
    Rule(
        "batch norm of devices that don't backpropagate",
        lambda f: "bottom" in f.normed and not f.method.normed_bottom,
        lambda f: (
            f"bottom.batch_norm=train: devices of {f.config.algorithm.name} run forward only, or in part, and a probe "
            f"must find what the pass before it had; use bottom.batch_norm=frozen, or one of {able('normed_bottom')}"
        ),
    ),
    Rule(
        "batch norm of a top that runs more than once",
        lambda f: "top" in f.normed and not (f.method.normed_top and f.config.model.head is None),
        lambda f: (
            f"top.batch_norm=train: {f.config.algorithm.name}"
            + ("" if f.config.model.head is None else f" with model.head={f.config.model.head}")
            + " doesn't run the top once for each batch, or not in one place; use top.batch_norm=frozen"
            + ("" if f.config.model.head is None else ", or model.head=null")
        ),
    ),
    Rule(
        "batch norm of what is frozen",
        lambda f: any(getattr(f.config, side).train != "full" for side in f.normed),
        lambda f: (
            "batch_norm=train is for a part that is trained in full: "
            + " and ".join(f"{side}.train={getattr(f.config, side).train}" for side in f.normed)
            + " here; use batch_norm=frozen, or train=full"
        ),
    ),
    Rule(
        "batch norm of samples that are remembered",
        lambda f: f.normed != [] and f.remembering_links != [],
        lambda f: (
            f"{f.normed[0]}.batch_norm=train: codecs.{f.remembering_links[0]} remembers what it sent of each sample, "
            "which then differs with the batch; leave one of the two away"
        ),
    ),
    Rule(
        "batch norm of several batches in one pass",
        lambda f: "top" in f.normed and f.config.one_pass is True,
        lambda f: "one_pass=true: top.batch_norm=train goes by each client's own batch; use one_pass=false, or frozen",
    ),
    Rule(
        "batch norm that runs again",
        lambda f: "bottom" in f.normed and f.method.recomputes,
        lambda f: (
            "algorithm.checkpointing=true: blocks run again in the backward pass, and bottom.batch_norm=train would "
            "follow each batch twice; use one of the two"
        ),
    ),
    Rule(
        "lies about batch norm",
        lambda f: f.normed != [] and f.config.attack.says and f.method.averages,
        lambda f: (
            f"attack.name={f.config.attack.name}: a lie about a running variance may leave none that is one; use "
            f"{f.normed[0]}.batch_norm=frozen"
        ),
    ),
)
