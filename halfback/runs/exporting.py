"""What a run gives to take home: its model whole, its adapters, a graph, or the history of its slopes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from halfback.assembly import Built
from halfback.assembly.given import Given
from halfback.engine import checkpoint
from halfback.errors import UserError, offer
from halfback.runs import exporting_adapter, exporting_card, exporting_model, exporting_onnx, history
from halfback.runs import exporting_snippets as snippets
from halfback.runs.exporting_card import Said
from halfback.runs.folder import BEST
from halfback.runs.opening import Which, reload
from halfback.telemetry.records import read_records

log = logging.getLogger(__name__)

Form = Literal["merged", "adapter", "onnx", "history"]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a run.

    Attributes:
        form: which of the forms.
        parts: of `adapter`, a folder each for the device's part and the server's, and not one for both.
        top: of `history`, with the tensors that gradients moved.
        checkpoint: "last", or "best" of a run that ran with `keep_best`.
    """

    form: Form = "merged"
    parts: bool = False
    top: bool = True
    checkpoint: Which = "last"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise UserError(f"form={self.form!r}: {offer(str(self.form), get_args(Form))}")
        if self.parts and self.form != "adapter":
            raise UserError("--parts is for --adapter")
        if not self.top and self.form != "history":
            raise UserError("--without-top is for --history")


def export(folder: Path, out: Path, wanted: Wanted, given: Given | None = None) -> None:
    """Writes what is wanted of the run in `folder` as the new folder `out`, with a model card.

    Raises:
        UserError: `out` exists, or can't be written; `folder` holds no run with a checkpoint, or one that can't be had
            in this form.
    """
    if out.exists():
        raise UserError(f"--out {out} exists already; name a new folder")
    built = reload(folder, given, wanted.checkpoint)
    best = checkpoint.rounds(folder / BEST) if wanted.checkpoint == "best" else []
    records = [record for record in read_records(folder) if not best or record.round <= best[-1]]
    with exporting_model.new_folder(out) as made:
        exporting_card.write(built, (folder, records), _FORMS[wanted.form](built, made, wanted), made)


def _merged(built: Built, folder: Path, _: Wanted) -> Said:
    exporting_model.write(built, folder)
    return Said("The whole model: both parts joined, adapters merged into the weights.", snippets.of_model(built))


def _adapter(built: Built, folder: Path, wanted: Wanted) -> Said:
    found = exporting_adapter.write(built, folder, parts=wanted.parts)
    what = "Two adapters, one of the devices' part and one of the rest" if found else "An adapter"
    limits = ["It needs the base that it began from, with the same weights; put on another one it gives other logits."]
    return Said(f"{what}, for a base model that isn't in here.", snippets.of_adapter(built, found), limits)


def _onnx(built: Built, folder: Path, _: Wanted) -> Said:
    exporting_onnx.write(built, folder)
    what = "The whole model as one graph of ONNX, for batches of any size and texts of any length."
    return Said(
        what, snippets.of_graph(built), ["It computes logits; what chooses from them is up to whoever runs it."]
    )


def _history(built: Built, folder: Path, wanted: Wanted) -> Said:
    told, path = history.write(built, folder / history.FILE, with_top=wanted.top), folder / history.FILE
    steps = len(built.federation.server.party.agreed.rows)
    log.info("%s: the slopes of %d steps, %.1f KB", history.FILE, steps, path.stat().st_size / 1e3)
    limits = ["It rebuilds the model's bits on the base that it began from, and is refused on any other."]
    if told.beside == "left out":
        limits.append("What the server trained by gradients is left out: without it the model is not what the run had.")
        log.info("it has what the devices trained; what the server trained by gradients is left out")
    elif told.beside == "top":
        limits.append("What the server trained has no slopes: its tensors are in the file as they are.")
    what = (
        f"The history of a fine-tune: what it began from, and the {steps} steps of slopes that its clients agreed on."
    )
    return Said(what, snippets.of_history(built), limits)


_FORMS: dict[Form, Callable[[Built, Path, Wanted], Said]] = {
    "merged": _merged,
    "adapter": _adapter,
    "onnx": _onnx,
    "history": _history,
}
