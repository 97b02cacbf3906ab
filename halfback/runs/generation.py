"""What a trained model writes: continuations of a user's texts, and BLEU and chrF on validation inputs."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from halfback.data.encode import Prompt
from halfback.data.options import TaskOptions
from halfback.data.prompts import check_template, encode_prompts, fill, generation_template
from halfback.errors import UserError
from halfback.models.decoding import Decoding, check_known, continue_prompts


def score(
    whole: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], options: TaskOptions, batch_size: int
) -> dict[str, Any] | None:
    """BLEU and chrF of `options.generated_rows` of the `prompts`, each against all its references; None for no rows.

    The prompts are evenly spaced, so that runs with different seeds are scored on the same ones.
    """
    rows = options.generated_rows
    if not rows:
        return None
    chosen = [prompts[place * len(prompts) // rows] for place in range(rows)]
    written = write(whole, tokenizer, [prompt.tokens for prompt in chosen], options, batch_size)
    bleu, chrf = bleu_and_chrf(written, [prompt.references for prompt in chosen])
    how = "greedy" if options.beams == 1 else f"{options.beams} beams"
    return {"bleu": bleu, "chrf": chrf, "rows": rows, "decoding": f"{how}, up to {options.max_new_tokens} tokens"}


def write(
    whole: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], options: TaskOptions, batch_size: int
) -> list[str]:
    """The model's continuation of each prompt, without white space around it."""
    how = Decoding(tokenizer.pad_token_id, tokenizer.eos_token_id, options.beams, options.max_new_tokens)
    rows = continue_prompts(whole, prompts, how, batch_size=max(batch_size // options.beams, 1))  # each beam is a row
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def respond(whole: nn.Module, tokenizer: Any, texts: Sequence[str], options: TaskOptions, batch_size: int) -> list[str]:
    """The continuation of each of a user's texts, which go through the task's template first.

    Raises:
        UserError: a text is blank, the template needs a second text, or prompt and continuation are too long together.
    """
    for text in texts:
        if not text.strip():
            raise UserError(f"the text {text!r} is blank; give what the model should continue")
    template = options.template
    if options.objective != "causal_lm":
        template = generation_template(template, has_pairs=options.pair is not None)
    if template is not None:
        check_template(template, has_pairs=False)
        texts = fill(template, texts, None)
    prompts = encode_prompts(texts, tokenizer, options.max_length)
    check_known(whole, tokenizer, max(map(max, prompts)), "the text")
    positions = getattr(whole.config, "max_position_embeddings", None)
    longest = max(len(prompt) for prompt in prompts)
    if positions is not None and longest + options.max_new_tokens > positions:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens}: a prompt has {longest} tokens; the model takes up to "
            f"{positions} in all"
        )
    return write(whole, tokenizer, prompts, options, batch_size)


def bleu_and_chrf(written: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """sacrebleu's corpus scores, 0 to 100, with its default settings; a text has one reference or more."""
    from sacrebleu.metrics.bleu import BLEU  # a second to import, and most runs generate nothing
    from sacrebleu.metrics.chrf import CHRF

    most = max(map(len, references))
    streams: Any = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    return BLEU().corpus_score(written, streams).score, CHRF().corpus_score(written, streams).score
