"""The rules about how a cohort's clients become one, and about those of them that lie."""

from halfback.config.facts import Chosen, able
from halfback.config.rule import Rule

OF_COHORTS: tuple[Rule[Chosen], ...] = (
    Rule(
        "robust without slopes that meet",
        lambda f: f.config.robust.name != "none" and not f.method.slopes_meet,
        lambda f: (
            f"robust.name={f.config.robust.name}: no slopes of several clients come together in "
            f"{f.config.algorithm.name}; use robust.name=none, or one of {able('slopes_meet')}"
        ),
    ),
    Rule(
        "robust among too few",
        lambda f: f.config.sampled_clients < f.config.robust.needed,
        lambda f: (
            f"sampled_clients={f.config.sampled_clients}: too few to tell who lies; {f.config.robust.said} needs "
            f"{f.config.robust.needed} or more"
        ),
    ),
    Rule(
        "robust by rows",
        lambda f: f.config.robust.name != "none" and f.method.by_rows,
        lambda f: (
            f"algorithm.aggregation=rows: robust.name={f.config.robust.name} counts clients alike; use "
            "algorithm.aggregation=uniform, or robust.name=none"
        ),
    ),
    Rule(
        "server step without an average",
        lambda f: f.config.server_step.name != "none" and not f.method.averages,
        lambda f: (
            f"server_step.name={f.config.server_step.name}: {f.config.algorithm.name} takes no mean of its clients' "
            f"weights; use server_step.name=none, or one of {able('averages')}"
        ),
    ),
    Rule(
        "attack on one machine",
        lambda f: f.config.attack.name != "none" and f.method.pools,
        lambda f: (
            f"attack.name={f.config.attack.name}: {f.config.algorithm.name} runs on one machine, without clients; use "
            "attack.name=none"
        ),
    ),
    Rule(
        "attack by what nobody says",
        lambda f: f.config.attack.says and not (f.method.slopes_meet or f.method.averages),
        lambda f: (
            f"attack.name={f.config.attack.name}: neither slopes nor weights of several clients come together in "
            f"{f.config.algorithm.name}; use attack.name=label_flip or none"
        ),
    ),
    Rule(
        "liars that are not there",
        lambda f: f.no_liar is not None,
        lambda f: (
            f"attack.clients={list(f.config.attack.liars)}: there is no client {f.no_liar}; 0 to "
            f"{f.config.clients - 1} are allowed"
        ),
    ),
)
