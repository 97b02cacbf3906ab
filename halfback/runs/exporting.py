"""A run's model as a folder that plain Transformers loads, with a tokenizer that gives it the run's own tokens."""

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from halfback.assembly import Built
from halfback.assembly.given import Given
from halfback.data.prompts import encode_prompts, first_tokens
from halfback.errors import UserError
from halfback.models import adapters
from halfback.models.cut import CutModel
from halfback.models.quiet import quiet
from halfback.runs.opening import Which, reload
from halfback.runs.subject import write_reading

log = logging.getLogger(__name__)

_ROWS = 100  # that the exported tokenizer is tried on


def export(folder: Path, out: Path, given: Given | None = None, which: Which = "last") -> None:
    """Writes the model of the run in `folder`, both parts joined and adapters merged, as the new folder `out`.

    A text reads there as in the run: with `truncation=True` it is cut where the run cut it, and padded rows of a batch
    give what each row gives alone. Where the tokenizer can't be made to, that is logged.

    Raises:
        UserError: `out` exists, or can't be written, or `folder` holds no run with a checkpoint.
    """
    if out.exists():
        raise UserError(f"--out {out} exists already; name a new folder")
    built = reload(folder, given, which)
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed: nothing of it may stay in this one
    try:
        write(built, unfinished)
        unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"--out {out} can't be written: {getattr(error, 'strerror', None) or error}") from None


def write(built: Built, folder: Path) -> None:
    """Writes the model as it is now, what turns texts or images into its input, and how rows are read for it."""
    names = built.task.label_names
    folder.mkdir(parents=True, exist_ok=True)
    write_reading(built, folder)
    if built.tokenizer is None:
        adapters.export(built.model, folder, names)
        if built.processor is not None:
            built.processor.save_pretrained(folder)
        return
    tokenizer = _as_in_the_run(built)
    decoder = built.model.family.kind == "decoder"
    # An encoder keeps its own, from behind which RoBERTa counts positions.
    adapters.export(built.model, folder, names, pad=tokenizer.pad_token_id if decoder else None)
    with quiet():
        tokenizer.save_pretrained(folder)
    _settle_generation(built, tokenizer, folder / "generation_config.json")
    _compare(built, folder)


def _as_in_the_run(built: Built) -> Any:
    """A copy of the tokenizer that by itself does what the run did with it."""
    task, tokenizer = built.config.task, copy.deepcopy(built.tokenizer)
    writes = built.task.objective == "generation"
    # Padding on the left gives a row of GPT-2 other positions than it has alone, but Transformers' decoding wants it.
    _set(tokenizer, "padding_side", "left" if writes else "right")
    _set(tokenizer, "truncation_side", "left" if writes or task.template is not None else tokenizer.truncation_side)
    tokenizer.model_max_length = task.max_length
    pad = _padding(built, tokenizer)
    if pad != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    if (writes or task.verbaliser is not None) and _behind(built):
        _without_end(tokenizer)
    elif built.task.objective == "causal_lm" and (behind := _behind(built)):
        log.info("the tokenizer ends each text with %s; take it off a text that is to be continued", behind)
    return tokenizer


def _set(tokenizer: Any, name: str, value: str) -> None:
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value  # of these two only what it was made with is saved


def _padding(built: Built, tokenizer: Any) -> int:
    """The token that pads rows outside: the run's own, unless it could be taken for the end of a text.

    The classifier of a decoder reads a row at its last token that is not the padding's, so no row may end with it.
    """
    size = built.model.whole.get_input_embeddings().num_embeddings  # type: ignore[operator]
    named = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    special = [token for token in (*named, *sorted(tokenizer.all_special_ids)) if token is not None and token < size]
    ends: set[int] = set()
    if built.model.family.kind == "decoder" and _has_classifier(built.model):
        ends = built.task.train.last_tokens() | built.task.validation.last_tokens()
    return next(token for token in (*special, *range(size)) if token not in ends)


def _has_classifier(model: CutModel) -> bool:
    return any(hasattr(model.whole, head) for head in model.family.head)


def _behind(built: Built) -> str:
    """What the tokenizer puts behind each text, in words."""
    for row in built.task.train.some_tokens(_ROWS):
        text = built.tokenizer.decode(row, skip_special_tokens=True)
        whole, bare = (built.tokenizer(text, add_special_tokens=added)["input_ids"] for added in (True, False))
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return " ".join(built.tokenizer.convert_ids_to_tokens(whole[start + len(bare) :]))
    return ""


def _without_end(tokenizer: Any) -> None:
    """Nothing is put behind a text any more: it would end the prompt before its continuation."""
    from tokenizers import processors

    first = tokenizer.convert_ids_to_tokens(first_tokens(tokenizer))
    single = [*first, "$A"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B"], special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in {*first}]
    )


def _settle_generation(built: Built, tokenizer: Any, file: Path) -> None:
    """What ends and what pads a text that the model writes; the model's other defaults stay.

    In the file, since Transformers saves no changed settings while any of the model's own contradict each other.
    """
    if not file.exists():
        return
    settings = json.loads(file.read_text())
    settings["pad_token_id"] = tokenizer.pad_token_id
    if built.task.objective == "generation":
        settings["eos_token_id"] = tokenizer.eos_token_id
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _compare(built: Built, folder: Path) -> None:
    """Tells of the first of some texts that the exported tokenizer reads otherwise than the run."""
    from transformers import AutoTokenizer

    length = built.config.task.max_length
    again = AutoTokenizer.from_pretrained(folder)
    rows = built.task.validation.some_tokens(_ROWS)
    texts = [text for row in rows if (text := built.tokenizer.decode(row, skip_special_tokens=True)).strip()]
    if built.task.objective == "generation" or built.config.task.verbaliser is not None:
        wanted = encode_prompts(texts, built.tokenizer, length)
    else:
        wanted = [built.tokenizer(text)["input_ids"] for text in texts]
    for text, row in zip(texts, wanted, strict=True):
        if (found := again(text)["input_ids"]) != row and len(row) <= length:
            log.warning("the exported tokenizer reads %r as %s, the run read %s", text[:40], found[:12], row[:12])
            return
