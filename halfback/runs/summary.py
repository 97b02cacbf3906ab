"""What a finished run came to, in plain values."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from halfback.assembly import Built
from halfback.codecs.private import SpentOnActivations
from halfback.models.adapters import trainable
from halfback.models.objectives import better
from halfback.privacy.account import alike, epsilon
from halfback.privacy.settings import Unit
from halfback.runs import generation
from halfback.telemetry.records import read_records


@dataclass(frozen=True)
class Metric:
    """A run's metric on its validation rows: before the first step, at the end, and the best of all evaluations.

    `name` says what it is: accuracy in percent, or perplexity. None is a number that was not finite. `initial_rows` is
    how many validation rows the first evaluation was over (`first_eval_rows`), None where it was over all like the
    others; over fewer it is none of those of which `best` is the best.
    """

    name: str
    initial: float | None
    final: float | None
    best: float | None
    initial_rows: int | None = None


@dataclass(frozen=True)
class Parts:
    """How many parameters are trained in each part of the model: on a device, and on the server."""

    bottom: int
    top: int


@dataclass(frozen=True)
class Written:
    """How well a trained model writes: BLEU and chrF (0 to 100) of `rows` decoded validation inputs."""

    bleu: float
    chrf: float
    rows: int
    decoding: str


@dataclass(frozen=True)
class Spent:
    """What the noise of a private run came to.

    Attributes:
        epsilon: at `delta`, of the `unit` (`sample` or `client`) that was part of most releases.
        delta: the δ.
        unit: whose presence is hidden; neighbours have another row, or another client's rows, in its place.
        noise: the noise multiplier.
        releases: of which that unit was part.
        where: `central` or `distributed`.
        covers: what the ε is about, in words, and what not.
    """

    epsilon: float
    delta: float
    unit: Unit
    noise: float
    releases: int
    where: str
    covers: str

    @property
    def said(self) -> str:
        """All of it in a line."""
        unit = "row" if self.unit == "sample" else "client"
        return f"ε = {self.epsilon:.3g} at δ = {self.delta:g} for each {unit}: {self.covers}"


@dataclass(frozen=True)
class Summary:
    """What a finished run came to: `summary.json`, by the same names.

    Bytes and forward passes are totals over all clients; seconds are those of one process, each counted where it was
    spent; peaks are bytes of live tensors, of one client and of the server, in the rounds that were measured.

    Attributes:
        algorithm: its name.
        task: its name.
        skipped_rows: rows of the data that were left out on request.
        model: its name.
        cut: blocks on the device, or a list of them for the clients in turn.
        head: blocks of the head on the device in the U-shape, else None.
        clients: of the run.
        sampled_clients: of a round.
        steps: optimiser steps that were taken, of one batch of each sampled client.
        seed: that everything random follows from.
        metric: on the validation rows.
        train_loss: of the last rounds.
        up_bytes: sent by all clients together.
        down_bytes: received by all clients together.
        bytes_by_kind: `up` or `down` → kind of message → role of its field → bytes.
        client_peak_bytes: of the client that took most.
        client_inference_peak_bytes: what plain inference of the same client's part takes, for comparison.
        server_peak_bytes: of the server.
        client_seconds: spent by clients, all together.
        server_seconds: spent by the server.
        wire_seconds: spent by both on packing and unpacking, and on codecs.
        wall_seconds: of the run, evaluations included, pauses not.
        simulated_seconds: that the run would have taken on the devices and links of its fleet; None without one.
        forward_passes: of what a client holds on one batch, all clients together.
        generation: of runs with `task.generated_rows`, else None.
        privacy: of runs with noise on what clients say of θ, else None.
        slopes: how they were taken, and in what precision where the weights have less; None where none were.
        trainable_parameters: of each part.
        versions: package → version that the run was made with.
        ended: why the run was over before its steps were done; None where it took all of them.
        private_activations: what the noise on activations came to (codec `private`); None without it.
    """

    algorithm: str
    task: str
    skipped_rows: int
    model: str
    cut: int | list[int]
    head: int | None
    clients: int
    sampled_clients: int
    steps: int
    seed: int
    metric: Metric
    train_loss: float | None
    up_bytes: int
    down_bytes: int
    bytes_by_kind: dict[str, dict[str, dict[str, int]]]
    client_peak_bytes: int
    client_inference_peak_bytes: int
    server_peak_bytes: int
    client_seconds: float
    server_seconds: float
    wire_seconds: float
    wall_seconds: float
    simulated_seconds: float | None
    forward_passes: int
    generation: Written | None
    slopes: str | None
    trainable_parameters: Parts
    versions: dict[str, str]
    ended: str | None = None
    private_activations: SpentOnActivations | None = None
    privacy: Spent | None = None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Summary":
        """Makes a summary of plain values.

        Args:
            found: as `to_dict` gives them; they are not checked.

        Returns:
            The summary.
        """
        written, spent, of_activations = (found.get(key) for key in ("generation", "privacy", "private_activations"))
        nested = {
            "metric": Metric(**found["metric"]),
            "trainable_parameters": Parts(**found["trainable_parameters"]),
            "generation": None if written is None else Written(**written),
            "private_activations": None if of_activations is None else SpentOnActivations(**of_activations),
            "privacy": None if spent is None else Spent(**spent),
        }
        return cls(**{**found, **nested})

    def to_dict(self) -> dict[str, Any]:
        """Makes plain values of the summary.

        Returns:
            As `summary.json` has them.
        """
        return asdict(self)


def summary_of(built: Built, out: Path, ended: str | None = None) -> Summary:
    """The summary of a run that is over in the folder `out`, which holds its records; `ended`: why it was, too soon."""
    config, server, model = built.config, built.federation.server, built.model
    records = read_records(out)
    metrics = [record.metric for record in records if record.metric is not None and record.rows is None]
    best = metrics[0]
    for metric in metrics:
        best = metric if better(built.task.objective, metric, best) else best
    last, meters = records[-1], server.meters
    needs = server.algorithm.needs
    server.agreed_bottom()  # which `model.whole` shares
    writer = generation.Writer(model.whole, built.tokenizer, config.task, config.eval_batch_size)
    written = generation.score(writer, built.task.prompts)
    return Summary(
        algorithm=config.algorithm.name,
        task=config.task.name,
        skipped_rows=built.skipped_rows,
        model=config.model.name,
        cut=config.model.cut,
        head=config.model.head,
        clients=config.clients,
        sampled_clients=config.sampled_clients,
        steps=last.step,
        seed=config.seed,
        metric=Metric(built.task.metric, records[0].metric, metrics[-1], best, records[0].rows),
        train_loss=last.train_loss,
        up_bytes=last.up_bytes,
        down_bytes=last.down_bytes,
        bytes_by_kind=server.ledger.bytes_by_kind,
        client_peak_bytes=meters.client_peak_bytes,
        client_inference_peak_bytes=meters.client_inference_peak_bytes,
        server_peak_bytes=meters.server_peak_bytes,
        client_seconds=last.client_seconds,
        server_seconds=last.server_seconds,
        wire_seconds=last.wire_seconds,
        wall_seconds=last.wall_seconds,
        simulated_seconds=last.simulated_seconds,
        forward_passes=last.forward_passes,
        generation=None if written is None else Written(**written),
        slopes=needs.probe.said(model.whole) if needs.probe is not None and needs.directions else None,
        trainable_parameters=Parts(
            bottom=sum(p.numel() for p in trainable(model.bottom).values()) if needs.agreement.moves else 0,
            top=sum(p.numel() for part in (model.top, model.head) if part for p in trainable(part).values()),
        ),
        versions=versions_here(),
        ended=ended,
        private_activations=server.private_activations(),
        privacy=_spent(built),
    )


def _spent(built: Built) -> Spent | None:
    private, privacy = built.federation.server.private, built.config.privacy
    if private is None:
        return None
    noise, releases = private.rules.noise, private.spent.most
    found, needs = epsilon(releases, noise, privacy.delta), built.federation.server.algorithm.needs
    covers = "what slopes say of it, and not activations, labels, losses, nor the server's part trained on them"
    activations = built.federation.server.private_activations()
    if activations is not None and private.rules.unit == "sample":
        both = epsilon(*alike((releases, noise), (activations.releases, activations.noise)), privacy.delta)
        covers = (
            f"what slopes say of it; with its activations, to whom both are hidden, ε = {both:.3g}; and not labels, "
            "lengths and losses"
        )
    elif needs.holds == "whole":
        covers = "all that is said of θ, and the model; not the training losses that devices report"
    return Spent(found, privacy.delta, private.rules.unit, noise, releases, privacy.where, covers)


def versions_here() -> dict[str, str]:
    """Of those packages on which a run's numbers depend, and which are installed."""
    found = {}
    for name in ("halfback", "torch", "transformers", "peft"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
