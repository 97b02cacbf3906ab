"""The rules about noise on what clients say of θ (`privacy`)."""

from halfback.config.facts import Chosen, Rows, able
from halfback.config.rule import Rule

OF_PRIVACY: tuple[Rule[Chosen], ...] = (
    Rule(
        "noise for nobody",
        lambda f: f.config.privacy.unit is None and _set(f) != "",
        lambda f: f"{_set(f)}: nothing is hidden without privacy.unit; use privacy.unit=sample or client",
    ),
    Rule(
        "noise and an epsilon",
        lambda f: f.config.privacy.unit is not None and (_noise(f) is None) == (_epsilon(f) is None),
        lambda f: (
            f"privacy.noise={_noise(f)}, privacy.epsilon={_epsilon(f)}: one follows from the other; set one of the two"
        ),
    ),
    Rule(
        "noise on what is no mean of slopes",
        lambda f: f.config.privacy.unit is not None and not f.method.releases,
        lambda f: (
            f"privacy.unit={f.config.privacy.unit}: {f.config.algorithm.name} doesn't agree on one mean of slopes a "
            f"step; use privacy.unit=null, or one of {able('releases')}"
        ),
    ),
    Rule(
        "noise where cuts differ",
        lambda f: f.config.privacy.unit is not None and f.mixes_cuts,
        lambda f: (
            f"model.cut={f.config.model.cut}: with privacy.unit={f.config.privacy.unit} all clients measure the same "
            "part of θ; use one cut"
        ),
    ),
    Rule(
        "noise with a defence against liars",
        lambda f: f.config.privacy.unit is not None and f.config.robust.name != "none",
        lambda f: (
            f"robust.name={f.config.robust.name}: how much one client can move it is not bounded as that of a mean is, "
            "which privacy counts on; use one of the two"
        ),
    ),
    Rule(
        "noise on what codecs make",
        lambda f: f.config.privacy.unit is not None and f.config.codecs.slopes_up != (),
        lambda f: "codecs.slopes_up: what a codec makes of clipped values may be larger than these; leave it empty",
    ),
    Rule(
        "rows without a clip",
        lambda f: _unit(f) == "sample" and (f.algorithm.needs.probe is None or f.algorithm.needs.probe.clip is None),
        lambda f: (
            "algorithm.clip_samples=None: privacy.unit=sample needs a bound of each row's slopes"
            if "clip_samples" in vars(f.algorithm)
            else f"privacy.unit=sample: {f.config.algorithm.name} has the loss of a batch, not of its rows, so these "
            "can't be clipped; use privacy.unit=client"
        ),
    ),
    Rule(
        "rows with exact blocks",
        lambda f: _unit(f) == "sample" and f.method.exact_blocks != 0,
        lambda f: (
            f"algorithm.exact_blocks={f.method.exact_blocks}: a device takes a batch's exact gradient in one backward "
            "pass, not each row's, so these can't be clipped; use privacy.unit=client, or exact_blocks=0"
        ),
    ),
    Rule(
        "rows in several steps of a device's own",
        lambda f: _unit(f) == "sample" and f.method.steps_alone and f.config.steps_per_round > 1,
        lambda f: (
            f"steps_per_round={f.config.steps_per_round}: in {f.config.algorithm.name} a device moves by its own "
            "slopes, so one row changes all later ones of its round; use privacy.unit=client, or steps_per_round=1"
        ),
    ),
    Rule(
        "rows that a norm mixes",
        lambda f: _unit(f) == "sample" and f.normed != [],
        lambda f: (
            f"{f.normed[0]}.batch_norm=train: a row's slopes then depend on its batch, and clipping each bounds "
            "nothing; use batch_norm=frozen, or privacy.unit=client"
        ),
    ),
    Rule(
        "the clip of the other unit",
        lambda f: f.config.privacy.unit is not None and (f.config.privacy.clip is None) == (_unit(f) == "client"),
        lambda f: (
            "privacy.clip=None: privacy.unit=client needs a bound of what a client says in a step"
            if _unit(f) == "client"
            else f"privacy.clip={f.config.privacy.clip:g}: of privacy.unit=sample the bound is algorithm.clip_samples; "
            "use privacy.clip=null"
        ),
    ),
    Rule(
        "clients on device packages that clip",
        lambda f: _unit(f) == "client" and f.config.client.runtime == "device",
        lambda f: (
            "client.runtime=device: a device package clips rows, not all that it says of a step; use "
            "privacy.unit=sample, or client.runtime=torch"
        ),
    ),
    Rule(
        "noise on coarse numbers",
        lambda f: f.config.privacy.unit is not None and f.config.secure.sum and f.config.secure.bits < 64,
        lambda f: (
            f"secure.bits={f.config.secure.bits}: how far rounding moves clipped values is not counted in ε; with "
            "privacy.unit use secure.bits=64"
        ),
    ),
    Rule(
        "shares of noise in the clear",
        lambda f: f.config.privacy.where == "distributed" and not f.config.secure.sum,
        lambda f: (
            "privacy.where=distributed: a client's share of the noise hides nothing by itself; set secure.sum=true, or "
            "use privacy.where=central"
        ),
    ),
    Rule(
        "shares of noise by rows",
        lambda f: f.config.privacy.where == "distributed" and f.method.by_rows,
        lambda f: (
            "algorithm.aggregation=rows: with privacy.where=distributed each client's share of the noise would count "
            "by its rows too, and could be too small; use aggregation=uniform, or privacy.where=central"
        ),
    ),
    Rule(
        "shares of a noise that nobody knows yet",
        lambda f: f.config.privacy.where == "distributed" and _epsilon(f) is not None,
        lambda f: (
            f"privacy.epsilon={_epsilon(f):g}: which noise it takes depends on the rows of all clients, which none of "
            "them knows; with privacy.where=distributed set privacy.noise"
        ),
    ),
)

HIDDEN_ROWS: tuple[Rule[Rows], ...] = (
    Rule(
        "rows whose losses are not apart",
        lambda f: f.config.privacy.unit == "sample" and (f.classes == 0 or f.config.task.loss is not None),
        lambda f: (
            f"privacy.unit=sample: in {f.config.task.name} a row's part in its batch's loss depends on the others, so "
            "clipping each bounds nothing; use privacy.unit=client, or classes with the package's own loss"
        ),
    ),
)


def _unit(facts: Chosen) -> str | None:
    return facts.config.privacy.unit


def _noise(facts: Chosen) -> float | None:
    return facts.config.privacy.noise


def _epsilon(facts: Chosen) -> float | None:
    return facts.config.privacy.epsilon


def _set(facts: Chosen) -> str:
    """A setting that says something about noise, and is not the unit; empty where there is none."""
    privacy = facts.config.privacy
    given = {"noise": privacy.noise, "epsilon": privacy.epsilon, "clip": privacy.clip}
    if privacy.where == "distributed":
        return "privacy.where=distributed"
    return next((f"privacy.{name}={value:g}" for name, value in given.items() if value is not None), "")
