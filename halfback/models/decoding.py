"""Continue prompts with the re-joined model, by Transformers' own decoding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
class Sampling:
    """How tokens are drawn: `samples` continuations of each prompt, a function of the seed and the prompt alone.

    top_k: from that many of the likeliest, 0 for all. top_p: from the likeliest that have this probability together.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    samples: int = 1


@dataclass(frozen=True)
class Decoding:
    """How a continuation is chosen, token by token.

    pad, end: the tokens that fill up a batch's shorter rows and that end a text; None where no token does.
    beams: 1 for the likeliest token at each place (greedy), more for that many beams.
    max_new_tokens: where a continuation stops that doesn't end before.
    sampling: how tokens are drawn; None where nothing is.
    """

    pad: int
    end: int | None
    beams: int
    max_new_tokens: int
    sampling: Sampling | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As Transformers has them."""
        if self.sampling is None:
            return {"do_sample": False, "num_beams": self.beams}
        drawn = {key: value for key, value in vars(self.sampling).items() if key not in ("seed", "samples")}
        return {"do_sample": True, "num_return_sequences": self.sampling.samples} | drawn


def continue_prompts(
    whole: nn.Module,
    prompts: Sequence[Sequence[int]],
    how: Decoding,
    *,
    batch_size: int,
    told: Callable[[int, int], object] | None = None,
) -> list[list[int]]:
    """The tokens that the model puts behind each prompt, up to the end of the text, which is left out.

    Of a prompt with several samples, these stand one behind the other. `told` hears how many prompts are done, of how
    many.

    whole: a causal language model, such as `CutModel.whole`, which has the parameters and the adapters of both halves.
    Defaults of the model's own (its temperature, a penalty for repetition) are left aside and put back after.
    """
    with of_extra("transformers"):
        from transformers import GenerationConfig

    model: Any = whole
    device = next(whole.parameters()).device
    settings = GenerationConfig(
        **how.settings,
        max_new_tokens=how.max_new_tokens,
        eos_token_id=how.end,
        pad_token_id=how.pad,
    )
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # little padding in a batch
    # What is drawn for a prompt doesn't hang on those beside it, so each is alone.
    size, each = (batch_size, 1) if how.sampling is None else (1, how.sampling.samples)
    found: dict[int, list[list[int]]] = {}
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        for begin in range(0, len(order), size):
            rows = order[begin : begin + size]
            tokens = [torch.tensor(prompts[row]) for row in rows]
            ids = pad_sequence(tokens, batch_first=True, padding_value=how.pad, padding_side="left")
            mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True, padding_side="left")
            with quiet(), torch.no_grad(), _drawing(how.sampling, device):
                written = model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=settings)
            lines = [
                line[: line.index(how.end)] if how.end in line else line for line in written[:, ids.shape[1] :].tolist()
            ]
            found |= {row: lines[place * each : (place + 1) * each] for place, row in enumerate(rows)}
            if told is not None:
                told(len(found), len(prompts))
    finally:
        model.generation_config = own
    return [line for row in range(len(prompts)) for line in found[row]]


@contextmanager
def _drawing(sampling: Sampling | None, device: torch.device) -> Iterator[None]:
    """The global generators start from the seed inside, where something is drawn, and are put back after."""
    if sampling is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        yield
