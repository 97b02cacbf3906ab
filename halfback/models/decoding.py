"""Continue prompts with the re-joined model, by Transformers' own decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from halfback.errors import UserError, of_extra
from halfback.models.quiet import quiet


def check_known(whole: Any, tokenizer: Any, token: int, where: str) -> None:
    """Refuses a token that the model's embedding has no row for; `token` is the largest of some texts.

    Raises:
        UserError: names it, and `where` it was said which model to take.
    """
    size = whole.get_input_embeddings().num_embeddings
    if token >= size:
        word = tokenizer.convert_ids_to_tokens(token)
        raise UserError(
            f"{where}: the tokenizer reads {word!r} as token {token}, the model has 0 to {size - 1}: they don't fit"
        )


@dataclass(frozen=True)
class Decoding:
    """How a continuation is chosen, token by token; nothing is drawn at random.

    pad, end: the tokens that fill up a batch's shorter rows and that end a text; None where no token does.
    beams: 1 for the likeliest token at each place (greedy), more for that many beams.
    max_new_tokens: where a continuation stops that doesn't end before.
    """

    pad: int
    end: int | None
    beams: int
    max_new_tokens: int


def continue_prompts(
    whole: nn.Module, prompts: Sequence[Sequence[int]], how: Decoding, *, batch_size: int
) -> list[list[int]]:
    """The tokens that the model puts behind each prompt, up to the end of the text, which is left out.

    whole: a causal language model, such as `CutModel.whole`, which has the parameters and the adapters of both halves.
    Defaults of the model's own (its temperature, a penalty for repetition) are left aside and put back after.
    """
    with of_extra("transformers"):
        from transformers import GenerationConfig

    model: Any = whole
    device = next(whole.parameters()).device
    settings = GenerationConfig(
        do_sample=False,
        num_beams=how.beams,
        max_new_tokens=how.max_new_tokens,
        eos_token_id=how.end,
        pad_token_id=how.pad,
    )
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # little padding in a batch
    found: dict[int, list[int]] = {}
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            tokens = [torch.tensor(prompts[row]) for row in rows]
            ids = pad_sequence(tokens, batch_first=True, padding_value=how.pad, padding_side="left")
            mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True, padding_side="left")
            with quiet(), torch.no_grad():
                written = model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=settings)
            for row, line in zip(rows, written[:, ids.shape[1] :].tolist(), strict=True):
                found[row] = line[: line.index(how.end)] if how.end in line else line
    finally:
        model.generation_config = own
    return [found[row] for row in range(len(prompts))]
