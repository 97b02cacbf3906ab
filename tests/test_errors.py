"""Errors carry fields, and are put in words in one place."""

import pytest

from halfback.errors import Diverged, Peer, PeerError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PeerError("Slopes.step", 3, "2 is allowed"), "Slopes.step: 3 came, 2 is allowed"),
        (PeerError("Slopes.step", 3, "2 is allowed", sender=4), "client 4: Slopes.step: 3 came, 2 is allowed"),
        (PeerError("Share.group", -1, "0 is allowed", sender="server"), "server: Share.group: -1 came, 0 is allowed"),
        (PeerError("", "Say", "prepare is due first", sender=0), "client 0: Say came, prepare is due first"),
        (PeerError("header", "no text\nof\x1b[2J one line"), "header: no text of [2J one line"),
        (
            PeerError("codec: scale", "one below 0 came").within("Activations.hidden").of(1),
            "client 1: Activations.hidden: codec: scale: one below 0 came",
        ),
        (
            Diverged("Slopes.values", "are not finite", "lower bottom.lr", step=7, sender=3),
            "step 7: Slopes.values of client 3 are not finite; lower bottom.lr",
        ),
        (
            Diverged("Losses.values", "is not finite", "lower top.lr", sender="server"),
            "server: Losses.values is not finite; lower top.lr",
        ),
        (
            Diverged("the validation loss", "is nan", "lower top.lr", step=7),
            "step 7: the validation loss is nan; lower top.lr",
        ),
        (
            Diverged("beside the finished ho_sfl: step 7: the loss is nan"),
            "beside the finished ho_sfl: step 7: the loss is nan",
        ),
    ],
)
def test_what_an_error_says(error: PeerError | Diverged, says: str) -> None:
    assert str(error) == says


@pytest.mark.parametrize("sender", [None, "server", 0, 12])
def test_an_error_keeps_its_fields(sender: Peer) -> None:
    error = PeerError("hidden", "(3,)", "(4,) is allowed").within("Activations").of(sender)
    assert (error.field, error.came, error.allowed) == ("Activations: hidden", "(3,)", "(4,) is allowed")
    assert error.sender == sender
    assert Diverged("the loss", "is nan", step=1, sender=sender).sender == sender
