"""Codecs: what a link does to a float field's values before packing; a recipe chooses a chain for each link.

Ours are below; others are those that packages declare under `halfback.codecs`, or register in this process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from halfback.codecs.chain import Chain
from halfback.codecs.ends import FeedbackSender, Plain
from halfback.codecs.private import Private, PrivateSender, private_of
from halfback.codecs.protocol import Coding, Receiver, Sender, Stage
from halfback.codecs.quantise import Cast, Int4, Int8, Sign
from halfback.codecs.releases import Releases
from halfback.codecs.sparsify import Projection, TopK
from halfback.codecs.temporal import Temporal, TemporalReceiver, TemporalSender
from halfback.errors import UserError
from halfback.registry import Registry, parsed

Codec = Coding | Temporal
CODECS: Registry[type[Codec]] = Registry(
    "halfback.codecs",
    {
        "cast": Cast,
        "int8": Int8,
        "int4": Int4,
        "sign": Sign,
        "topk": TopK,
        "projection": Projection,
        "private": Private,
        "temporal": Temporal,
    },
)
codec = CODECS.named
"""A decorator: `@codec("my_codec")` on a frozen dataclass, whose fields are the codec's options (see `Coding`)."""


def parse(chosen: Sequence[str | Mapping[str, Any]], where: str) -> tuple[Codec, ...]:
    """The codecs of a chain from names, or mappings with a `name` and options.

    Raises:
        UserError: an unknown codec, option or value, temporal behind another, or private where it can't stand; names
            `where` and what is allowed.
    """
    codecs = tuple(parsed(CODECS, entry, where, "codec") for entry in chosen)
    if any(isinstance(codec, Temporal) for codec in codecs[1:]):
        raise UserError(f"{where}: temporal must be the first of its chain, and there only once")
    if sum(isinstance(codec, Private) for codec in codecs) > 1:
        raise UserError(f"{where}: private may be there only once: clip and noise are of all that is sent")
    if private_of(codecs) is not None and _has_feedback(codecs):
        raise UserError(f"{where}: feedback adds the next time what was lost, and with private that is the noise")
    return codecs


def _has_feedback(codecs: Sequence[Codec]) -> bool:
    return any(isinstance(codec, TopK | Sign) and codec.feedback for codec in codecs)


def _chain(codecs: Sequence[Codec], width: int, dtype: torch.dtype, where: str) -> Chain:
    stages: list[Stage] = []
    columns, values = width, dtype
    for codec in codecs:
        if isinstance(codec, Temporal):
            continue
        if not values.is_floating_point:
            raise UserError(
                f"{where}: {type(codec).__name__.lower()} takes floats; what comes before it gives {values}"
            )
        if isinstance(codec, Private) and any(stage.extras for stage in stages):
            raise UserError(f"{where}: what comes before private may send nothing beside its values, as of topk places")
        try:
            stages.append(codec.bind(columns, values))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        columns, values = stages[-1].width, stages[-1].dtype
    return Chain(stages, width=width, dtype=dtype)


def make_sender(
    codecs: Sequence[Codec],
    *,
    width: int,
    dtype: torch.dtype,
    where: str,
    releases: Releases | None = None,
    client: int = 0,
) -> Sender:
    """The sending end of a link for rows of `width` values of `dtype`.

    `releases`: where `private` counts what goes out of the samples of `client`; None for a count of its own.

    Raises:
        UserError: a codec can't take what the one before it gives.
    """
    chain, private = _chain(codecs, width, dtype, where), private_of(codecs)
    counting = None if private is None else PrivateSender(private, chain, releases or Releases(), client)
    inner: Sender = counting or (FeedbackSender(chain) if _has_feedback(codecs) else Plain(chain))
    first = codecs[0] if codecs else None
    if not isinstance(first, Temporal):
        return inner
    return TemporalSender(first, inner, chain, None if counting is None else counting.is_spent)


def make_receiver(
    codecs: Sequence[Codec], *, width: int, dtype: torch.dtype, where: str, folder: Path | None
) -> Receiver:
    """The receiving end; `folder` is where a cache on disk may keep its files."""
    chain = _chain(codecs, width, dtype, where)
    first = codecs[0] if codecs else None
    return TemporalReceiver(first, Plain(chain), chain, folder) if isinstance(first, Temporal) else Plain(chain)
