"""A run's model as a folder that plain Transformers loads, with a tokenizer that gives it the run's own tokens."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from halfback.assembly import Built
from halfback.errors import UserError
from halfback.models import adapters
from halfback.models.cut import CutModel
from halfback.runs import tokens as reading
from halfback.runs.subject import write_reading
from halfback.runs.tokens import Tokens, settled, tokens_of


def write(built: Built, folder: Path) -> None:
    """Writes the model as it is now, what turns texts or images into its input, and how rows are read for it.

    A text reads there as in the run: with `truncation=True` it is cut where the run cut it, and padded rows of a batch
    give what each row gives alone. Where the tokenizer can't be made to, that is logged.
    """
    names = built.task.label_names
    folder.mkdir(parents=True, exist_ok=True)
    write_reading(built, folder)
    if built.tokenizer is None:
        write_model(built.model, None, None, names, folder)
        if built.processor is not None:
            built.processor.save_pretrained(folder)
        return
    tokens = tokens_of(built)
    write_model(built.model, settled(built.tokenizer, tokens), tokens, names, folder)
    reading.compare(built, folder)


def write_model(model: CutModel, tokenizer: Any, tokens: Tokens | None, names: Sequence[str], folder: Path) -> None:
    """Writes a model, and its tokenizer once it is set, if it has one; `names`: of the classes."""
    decoder = tokenizer is not None and model.family.kind == "decoder"
    # An encoder keeps its own, from behind which RoBERTa counts positions.
    adapters.export(model, folder, names, pad=tokenizer.pad_token_id if decoder else None)
    if tokenizer is not None and tokens is not None:
        reading.save(tokenizer, tokens, folder)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` behind the block, whole or not at all.

    Raises:
        UserError: `out` exists, or can't be written.
    """
    if out.exists():
        raise UserError(f"--out {out} exists already; name a new folder")
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed: nothing of it may stay in this one
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out} can't be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
