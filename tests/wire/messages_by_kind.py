"""One message of every kind and shape of use, for the tests of the wire."""

import torch

from halfback.wire.messages import (
    Activations,
    Both,
    Caches,
    CutGradient,
    Encoded,
    Exact,
    HandOver,
    HeadGradient,
    History,
    Join,
    Losses,
    Masking,
    Message,
    MiddleActivations,
    Nothing,
    Share,
    Slopes,
    Turns,
    Weights,
)


def _values(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 8 - 1


MESSAGES: dict[str, Message] = {
    "nothing": Nothing(),
    "join": Join(1 << 40),
    "history": History(7, _values(5, 2)),
    "history-empty": History(0, torch.zeros(0, 2)),
    "hand-over": HandOver((_values(2, 3), _values(4))),
    "history-and-state": Both(History(7, _values(5, 2)), Weights((_values(2, 3), _values(4)))),
    "history-and-state-of-nothing": Both(History(7, _values(0, 2)), Weights(())),
    "history-of-turns": Both(History(7, _values(3, 2)), Turns(torch.tensor([2, 3, 2], dtype=torch.int32))),
    "turns": Turns(torch.tensor([5], dtype=torch.int32)),
    "share": Share(7, _values(5, 2), 3),
    "activations-text": Activations(
        _values(5, 4),
        torch.tensor([2, 3], dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([9, 4], dtype=torch.int32),
    ),
    "activations-image": Activations(_values(2, 3, 2, 2), None, None, torch.tensor([5, -1], dtype=torch.int32)),
    "activations-bf16": Activations(
        _values(1, 2, 4).bfloat16(), None, torch.tensor([3], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    ),
    "gradient": CutGradient(_values(5, 4)),
    "slopes": Slopes(-1, torch.tensor([0.5, -2.0])),
    "losses": Losses(torch.tensor([0.693])),
    "weights": Weights((_values(3, 2), torch.tensor(2.5), torch.zeros(0, 4))),
    "weights-none": Weights(()),
    "activations-encoded": Activations(
        Encoded((_values(5, 4).to(torch.int8), _values(5, 1))),  # type: ignore[arg-type]
        torch.tensor([2, 3], dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([9, 4], dtype=torch.int32),
    ),
    "activations-repeated": Activations(_values(1, 2, 4), None, None, None),
    "gradient-encoded": CutGradient(Encoded(())),  # type: ignore[arg-type]
    "caches": Caches(torch.tensor([1 << 60, -3]), torch.tensor([0.5, -1.0])),
    "caches-up": Caches(torch.tensor([7]), None),
    "middle": MiddleActivations(_values(5, 4), (_values(2, 4),)),
    "middle-frozen-head": MiddleActivations(_values(2, 4, 2, 2), ()),
    "slopes-and-activations": Both(
        Slopes(7, torch.tensor([0.5, -2.0])),
        Activations(
            _values(2, 4).bfloat16(),
            torch.tensor([2], dtype=torch.int32),
            torch.tensor([3], dtype=torch.int32),
            torch.tensor([2], dtype=torch.int32),
        ),
    ),
    "slopes-and-gradient": Both(Slopes(7, torch.tensor([0.5, -2.0])), CutGradient(_values(2, 2))),
    "slopes-and-gradient-encoded": Both(Slopes(0, torch.zeros(0)), CutGradient(Encoded((_values(1, 2),)))),  # type: ignore[arg-type]
    "slopes-and-exact": Both(Slopes(7, torch.tensor([0.5, -2.0])), Exact(_values(3))),
    "slopes-and-exact-encoded": Both(
        Slopes(7, torch.zeros(0)),
        Exact(Encoded((_values(2, 1).to(torch.int8).view(torch.uint8), _values(2, 1)))),  # type: ignore[arg-type]
    ),
    "history-and-exact": Both(History(7, torch.zeros(2, 1)), Exact(_values(2))),
    "history-and-exact-encoded": Both(
        History(7, torch.zeros(2, 0)),
        Exact(Encoded((_values(2, 1).to(torch.int8).view(torch.uint8), _values(2, 1)))),  # type: ignore[arg-type]
    ),
    "masking": Masking(1, torch.tensor([4, 0]), torch.arange(6, dtype=torch.uint8).reshape(2, 3)),
    "head-gradient": HeadGradient(_values(5, 4), torch.tensor([0.693]), (_values(2, 4), torch.tensor(0.5))),
}
