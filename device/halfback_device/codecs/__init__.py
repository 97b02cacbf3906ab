"""Codecs: what a link does to a float field's values before packing; a recipe chooses a chain for each link."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfback_device.codecs.chain import Chain
from halfback_device.codecs.ends import FeedbackSender, Plain
from halfback_device.codecs.private import Private, PrivateSender, Releases
from halfback_device.codecs.protocol import Receiver, Sender, Stage
from halfback_device.codecs.stages import Cast, Int4, Int8, Sign
from halfback_device.codecs.temporal import Temporal, TemporalReceiver, TemporalSender
from halfback_device.errors import PackageError

Chosen = Sequence[str | Mapping[str, Any]]
"""A chain as a recipe has it: a codec's name, or a mapping with its `name` and options."""

_STAGES: dict[str, Any] = {"cast": Cast, "int8": Int8, "int4": Int4, "sign": Sign, "private": Private}


def entries(chosen: Chosen, where: str) -> list[tuple[str, dict[str, Any]]]:
    """The name and the options of each codec of a chain; `where`: the link, for messages.

    Raises:
        PackageError: names what this device has no codec for.
    """
    found = []
    for entry in chosen:
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = options.pop("name", None)
        if name != "temporal" and name not in _STAGES:
            raise PackageError(f"{where}: codec {name!r}: a device has {', '.join([*_STAGES, 'temporal'])}")
        found.append((str(name), options))
    if any(name == "temporal" for name, _ in found[1:]):
        raise PackageError(f"{where}: temporal must be the first of its chain, and there only once")
    return found


def _made(kind: Any, where: str, entry: tuple[str, dict[str, Any]], *args: Any) -> Any:
    name, options = entry
    try:
        return kind(*args, **options)
    except PackageError as error:
        raise PackageError(f"{where}: {error}") from None
    except TypeError as error:
        raise PackageError(f"{where}: codec {name}: {error}") from None


def _chain(chosen: Chosen, width: int, where: str) -> tuple[Chain, bool, Temporal | None]:
    """The chain behind `temporal`, whether it has feedback, and the options of `temporal`."""
    stages: list[Stage] = []
    columns, values, feedback, temporal = width, np.dtype(np.float32), False, None
    for name, options in entries(chosen, where):
        if name == "temporal":
            temporal = _made(Temporal, where, (name, options))
            continue
        if values in (np.int8, np.uint8):
            raise PackageError(f"{where}: {name} takes floats; what comes before it gives {values}")
        if name == "sign":
            feedback = bool(options.pop("feedback", True))
        if name == "private" and any(stage.extras for stage in stages):
            raise PackageError(f"{where}: what comes before private may send nothing beside its values")
        stages.append(_made(_STAGES[name], where, (name, options), columns, values))
        columns, values = stages[-1].width, stages[-1].dtype
    return Chain(stages, width), feedback, temporal


def make_sender(chosen: Chosen, width: int, where: str, releases: Releases | None = None) -> Sender:
    """The sending end of a link for rows of `width` float32 values.

    `releases`: where `private` counts what goes out of samples; None for a count of its own.

    Raises:
        PackageError: a codec is none that this device has, or can't take what the one before it gives; or `private`
            stands where it would promise nothing.
    """
    chain, feedback, temporal = _chain(chosen, width, where)
    private = [stage for stage in chain.stages if isinstance(stage, Private)]
    if private and (
        len(private) > 1 or feedback or where != "codecs.activations_up" or (temporal and temporal.every is None)
    ):
        raise PackageError(
            f"{where}: private is for activations_up, once, without feedback, and behind temporal with every alone"
        )
    counting = PrivateSender(private[0], chain, releases or Releases()) if private else None
    inner: Sender = counting or (FeedbackSender(chain) if feedback else Plain(chain))
    if temporal is None:
        return inner
    return TemporalSender(temporal, inner, chain, None if counting is None else counting.is_spent)


def make_receiver(chosen: Chosen, width: int, where: str, folder: Path | None) -> Receiver:
    """The receiving end; `folder` is where a cache on disk may keep its files. Raises as `make_sender` does."""
    chain, _, temporal = _chain(chosen, width, where)
    return Plain(chain) if temporal is None else TemporalReceiver(temporal, Plain(chain), chain, folder)
