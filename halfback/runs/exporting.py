"""What a run gives to take home: its model whole, its adapters, a graph, or the history of its slopes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from halfback.assembly import Built
from halfback.assembly.given import Given
from halfback.errors import UserError, offer
from halfback.runs import exporting_adapter, exporting_model, exporting_onnx, history
from halfback.runs.opening import reload

log = logging.getLogger(__name__)

Form = Literal["merged", "adapter", "onnx", "history"]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a run.

    Attributes:
        form: which of the forms.
        parts: of `adapter`, a folder each for the device's part and the server's, and not one for both.
        top: of `history`, with the tensors that gradients moved.
    """

    form: Form = "merged"
    parts: bool = False
    top: bool = True

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
    built = reload(folder, given)
    with exporting_model.new_folder(out) as made:
        match wanted.form:
            case "merged":
                exporting_model.write(built, made)
            case "adapter":
                exporting_adapter.write(built, made, parts=wanted.parts)
            case "onnx":
                exporting_onnx.write(built, made)
            case "history":
                _history(built, made, wanted)


def _history(built: Built, folder: Path, wanted: Wanted) -> None:
    told, path = history.write(built, folder / history.FILE, with_top=wanted.top), folder / history.FILE
    log.info(
        "%s: %d steps, %.1f KB", history.FILE, len(built.federation.server.party.agreed.rows), path.stat().st_size / 1e3
    )
    if told.beside == "left out":
        log.info("it has what the devices trained; what the server trained by gradients is left out")
