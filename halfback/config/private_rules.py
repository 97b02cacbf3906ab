"""The rules about activations with noise (codec `private`), without which its guarantee would not be one."""

from collections.abc import Mapping
from typing import Any

from halfback.config.facts import Chosen
from halfback.config.rule import Rule

OF_PRIVATE: tuple[Rule[Chosen], ...] = (
    Rule(
        "noise on another link than activations up",
        lambda f: _elsewhere(f) != [],
        lambda f: (
            f"codecs.{_elsewhere(f)[0]}: private clips each sample's activations on their way to the server, and is "
            "for activations_up alone; "
            + (
                "what the server sends back follows from what it was sent"
                if _elsewhere(f)[0].endswith("_down")
                else "of this link it would promise nothing"
            )
        ),
    ),
    Rule(
        "similarities of what is private",
        lambda f: _private(f) is not None and (first := _temporal(f)) is not None and first.get("every") is None,
        lambda f: (
            "codecs.activations_up: temporal decides by a sample's values what is sent, and tells how they changed, so "
            "private behind it would promise nothing; set temporal's every, as in {name: temporal, every: 4}"
        ),
    ),
    Rule(
        "a budget with nothing to use in its place",
        lambda f: (_private(f) or {}).get("budget") is not None and _temporal(f) is None,
        lambda f: (
            "codecs.activations_up: a sample beyond private's budget isn't sent anew, so what came last of it has to "
            "be remembered; put {name: temporal, every: 4} before it, or leave budget away"
        ),
    ),
    Rule(
        "noise on what follows from the batch",
        lambda f: _private(f) is not None and "bottom" in f.normed,
        lambda f: (
            "bottom.batch_norm=train: a sample's activations follow from all others of its batch, and private clips "
            "each sample by itself; use bottom.batch_norm=frozen"
        ),
    ),
)


def _chain(facts: Chosen, link: str) -> list[Mapping[str, Any]]:
    """The codecs of a link, each with its `name`."""
    return [{"name": codec} if isinstance(codec, str) else codec for codec in getattr(facts.config.codecs, link)]


def _elsewhere(facts: Chosen) -> list[str]:
    return [
        link
        for link, _ in facts.config.codecs
        if link != "activations_up" and any(codec.get("name") == "private" for codec in _chain(facts, link))
    ]


def _private(facts: Chosen) -> Mapping[str, Any] | None:
    return next((codec for codec in _chain(facts, "activations_up") if codec.get("name") == "private"), None)


def _temporal(facts: Chosen) -> Mapping[str, Any] | None:
    return next((codec for codec in _chain(facts, "activations_up") if codec.get("name") == "temporal"), None)
