"""From a history and its base to the model that the run ended with, to the bit."""

import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from halfback.assembly.again import Again, Wanted, begin_again
from halfback.config import build_algorithm
from halfback.errors import HalfbackError, UserError
from halfback.models.adapters import merged, trainable
from halfback.models.cut import CutModel
from halfback.models.processor import FILE as PROCESSOR
from halfback.parties.agreed import Agreed
from halfback.runs import exporting_model, history, tokens
from halfback.runs.history import History

log = logging.getLogger(__name__)


def apply(file: str | Path, base: str | Path | nn.Module, out: str | Path | None = None) -> nn.Module:
    """Rebuilds a fine-tuned model from a history and the model that the run began from.

    The slopes of the history are replayed, as a device does that was away, so what devices trained has the run's bits.

    Args:
        file: a history, as `Run.export(form="history")` writes it, or the folder that it lies in.
        base: the model that the run began from: its name, its folder, or the model itself; of a run that pretrained its
            model, that run's file `pretrained.safetensors`.
        out: a new folder to write the model into, with its tokenizer; none is written without it.

    Returns:
        The whole model, adapters merged into its weights, in eval mode on the CPU.

    Raises:
        UserError: the file is damaged, or the base is another than the run's; or `out` is there already.
    """
    found = history.read(Path(file))
    again = rebuilt(found, base)
    if out is not None:
        with exporting_model.new_folder(Path(out)) as folder:
            _write(found, again, base, folder)
    return merged(again.model)


def rebuilt(found: History, base: str | Path | nn.Module) -> Again:
    """The model in its parts, as the run left it; raises as `apply` does."""
    told = found.told
    wanted = Wanted(told.head, told.labels, told.channels, told.digest)
    again = begin_again(found.config, wanted, str(base) if isinstance(base, Path) else base)
    try:
        _replay(found, again)
    except HalfbackError as error:
        raise UserError(f"the history can't be replayed on this base: {error}") from None
    if told.beside == "left out":
        log.info("the server's part is as the run began it: it was trained by gradients, and the history is without it")
    return again


@torch.no_grad()
def _replay(found: History, again: Again) -> None:
    theta, own = again.theta, _beside(again)
    width = build_algorithm(found.config).needs.directions * len(theta.groups)
    if len(found.rows) and found.rows.shape[1] != width:
        raise UserError(f"a step has {found.rows.shape[1]} slopes, {width} are needed")
    exact = {f"exact.{name}": theta.parameters[name] for name in theta.exact}
    expected = exact | (own if found.told.beside == "top" else {})
    if lost := sorted(expected.keys() ^ found.beside.keys()):
        raise UserError(f"tensor {lost[0]!r} is missing, or not this model's")
    for name, tensor in found.beside.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            came = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise UserError(f"tensor {name!r} is {came}, {want.dtype} {tuple(want.shape)} is needed")
    if theta.exact:
        # Their gradients are no longer known, only what these led to; nobody goes on from here with moments.
        empty = [torch.zeros_like(tensor) for tensor in theta.exact_state().values()]
        theta.take_state(0, found.rows, [*(found.beside[name] for name in exact), *empty[len(exact) :]])
    elif found.rows.numel():
        Agreed(theta, list(found.rows), list(found.told.turns)).catch_up()
    if found.told.beside == "top":
        for name, tensor in own.items():
            tensor.copy_(found.beside[name])
    for name, tensor in theta.parameters.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"it makes {name} not finite")


def _beside(again: Again) -> dict[str, Tensor]:
    """What is trained of a model and isn't θ."""
    model: CutModel = again.model
    theta = {id(parameter) for parameter in again.theta.parameters.values()}
    parts = [part for part in (model.top, model.head) if part is not None]
    return {f"top.{name}": p for part in parts for name, p in trainable(part).items() if id(p) not in theta}


def _write(found: History, again: Again, base: str | Path | nn.Module, folder: Path) -> None:
    told, tokenizer = found.told, again.tokenizer
    if told.tokens is not None and tokenizer is not None:
        tokenizer = tokens.settled(tokenizer, told.tokens)
    exporting_model.write_model(again.model, tokenizer, told.tokens, told.labels, folder)
    if told.processor is not None:
        (folder / PROCESSOR).write_text(json.dumps(told.processor, indent=2, sort_keys=True) + "\n")
