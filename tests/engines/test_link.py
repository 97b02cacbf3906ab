"""The link: bytes on both sides of it, also inside one process."""

import pytest
import torch

from halfback.engines.link import Link
from halfback.telemetry.meters import Stopwatch
from halfback.wire.ledger import Direction, Ledger
from halfback.wire.messages import Weights
from halfback.wire.packing import pack


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_link_enters_the_bytes_and_delivers_what_they_say(direction: Direction) -> None:
    """What arrives was read from the bytes: the sender's tensor may change meanwhile."""
    ledger, stopwatch, weight = Ledger(), Stopwatch(), torch.ones(3)
    came = Link(ledger, stopwatch, torch.device("cpu")).carry(direction, Weights((weight,)))
    weight.add_(1)
    assert isinstance(came, Weights)
    assert torch.equal(came.tensors[0], torch.ones(3))
    assert ledger.total(direction) == len(pack(Weights((weight,))).data)
    assert stopwatch.seconds > 0
