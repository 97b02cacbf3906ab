"""What arrives at the server of activations, by cut and by how they travel: encoded, decoded, with noise on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfback.assembly import Built
from halfback.assembly.ground import form_at
from halfback.codecs import Codec, make_receiver, make_sender, parse
from halfback.codecs.protocol import Samples
from halfback.codecs.quantise import Int8
from halfback.codecs.sparsify import Projection
from halfback.codecs.temporal import Temporal, TemporalSender
from halfback.models.cut import CutModel, recut
from halfback.parties.holdings import HiddenForm

# Standard deviations, each times the median over tokens, or images, of the root mean square of their activations. The
# median, since deep blocks of language models have a few tokens that are a hundred times as large as all others.
NOISE = (0.5, 1.0, 2.0, 4.0)
_NEAR = 0.98  # the similarity above which a sample that comes again is not sent


@dataclass(frozen=True)
class Way:
    """How activations travel.

    Attributes:
        name: as a report has it.
        chain: of codecs; none where they are sent as they are.
        noise: standard deviation of Gaussian noise on them, in sizes of a token; 0 for none.
        releases: how often a sample is sent with noise of its own (codec `private`); a server takes their mean.
    """

    name: str
    chain: tuple[Codec, ...] = ()
    noise: float = 0.0
    releases: int = 1


@dataclass(frozen=True)
class Arrived:
    """What the server has of some rows.

    Attributes:
        hidden: float32, in the shape of the activations.
        row_bytes: of a row on the wire.
    """

    hidden: Tensor
    row_bytes: float


def cuts_of(built: Built, chosen: Sequence[int] | None) -> list[int]:
    """The cuts that are looked at: those that were chosen, else the recipe's own, the first, the last, some between."""
    head = built.config.model.head
    last = built.model.blocks - (0 if head is None else head + 1)  # a middle has a block or more
    if chosen is not None:
        return sorted(set(chosen))
    own = set(built.ground.levels)
    spread = range(1, last + 1) if last <= 6 else (1, round(last / 4), round(last / 2), last - 1)
    return sorted(own | set(spread))


def ways_of(built: Built, form: HiddenForm) -> list[Way]:
    """As it is; one codec of each kind; what the recipe has; and levels of noise."""
    plain = str(form.dtype).removeprefix("torch.")
    size = max(1, form.width // 3)
    ways = [Way(plain), Way("int8", (Int8(),))]
    if form.width > 1:
        ways.append(Way(f"projection {size}", (Projection(size),)))
    ways.append(Way("temporal", (Temporal(),)))
    own = parse(built.config.codecs.activations_up or (), "codecs.activations_up")
    if own and own not in [way.chain for way in ways]:
        ways.append(Way("the recipe's own", own, releases=max(1, built.federation.server.meters.releases)))
    return ways + [Way(f"noise {level:g}", noise=level) for level in NOISE]


def level_at(built: Built, cut: int) -> CutModel:
    """The run's model with its cut elsewhere."""
    return recut(built.model, cut, head=built.config.model.head)


def form_of(built: Built, level: CutModel) -> HiddenForm:
    """The form of the activations at a cut."""
    return form_at(level, built.config, built.task, built.ground.device)


@torch.no_grad()
def arrive(way: Way, form: HiddenForm, hidden: Tensor, lengths: Tensor | None, generator: torch.Generator) -> Arrived:
    """What arrives of activations.

    What remembers samples is looked at when they come for the second time, over weights that have not moved; its bytes
    are the mean of both times. What was sent with noise more than once is looked at as the mean of all times.

    Args:
        way: how they travel.
        form: of the activations.
        hidden: of some rows.
        lengths: of texts, (B,); None for images.
        generator: of the noise.
    """
    rows = len(hidden) if lengths is None else len(lengths)
    if way.noise:
        scale = float(hidden.float().flatten(1).square().mean(dim=1).sqrt().median()) * way.noise
        noise = torch.randn(hidden.shape, generator=generator, device="cpu").to(hidden.device)
        return Arrived(hidden.float() + scale * noise, hidden.nbytes / rows)
    if not way.chain:
        return Arrived(hidden.float(), hidden.nbytes / rows)
    how: Mapping[str, Any] = {"width": form.width, "dtype": form.dtype, "where": "codecs.activations_up"}
    sender, receiver = make_sender(way.chain, **how), make_receiver(way.chain, **how, folder=None)
    times = way.releases
    if isinstance(sender, TemporalSender):
        sender.threshold, times = _NEAR, 2
    each = (form.rows,) * rows if lengths is None else tuple(lengths.tolist())
    samples, matrix = Samples(tuple(range(rows)), each), form.matrix(hidden)
    sent, total = 0, torch.zeros(())
    for _ in range(times):
        parts = sender.encode(matrix, samples)
        sent += sum(part.nbytes for part in parts)
        came = receiver.decode(parts, samples).float()
        total = total.to(came) + came
    seen = came if isinstance(sender, TemporalSender) else total / times
    return Arrived(form.tensor(seen), sent / rows / times)
