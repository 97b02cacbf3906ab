"""The reference's tensors, messages and end of a link, from this package's and back."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfback.codecs import parse
from halfback.engine.bounds import Bounds
from halfback.engine.links import Links
from halfback.parties.holdings import HiddenForm, LinkForm, VectorForm
from halfback.wire import messages as theirs
from halfback.wire.packing import Most
from halfback_device import forms, messages
from halfback_device.messages import Array


def given(array: Array) -> Tensor:
    """A copy as a tensor; uint16 are the bits of bfloat16."""
    bits = array.view(np.int16) if array.dtype == np.uint16 else array
    made = torch.from_numpy(bits.copy())
    made = made if made.numel() else torch.empty(array.shape, dtype=made.dtype)  # NumPy's may have strides of 0
    return made.view(torch.bfloat16) if array.dtype == np.uint16 else made


def taken(tensor: Tensor) -> Array:
    """A copy as an array."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().copy().view(np.uint16)
    made: Array = tensor.detach().numpy().copy()
    return made


def _changed(value: Any, change: Any, kind: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, theirs.Encoded | messages.Encoded):
        return kind(tuple(map(change, value.parts)))
    return tuple(map(change, value)) if isinstance(value, tuple) else value


def given_message(message: messages.Message) -> Any:
    """This package's message as the reference's."""
    parts = [
        getattr(theirs, type(part).__name__)(
            **{f.name: _changed(getattr(part, f.name), given, theirs.Encoded) for f in fields(part)}
        )
        for part in messages.parts_of(message)
    ]
    return theirs.of_parts(parts)


def taken_message(message: Any) -> messages.Message:
    """The reference's message as this package's."""
    parts = [
        getattr(messages, type(part).__name__)(
            **{f.name: _changed(getattr(part, f.name), taken, messages.Encoded) for f in fields(part)}
        )
        for part in theirs.parts_of(message)
    ]
    return messages.of_parts(parts)


def links(codecs: dict[str, list[Any]], carried: dict[str, forms.LinkForm], rows: int) -> Links:
    """The reference's links for these chains and forms."""
    mine: dict[str, LinkForm] = {
        name: VectorForm(form.length)
        if isinstance(form, forms.VectorForm)
        else HiddenForm(form.shape, form.has_texts, torch.float32)
        for name, form in carried.items()
    }
    exact = max([0, *(form.length for form in carried.values() if isinstance(form, forms.VectorForm))])
    bounds = Bounds(
        rows=rows,
        steps=9,
        directions=2,
        slopes={"up": 100, "down": 100},
        exact=exact,
        kept=lambda row: (12 * exact - 1) // row if row else 0,
        weights={"up": Most(4096, 9), "down": Most(4096, 9)},
    )
    parsed = {name: parse(chosen, f"codecs.{name}") for name, chosen in codecs.items()}
    return Links(parsed, {None: mine}, bounds, 6, torch.device("cpu"), None)
