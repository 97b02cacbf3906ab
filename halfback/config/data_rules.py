"""The rules about a run's rows: what is done to them, and whether a model can take them."""

from halfback.config.facts import Chosen, Pretraining, Rows
from halfback.config.rule import Rule

OF_DATA: tuple[Rule[Chosen], ...] = (
    Rule(
        "augmentation of samples that are remembered",
        lambda f: f.config.task.augment != () and f.remembering_links != [],
        lambda f: (
            f"task.augment: codecs.{f.remembering_links[0]} remembers what it sent of each sample, and an augmented "
            "one is another in each epoch; leave one of the two away"
        ),
    ),
)

ROWS: tuple[Rule[Rows], ...] = (
    Rule(
        "rows longer than positions",
        lambda f: f.positions is not None and f.longest > f.positions,
        lambda f: (
            f"task.max_length={f.config.task.max_length}: a row has {f.longest} tokens; {f.config.model.name} takes up "
            f"to {f.positions}"
        ),
    ),
    Rule(
        "answers longer than positions",
        lambda f: (
            f.positions is not None
            and f.config.task.generated_rows > 0
            and f.longest_prompt + f.config.task.max_new_tokens > f.positions
        ),
        lambda f: (
            f"task.max_new_tokens={f.config.task.max_new_tokens}: a prompt has {f.longest_prompt} tokens; "
            f"{f.config.model.name} takes up to {f.positions} in all"
        ),
    ),
    Rule(
        "images of another size",
        lambda f: f.size is not None and f.wanted is not None and f.size != f.wanted,
        lambda f: (
            f"task.image_size: images are {'×'.join(map(str, f.size or ()))}; {f.config.model.name} takes "
            f"{'×'.join(map(str, f.wanted or ()))}"
        ),
    ),
    Rule(
        "tokenizer of another model",
        lambda f: f.known_kinds is not None and f.kinds > f.known_kinds,
        lambda f: (
            f"model.name={f.config.model.name}: the tokenizer tells {f.kinds} texts of a pair apart, the model "
            f"{f.known_kinds}: they don't fit"
        ),
    ),
    Rule(
        "augmentation of texts",
        lambda f: f.config.task.augment != () and f.size is None,
        lambda f: f"task.augment: {f.config.task.name} has no images; leave it empty",
    ),
    Rule(
        "labels flipped where there are none",
        lambda f: f.config.attack.name == "label_flip" and f.classes == 0,
        lambda f: f"attack.name=label_flip: {f.config.task.name} has no classes; use another, or attack.name=none",
    ),
    Rule(
        "window beside the image",
        lambda f: f.size is not None and f.padding >= min(f.size),
        lambda f: (
            f"task.augment: crop with padding={f.padding}: images are {'×'.join(map(str, f.size or ()))}, so 1 to "
            f"{min(f.size or (0,)) - 1} are allowed"
        ),
    ),
)

PRETRAINING: tuple[Rule[Pretraining], ...] = (
    Rule(
        "pretraining on other images",
        lambda f: f.channels is None or f.channels != f.target_channels,
        lambda f: (
            f"model.pretrain.task={f.name!r}: images with {f.target_channels} channels are allowed, like those of "
            f"{f.target}"
        ),
    ),
    Rule(
        "pretraining on more classes",
        lambda f: f.classes > f.target_classes,
        lambda f: (
            f"model.pretrain.task={f.name!r} has {f.classes} classes; at most {f.target_classes} are allowed, like "
            f"those of {f.target}"
        ),
    ),
)
