"""An exported folder gives in plain Transformers, with its own tokenizer, what the run gave: alone and in batches."""

import copy
import json
import logging
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from command import digits, halfback, refusal
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from halfback import config as configuration
from halfback.assembly import build, build_client
from halfback.assembly.sources import Seat
from halfback.errors import UserError
from halfback.models.adapters import trainable
from halfback.runs import exporting_model, generation
from halfback.telemetry.records import read_records

sys.path.insert(0, str(Path(__file__).parent / "models"))
from tiny_models import CONFIGS, DECODERS, ENCODERS

WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
LONGEST = 12  # tokens of a row in the run; some texts have more


def tokenizer(folder: Path, *, single: str = "$A", **named: str) -> None:
    """A word each, behind them `single`; `named` are its special tokens, of `SPECIAL` and beyond."""
    own = Tokenizer(models.WordLevel({word: row for row, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(word, row) for row, word in enumerate(SPECIAL)]
    own.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=marks)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", **named)
    if (folder / "config.json").exists() and '"qwen2"' in (folder / "config.json").read_text():
        # For this type Transformers reads any file of a tokenizer as the model's own: bytes and their merges.
        pieces = dict.fromkeys([*SPECIAL, *"w0123456789Ġstrange=>"])
        fast = transformers.Qwen2Tokenizer(
            vocab={piece: row for row, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            pad_token=None,
            **named,
        )
        fast.backend_tokenizer.post_processor = own.post_processor
    fast.chat_template = "{{ messages[0]['content'] }}"
    fast.save_pretrained(folder)


def model(folder: Path, name: str, kind: str, **changes: Any) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size = len(SPECIAL + WORDS)
    config.pad_token_id = 3 if name in ENCODERS else None
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    made = getattr(transformers, kind).from_config(config)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to 15 words; some end with what is a special token elsewhere, or with an unknown word."""
    dice = random.Random(0)
    lines = ["text,label,target"]
    for row in range(16):
        words = dice.choices(WORDS, k=dice.choice((1, 3, 6, 15)))
        if row % 4 == 3:
            words.append(("</s>", "strange", "<s>", "<pad>")[row // 4])
        lines.append(f"{' '.join(words)},{'good' if row % 2 else 'bad'},{' '.join(dice.choices(WORDS, k=2))}")
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(folder: Path, table: Path) -> list[str]:
    return [
        *("task.name=csv", f"task.train={table}", f"task.validation={table}", f"task.max_length={LONGEST}"),
        *("task.train_rows=null", "task.validation_rows=null", f"model.name={folder}", "batch_size=4", "steps=1"),
        *("bottom.train=lora", "top.train=lora", "lora.rank=2", "top.lr=1e-2", "bottom.lr=0.1", "clients=2"),
    ]


def exported(folder: Path, table: Path, *more: str) -> tuple[Any, Any, Any, list[str]]:
    """What a run begins with, its adapters moved, and the plain model and tokenizer of its export, with the texts."""
    built = build(configuration.resolve(None, digits(folder / "run", *settings(folder, table), *more)[1:-2]))
    torch.manual_seed(1)
    for part in (built.model.bottom, built.model.top):
        for parameter in trainable(part).values():
            parameter.data += 0.1 * torch.randn_like(parameter)
    exporting_model.write(built, folder / "model")
    kind = "CausalLM" if hasattr(built.model.whole, "lm_head") else "SequenceClassification"
    plain = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder / "model").eval()
    own = transformers.AutoTokenizer.from_pretrained(folder / "model")
    return built, plain, own, [line.split(",")[0] for line in table.read_text().splitlines()[1:]]


@torch.no_grad()
def assert_same_classes(built: Any, plain: Any, own: Any, texts: list[str]) -> None:
    batch = built.task.validation.batch(range(len(texts)))
    wanted = built.model.logits(batch.inputs)
    alone = torch.cat([plain(**own(text, truncation=True, return_tensors="pt")).logits for text in texts])
    together = plain(**own(texts, truncation=True, padding=True, return_tensors="pt")).logits
    # Adapters are merged, and rows padded elsewhere: float32's rounding.
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.std(dim=0).min() > 1e-3  # rows differ by more
    assert float(F.cross_entropy(together, batch.labels)) == pytest.approx(built.evaluate().loss, rel=1e-4)
    assert plain.config.problem_type == "single_label_classification"
    assert plain.config.id2label == {0: "bad", 1: "good"}


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "pads": lambda folder: tokenizer(folder, pad_token="<pad>", eos_token="</s>"),
    "appends its end": lambda folder: tokenizer(folder, single="<s> $A </s>", bos_token="<s>", eos_token="</s>"),
    "has neither": lambda folder: tokenizer(folder),
    "pads with its end": lambda folder: tokenizer(folder, eos_token="</s>", pad_token="</s>"),
    "pads with a new one": lambda folder: tokenizer(folder, eos_token="</s>", pad_token="[NEW]"),
    "frames": lambda folder: tokenizer(
        folder, single="<s> $A </s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>"
    ),
    "frames, pads with its end": lambda folder: tokenizer(
        folder, single="<s> $A </s>", cls_token="<s>", sep_token="</s>", eos_token="</s>"
    ),
}


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        *((name, "appends its end") for name in DECODERS),
        *(("gpt2", reads) for reads in ("pads", "has neither", "pads with its end", "pads with a new one")),
        *((name, reads) for name in ENCODERS for reads in ("frames", "frames, pads with its end")),
    ],
)
def test_a_classifier(name: str, reads: str, table: Path, tmp_path: Path) -> None:
    model(tmp_path, name, "AutoModelForSequenceClassification", problem_type="multi_label_classification", num_labels=2)
    TOKENIZERS[reads](tmp_path)
    built, plain, own, texts = exported(tmp_path, table)
    assert_same_classes(built, plain, own, texts)
    assert own.chat_template == "{{ messages[0]['content'] }}"


def test_from_the_command_line_and_on_from_there(table: Path, tmp_path: Path) -> None:
    """The exported folder is a model to go on from: its head is in the order of its names, and scores as it did."""
    model(tmp_path, "llama", "AutoModelForSequenceClassification", num_labels=2)
    TOKENIZERS["appends its end"](tmp_path)
    assert halfback(*digits(tmp_path / "run", *settings(tmp_path, table))).status == 0
    (tmp_path / "model.unfinished").mkdir()  # of an export that was killed
    (tmp_path / "model.unfinished" / "model-00001-of-00002.safetensors").write_bytes(b"other")
    said = halfback("export", tmp_path / "run", "--out", tmp_path / "model")
    assert (said.status, said.err, said.out.splitlines()[-1]) == (0, "", str(tmp_path / "model"))
    assert not list(tmp_path.glob("model*/model-*"))
    said = halfback(*digits(tmp_path / "again", *settings(tmp_path / "model", table)))
    assert said.status == 0, said.err
    assert "the head" not in said.out
    first, last = read_records(tmp_path / "again")[0], read_records(tmp_path / "run")[-1]
    assert first.validation_loss == pytest.approx(last.validation_loss, rel=1e-4)


@pytest.mark.parametrize("reads", ["pads", "appends its end"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_a_model_that_answers_by_its_next_word(name: str, reads: str, table: Path, tmp_path: Path) -> None:
    """The word behind the template, not behind an end of text; alone and in padded rows, long texts too."""
    model(tmp_path, name, "AutoModelForCausalLM")
    TOKENIZERS[reads](tmp_path)
    more = ("task.verbaliser=[w7,w8]", "task.template={text} w5")
    built, plain, own, texts = exported(tmp_path, table, *more)
    batch = built.task.validation.batch(range(len(texts)))
    words = own.convert_tokens_to_ids(["w5", "w7", "w8"])
    last = batch.inputs["input_ids"][batch.inputs["lengths"].cumsum(0) - 1]
    assert last.tolist() == [words[0]] * len(texts)
    wanted = built.model.logits(batch.inputs)
    texts = [f"{text} w5" for text in texts]
    rows = [own(text, truncation=True, return_tensors="pt") for text in texts]
    alone = torch.cat([plain(**row).logits[:, -1, words[1:]] for row in rows])
    padded = own(texts, truncation=True, padding=True, return_tensors="pt")
    last = padded["attention_mask"].sum(1) - 1
    together = plain(**padded).logits[torch.arange(len(texts)), last][:, words[1:]]
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_language_model(name: str, table: Path, tmp_path: Path) -> None:
    """Its loss over all texts, from rows alone and from padded ones, is the run's."""
    model(tmp_path, name, "AutoModelForCausalLM")
    TOKENIZERS["appends its end"](tmp_path)
    built, plain, own, texts = exported(tmp_path, table, "task.objective=causal_lm", "task.label=null")
    wanted = built.evaluate().loss
    for rows in ([[text] for text in texts], [texts]):
        total, count = 0.0, 0
        for given in rows:
            batch = own(given, truncation=True, padding=True, return_tensors="pt")
            logits = plain(**batch).logits[:, :-1]
            following = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
            total += float(F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum"))
            count += int((following != -100).sum())
        assert total / count == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_that_writes(name: str, table: Path, tmp_path: Path) -> None:
    """What it writes for prompts in a padded batch is what `halfback generate` writes, up to the run's end of text."""
    model(tmp_path, name, "AutoModelForCausalLM", eos_token_id=7)
    TOKENIZERS["appends its end"](tmp_path)
    more = ("task.objective=generation", "task.target=target", "task.template={text} w0", "task.max_new_tokens=6")
    built, plain, own, texts = exported(tmp_path, table, *more, "task.label=null")
    batch = own([f"{text} w0" for text in texts], truncation=True, padding=True, return_tensors="pt")
    last = own("w0", add_special_tokens=False)["input_ids"][-1]  # no end of text
    assert batch["input_ids"][:, -1].tolist() == [last] * len(texts)
    written = plain.generate(**batch, do_sample=False, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    writer = generation.Writer(built.model.whole, built.tokenizer, built.config.task, 4)
    said = generation.respond(writer, texts)
    assert [own.decode(row, skip_special_tokens=True).strip() for row in written] == said
    assert plain.generation_config.eos_token_id == own.convert_tokens_to_ids("</s>")


def test_every_machine_puts_a_head_in_the_federations_order(table: Path, tmp_path: Path) -> None:
    """A site that has rows of one class alone takes the order of the classes from the server."""
    model(tmp_path, "gpt2", "AutoModelForSequenceClassification", id2label={0: "good", 1: "bad"}, label2id=None)
    TOKENIZERS["pads"](tmp_path)
    rows = table.read_text().splitlines()
    (tmp_path / "good.csv").write_text("\n".join([rows[0], *(row for row in rows if ",good," in row)]))

    def configured(rows: Path) -> configuration.RunConfig:
        return configuration.resolve(None, digits(tmp_path / "run", *settings(tmp_path, rows), "model.head=0")[1:-2])

    whole: Any = build(configured(table)).model.whole
    server = whole.score.weight
    trained = load_file(tmp_path / "model.safetensors")["score.weight"]
    assert torch.equal(server, trained[[1, 0]])
    head: Any = build_client(configured(tmp_path / "good.csv"), Seat(0, True, ("bad", "good"))).side.party.head
    assert torch.equal(head.module.body.score.weight, server)


def test_settings_of_decoding_that_contradict_each_other_are_kept(table: Path, tmp_path: Path) -> None:
    """Transformers refuses to save them where they were touched."""
    model(tmp_path, "llama", "AutoModelForCausalLM")
    TOKENIZERS["pads"](tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "do_sample": False}))
    exported(tmp_path, table, "task.objective=generation", "task.target=target", "task.label=null")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["eos_token_id"], settings["pad_token_id"]) == (0.5, 2, 3)


def test_a_continued_text_and_a_tokenizer_that_ends_it(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="halfback")
    model(tmp_path, "llama", "AutoModelForCausalLM")
    TOKENIZERS["appends its end"](tmp_path)
    exported(tmp_path, table, "task.objective=causal_lm", "task.label=null")
    assert "the tokenizer ends each text with </s>; take it off a text that is to be continued" in caplog.text


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_tokens_that_the_model_has_no_embedding_for(name: str, table: Path, tmp_path: Path) -> None:
    """Where a text holds one it is one line; padding that is none of the texts' own runs (above)."""
    kind = "AutoModelForSequenceClassification"
    model(tmp_path, name, kind, vocab_size=40, num_labels=2)
    TOKENIZERS["frames" if name == "roberta" else "pads"](tmp_path)
    line = refusal(halfback(*digits(tmp_path / "run", *settings(tmp_path, table))))
    assert "as token 63, the model has 0 to 39: they don't fit" in line
    assert not (tmp_path / "run").exists()


def test_kinds_of_tokens_that_the_model_has_no_embedding_for(table: Path, tmp_path: Path) -> None:
    model(tmp_path, "bert", "AutoModelForSequenceClassification", type_vocab_size=1, num_labels=2)
    own = Tokenizer(models.WordLevel({word: row for row, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = ["input_ids", "token_type_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", pad_token="<pad>", model_input_names=names
    )
    fast.save_pretrained(tmp_path)
    line = refusal(halfback(*digits(tmp_path / "run", *settings(tmp_path, table), "task.pair=target")))
    assert "tells 2 texts of a pair apart, the model 1: they don't fit" in line


def test_a_text_to_continue_with_tokens_that_the_model_does_not_have(table: Path, tmp_path: Path) -> None:
    model(tmp_path, "llama", "AutoModelForCausalLM")
    TOKENIZERS["pads with a new one"](tmp_path)
    built, *_ = exported(tmp_path, table, "task.objective=causal_lm", "task.label=null")
    options = replace(built.config.task, max_new_tokens=2)
    writer = generation.Writer(built.model.whole, built.tokenizer, options, 4)
    assert len(generation.respond(writer, ["w1 w2", "w3"])) == 2
    with pytest.raises(UserError, match=r"the text: the tokenizer reads '\[NEW\]' as token 64, the model has 0 to 63"):
        generation.respond(writer, ["w1 [NEW]"])
