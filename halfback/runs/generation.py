"""What a trained model writes: continuations of a user's texts, and BLEU and chrF on validation inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from halfback.assembly import OnRows
from halfback.data.encode import Prompt
from halfback.data.options import TaskOptions
from halfback.data.prompts import check_template, encode_prompts, fill, generation_template
from halfback.errors import UserError, of_extra
from halfback.models.decoding import Decoding, Sampling, check_known, continue_prompts


@dataclass(frozen=True)
class Writer:
    """A language model that writes.

    Attributes:
        whole: the model.
        tokenizer: its own.
        options: of its task: template, beams, and how long texts may be.
        batch_size: rows at once.
    """

    whole: nn.Module
    tokenizer: Any
    options: TaskOptions
    batch_size: int


def score(writer: Writer, prompts: Sequence[Prompt], told: OnRows | None = None) -> dict[str, Any] | None:
    """BLEU and chrF of `options.generated_rows` of the `prompts`, each against all its references; None for no rows.

    The prompts are evenly spaced, so that runs with different seeds are scored on the same ones.
    """
    options = writer.options
    rows = options.generated_rows
    if not rows:
        return None
    chosen = [prompts[place * len(prompts) // rows] for place in range(rows)]
    written = continued(writer, [prompt.tokens for prompt in chosen], told=told)
    bleu, chrf = bleu_and_chrf(written, [prompt.references for prompt in chosen])
    how = "greedy" if options.beams == 1 else f"{options.beams} beams"
    return {"bleu": bleu, "chrf": chrf, "rows": rows, "decoding": f"{how}, up to {options.max_new_tokens} tokens"}


def continued(
    writer: Writer, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None, told: OnRows | None = None
) -> list[str]:
    """The model's continuations of prompts, without white space around them; several of one stand behind another."""
    tokenizer, options = writer.tokenizer, writer.options
    how = Decoding(tokenizer.pad_token_id, tokenizer.eos_token_id, options.beams, options.max_new_tokens, sampling)
    size = max(writer.batch_size // options.beams, 1)  # each beam is a row
    rows = continue_prompts(writer.whole, prompts, how, batch_size=size, told=told)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def prompts_of(writer: Writer, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[int]]:
    """The tokens of a user's texts, which go through the task's template first.

    Raises:
        UserError: a text is blank, the template needs a second text, or prompt and continuation are too long together.
    """
    for text in texts:
        if not text.strip():
            raise UserError(f"the text {text!r} is blank; give what the model should continue")
    options, whole = writer.options, cast(Any, writer.whole)
    template = options.template
    if options.objective != "causal_lm":
        template = generation_template(template, has_pairs=options.pair is not None)
    if template is not None:
        check_template(template, has_pairs=pairs is not None)
        texts = fill(template, texts, pairs)
    prompts = encode_prompts(texts, writer.tokenizer, options.max_length)
    check_known(whole, writer.tokenizer, max(map(max, prompts)), "the text")
    positions = getattr(whole.config, "max_position_embeddings", None)
    longest = max(len(prompt) for prompt in prompts)
    if positions is not None and longest + options.max_new_tokens > positions:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens}: a prompt has {longest} tokens; the model takes up to "
            f"{positions} in all"
        )
    return prompts


def respond(
    writer: Writer, texts: Sequence[str], sampling: Sampling | None = None, told: OnRows | None = None
) -> list[str]:
    """The continuations of each of a user's texts; raises as `prompts_of` does."""
    return continued(writer, prompts_of(writer, texts), sampling, told)


@dataclass(frozen=True)
class Drawn:
    """What of a continuation is drawn at random, as somebody asks for it; all that is None stays as usual.

    Attributes:
        temperature: above 1 likelier to surprise, below 1 less so.
        top_k: only the so many likeliest tokens are drawn from.
        top_p: only the likeliest tokens that together have this probability.
        seed: of the draws, 0 unless given.
        samples: continuations of each text, 1 unless given.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    samples: int | None = None

    def sampling(self, beams: int) -> Sampling | None:
        """How tokens are drawn; None where nothing of it was asked for.

        Raises:
            UserError: a value is out of range, or beams are searched too, of which none is drawn.
        """
        chosen = {key: value for key, value in vars(self).items() if value is not None}
        bounds = {
            "temperature": (lambda value: 0 < value <= 100, "above 0, up to 100"),
            "top_k": (lambda value: 1 <= value <= 1_000_000, "1 to 1000000"),
            "top_p": (lambda value: 0 < value <= 1, "above 0, up to 1"),
            "seed": (lambda value: 0 <= value < 1 << 63, "0 to 2^63 - 1"),
            "samples": (lambda value: 1 <= value <= 100, "1 to 100"),
        }
        for key, value in chosen.items():
            fits, said = bounds[key]
            if not fits(value):
                raise UserError(f"{key}={value}: {said} is allowed")
        if not chosen:
            return None
        if beams != 1:
            raise UserError(
                f"beams={beams}: beams are searched, nothing is drawn; use beams=1, or no {next(iter(chosen))}"
            )
        return Sampling(**chosen)


def bleu_and_chrf(written: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """sacrebleu's corpus scores, 0 to 100, with its default settings; a text has one reference or more."""
    with of_extra("metrics"):
        from sacrebleu.metrics.bleu import BLEU  # a second to import, and most runs generate nothing
        from sacrebleu.metrics.chrf import CHRF

    most = max(map(len, references))
    streams: Any = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    return BLEU().corpus_score(written, streams).score, CHRF().corpus_score(written, streams).score
