"""A run's model as one graph of ONNX, held against the run's own logits, with what turns rows into its inputs."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from halfback.assembly import Built
from halfback.errors import UserError
from halfback.models.adapters import merged, settle
from halfback.models.running import Top
from halfback.packaging import check_installed
from halfback.packaging.whole import run_of, write_graph
from halfback.runs import tokens as reading

log = logging.getLogger(__name__)

FILE = "model.onnx"
_SCORED = 32  # rows of a language model that are tried: each of their tokens has logits of the whole vocabulary
ALLOWED = 1e-4  # error beside the largest logit that is let pass: float32 sums in another order come to some 1e-6


def write(built: Built, folder: Path) -> None:
    """Writes the graph, and tries it on the validation rows: all of them, or some of a language model's.

    Raises:
        UserError: the extra `package` is not installed, an operator can't be exported, or the graph gives other logits.
    """
    check_installed("--onnx", device=False)
    model: Any = merged(built.model).cpu()
    settled: Any = None
    image, names = None, ["pixel_values"]
    if built.tokenizer is None:
        image = built.task.validation.batch([0, 0]).inputs["pixel_values"]
    else:
        types = "token_type_ids" in built.tokenizer.model_input_names and built.model.family.kind == "encoder"
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
        tokens = reading.tokens_of(built)
        settled = reading.settled(built.tokenizer, tokens)
    if hasattr(model, "save_pretrained"):
        decoder = settled is not None and built.model.family.kind == "decoder"
        # By its padding a decoder's classifier finds the last token of a row.
        settle(built.model, model, built.task.label_names, pad=settled.pad_token_id if decoder else None)
    write_graph(model, folder / FILE, names, image)
    if settled is not None:
        settled.save_pretrained(folder)
    if built.processor is not None:
        built.processor.save_pretrained(folder)
    if hasattr(model, "save_pretrained"):
        model.config.save_pretrained(folder)
    _hold(built, folder / FILE, 0 if settled is None else settled.pad_token_id)


@torch.no_grad()
def _hold(built: Built, path: Path, pad: int) -> None:
    """Compares the graph with the run on validation rows; raises as `write` does."""
    run, last = run_of(path), cast(Top, built.model.head or built.model.top)
    of_tokens, rows = hasattr(built.model.whole, "lm_head"), len(built.task.validation)
    rows = min(rows, _SCORED) if of_tokens else rows
    error = largest = 0.0
    for own in torch.arange(rows).split(4 if of_tokens else built.config.eval_batch_size):
        batch = built.task.validation.batch(own).to(next(built.model.whole.parameters()).device)
        wanted, inputs = built.model.logits(batch.inputs).cpu().float(), _rows(built, own, pad)
        found = run(inputs)
        if of_tokens and last.verbaliser is not None:
            found = found[torch.arange(len(own)), inputs["attention_mask"].sum(1) - 1][:, list(last.verbaliser)]
        elif of_tokens:
            found = found[inputs["attention_mask"].bool()]
        error = max(error, float((found - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    log.info("%s: of %d validation rows, logits differ by %.1e at most in ONNX Runtime", FILE, rows, error)
    if not error <= ALLOWED * max(largest, 1):
        raise UserError(f"--onnx: the graph's logits differ from the run's by {error:.1e}; use --merged")


def _rows(built: Built, rows: Tensor, pad: int) -> dict[str, Tensor]:
    """Rows as a user feeds them: images, or texts filled up on the right."""
    inputs = built.task.validation.batch(rows).inputs
    if "lengths" not in inputs:
        return dict(inputs)
    lengths = inputs["lengths"]
    fill = {"input_ids": pad, "token_type_ids": 0}
    padded = {
        name: torch.nn.utils.rnn.pad_sequence(
            list(inputs[name].split(lengths.tolist())), batch_first=True, padding_value=value
        )
        for name, value in fill.items()
        if name in inputs
    }
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    types = {} if "token_type_ids" in padded else {"token_type_ids": torch.zeros_like(mask)}
    return padded | types | {"attention_mask": mask}
