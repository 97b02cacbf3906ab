"""A tokenizer that by itself does what a run did with it: how it must be set, found from the run's rows, and set."""

import copy
import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from halfback.assembly import Built
from halfback.data.prompts import encode_prompts, first_tokens
from halfback.errors import UserError
from halfback.models.cut import CutModel
from halfback.models.quiet import quiet

log = logging.getLogger(__name__)

_ROWS = 100  # that the exported tokenizer is tried on


class Tokens(BaseModel):
    """How a tokenizer must be set, so that it gives outside what the run made of a text.

    Attributes:
        padding: the side on which rows of a batch are filled up.
        truncation: the side on which a long text loses what is too much.
        length: tokens of the longest row.
        pad: the token that fills rows up, one that no row can be taken to end with.
        bare: nothing is put behind a text, as it is to be continued.
        writes: the model was trained to write, and its end of text ends what it writes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    padding: Literal["left", "right"]
    truncation: Literal["left", "right"]
    length: Annotated[int, Field(ge=1, le=1_000_000_000)]
    pad: Annotated[int, Field(ge=0, le=1 << 31)]
    bare: bool
    writes: bool


def tokens_of(built: Built) -> Tokens:
    """What the run did with its tokenizer."""
    task, tokenizer = built.config.task, built.tokenizer
    writes = built.task.objective == "generation"
    continued = writes or task.verbaliser is not None
    behind = _behind(built) if continued or built.task.objective == "causal_lm" else ""
    if behind and not continued:
        log.info("the tokenizer ends each text with %s; take it off a text that is to be continued", behind)
    return Tokens(
        # Padding on the left gives a row of GPT-2 other positions than alone, but Transformers' decoding wants it.
        padding="left" if writes else "right",
        truncation="left" if writes or task.template is not None else tokenizer.truncation_side,
        length=task.max_length,
        pad=_padding(built),
        bare=continued and bool(behind),
        writes=writes,
    )


def settled(tokenizer: Any, tokens: Tokens) -> Any:
    """A copy of a tokenizer, set so.

    Raises:
        UserError: it has no such token to pad with, or can't be told to put nothing behind a text.
    """
    tokenizer = copy.deepcopy(tokenizer)
    _set(tokenizer, "padding_side", tokens.padding)
    _set(tokenizer, "truncation_side", tokens.truncation)
    tokenizer.model_max_length = tokens.length
    if tokens.pad != tokenizer.pad_token_id:
        if not tokens.pad < len(tokenizer):
            raise UserError(f"the tokenizer has {len(tokenizer)} tokens, none with the number {tokens.pad} to pad with")
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tokens.pad)
    if tokens.bare:
        _without_end(tokenizer)
    return tokenizer


def save(tokenizer: Any, tokens: Tokens, folder: Path) -> None:
    """Writes a tokenizer that is set so beside a model, and into the model's settings what ends and pads its texts."""
    with quiet():
        tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    if not file.exists():
        return
    # In the file, since Transformers saves no changed settings while any of the model's own contradict each other.
    settings = json.loads(file.read_text())
    settings["pad_token_id"] = tokenizer.pad_token_id
    if tokens.writes:
        settings["eos_token_id"] = tokenizer.eos_token_id
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def compare(built: Built, folder: Path) -> None:
    """Tells of the first of some texts that an exported tokenizer reads otherwise than the run."""
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


def _set(tokenizer: Any, name: str, value: str) -> None:
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value  # of these two only what it was made with is saved


def _padding(built: Built) -> int:
    """The token that pads rows outside: the run's own, unless it could be taken for the end of a text.

    The classifier of a decoder reads a row at its last token that is not the padding's, so no row may end with it.
    """
    tokenizer, whole = built.tokenizer, cast(Any, built.model.whole)
    has_table = hasattr(whole, "get_input_embeddings")  # as not every module of somebody's own has
    size: int = whole.get_input_embeddings().num_embeddings if has_table else len(tokenizer)
    named = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    special = [token for token in (*named, *sorted(tokenizer.all_special_ids)) if token is not None and token < size]
    ends: set[int] = set()
    if built.model.family.kind == "decoder" and _has_classifier(built.model):
        ends = built.task.train.last_tokens() | built.task.validation.last_tokens()
    free: int = next(token for token in (*special, *range(size)) if token not in ends)
    return free


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
