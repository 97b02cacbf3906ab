"""The link between a client and the server: pack → count → unpack, in both directions."""

from typing import Any

import torch
from torch import Tensor

from halfback.telemetry.meters import Stopwatch
from halfback.wire.ledger import Direction, Ledger
from halfback.wire.messages import FIELDS, Message
from halfback.wire.packing import pack, unpack


class Link:
    """Carries messages as bytes, also inside one process, so that what is counted is what is sent."""

    def __init__(self, ledger: Ledger, stopwatch: Stopwatch, device: torch.device) -> None:
        self._ledger = ledger
        self._stopwatch = stopwatch
        self._device = device

    def carry(self, direction: Direction, message: Message) -> Message:
        """The message as the other side receives it, with its tensors on the device."""
        with self._stopwatch.running():
            packed = pack(message)
            self._ledger.add(direction, type(message).__name__, packed)
            received = unpack(packed.data)
            placed: dict[str, Any] = {n: self._place(getattr(received, n)) for n in FIELDS[type(received)]}
            return type(received)(**placed)

    def _place(self, value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(self._device)
        if isinstance(value, tuple):
            return tuple(tensor.to(self._device) for tensor in value)
        return value


def tensors_of(message: Message) -> list[Tensor]:
    """Every tensor that a message holds."""
    values = [getattr(message, name) for name in FIELDS[type(message)]]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Tensor)]
