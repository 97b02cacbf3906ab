"""The rules about sums of which nobody learns more (`secure.sum`)."""

from halfback.config.facts import Chosen, able
from halfback.config.rule import Rule

OF_SUMS: tuple[Rule[Chosen], ...] = (
    Rule(
        "a secure sum of what is not summed",
        lambda f: f.config.secure.sum and not f.method.sums,
        lambda f: (
            f"secure.sum=true: {f.config.algorithm.name} takes no mean that is all its server needs and knows of what "
            f"clients say of θ; use secure.sum=false, or one of {able('sums')}"
        ),
    ),
    Rule(
        "a secure sum of too few",
        lambda f: f.config.secure.sum and f.config.sampled_clients < 3,
        lambda f: (
            f"sampled_clients={f.config.sampled_clients}: a sum of one is its value, and each of two reads the other's "
            "from it; secure.sum=true needs 3 or more"
        ),
    ),
    Rule(
        "a secure sum with a defence against liars",
        lambda f: f.config.secure.sum and f.config.robust.name != "none",
        lambda f: (
            f"robust.name={f.config.robust.name}: it compares what each client says, which with secure.sum=true nobody "
            "knows; use one of the two"
        ),
    ),
    Rule(
        "a secure sum of lies",
        lambda f: f.config.secure.sum and f.config.attack.says,
        lambda f: (
            f"attack.name={f.config.attack.name}: lies are told where the server hears each client, and with "
            "secure.sum=true it hears none; use attack.name=label_flip or none"
        ),
    ),
    Rule(
        "a secure sum of parts",
        lambda f: f.config.secure.sum and f.mixes_cuts,
        lambda f: (
            f"model.cut={f.config.model.cut}: clients with other cuts measure other parts of θ, and secure.sum=true "
            "adds up one vector of all; use one cut"
        ),
    ),
    Rule(
        "a secure sum of what codecs make",
        lambda f: f.config.secure.sum and f.config.codecs.slopes_up != (),
        lambda f: (
            "codecs.slopes_up: a sum of what codecs make is not what they make of a sum, and secure.sum=true sends "
            "whole numbers; leave it empty (secure.bits=32 halves the bytes)"
        ),
    ),
    Rule(
        "threshold of a secure sum",
        lambda f: f.config.secure.sum and not _is_majority(f),
        lambda f: (
            f"secure.threshold={f.config.secure.threshold}: more than half of sampled_clients="
            f"{f.config.sampled_clients} and no more than all are allowed, or null"
        ),
    ),
    Rule(
        "a least cohort below a secure sum's",
        lambda f: f.config.secure.sum and (f.config.deployment.min_cohort or f.config.sampled_clients) < _needed(f),
        lambda f: (
            f"deployment.min_cohort={f.config.deployment.min_cohort}: a secure sum needs {_needed(f)} of "
            f"sampled_clients={f.config.sampled_clients} (secure.threshold); use as many or more"
        ),
    ),
)


def _needed(facts: Chosen) -> int:
    return facts.config.secure.threshold_of(facts.config.sampled_clients)


def _is_majority(facts: Chosen) -> bool:
    return facts.config.sampled_clients < 2 * _needed(facts) <= 2 * facts.config.sampled_clients
