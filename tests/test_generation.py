"""Generation from a CSV to the printed text: perplexity, BLEU and chrF, `halfback generate`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command import Said, digits, halfback, refusal

from halfback.engine import checkpoint
from halfback.models.loading import ModelRequest, load_model
from halfback.runs import run
from halfback.runs.generation import bleu_and_chrf
from halfback.telemetry.records import read_summary

INPUTS = ["the film is", "a plot is very", "the plot", "very film", "a film is a plot", "is it"]
ANSWERS = ["great fun", "warm clever it"]
BEGINNINGS = ["great", "warm"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six inputs with two targets each."""
    path = tmp_path_factory.mktemp("data") / "answers.csv"
    rows = [f"{asked},{answer}" for asked in INPUTS for answer in ANSWERS]
    path.write_text("input,answer\n" + "\n".join(rows) + "\n")
    return path


def train(out: Path, model: Path, table: Path, *settings: str) -> Said:
    task = ["task.name=csv", f"task.train={table}", f"task.validation={table}", "task.objective=generation"]
    task += ["task.text=input", "task.target=answer", "task.train_rows=null", "task.validation_rows=null"]
    rates = ["bottom.train=lora", "top.train=lora", "bottom.lr=0.05", "bottom.optimizer=adamw", "top.lr=0.05"]
    return halfback(*digits(out, *task, f"model.name={model}", *rates, "clients=2", *settings, algorithm="split_lora"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, table: Path) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("runs") / "run"
    said = train(out, tiny_llama, table, "steps=30", "task.generated_rows=4", "task.max_new_tokens=5")
    assert said.status == 0, said.err
    return out, said


def test_perplexity_is_that_of_the_uncut_model_on_targets_and_end_of_text(
    tmp_path: Path, tiny_llama: Path, table: Path
) -> None:
    out = tmp_path / "run"
    assert train(out, tiny_llama, table, "steps=1").status == 0
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    total, count = 0.0, 0
    for asked in INPUTS:
        for answer in ANSWERS:
            ids = torch.tensor([tokenizer(f"{asked} => {answer} </s>")["input_ids"]])
            scored = len(answer.split()) + 1
            labels = ids.clone()
            labels[:, :-scored] = -100
            with torch.no_grad():
                total += float(model(ids, labels=labels).loss) * scored
            count += scored
    # The same float32 terms, padded into batches and summed in another order.
    assert read_summary(out)["metric"]["initial"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_the_summary_the_table_and_the_report_have_the_scores(trained: tuple[Path, Said]) -> None:
    out, said = trained
    found = read_summary(out)["generation"]
    assert (found["rows"], found["decoding"]) == (4, "greedy, up to 5 tokens")
    assert found["bleu"] >= 0
    assert 0 < found["chrf"] <= 100
    page = (out / "report.html").read_text()
    for shown in (said.out, page):
        assert "BLEU" in shown
        assert f"{found['chrf']:.4g}" in shown
        assert "greedy, up to 5 tokens" in shown


def test_nothing_is_generated_unless_asked(tmp_path: Path, tiny_llama: Path, table: Path) -> None:
    said = train(tmp_path / "run", tiny_llama, table, "steps=1")
    assert read_summary(tmp_path / "run")["generation"] is None
    assert "BLEU" not in said.out


def test_what_is_written_is_what_plain_transformers_writes_with_the_exported_model(
    trained: tuple[Path, Said], tmp_path: Path, tiny_llama: Path
) -> None:
    out, _ = trained
    asked = [INPUTS[0], INPUTS[2]]
    said = halfback("generate", out, *asked)
    assert (said.status, said.err) == (0, "")
    assert halfback("export", out, "--out", tmp_path / "model").status == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")

    def answers(folder: Path) -> list[str]:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        written = []
        for text in asked:
            prompt = tokenizer(f"{text} =>", return_tensors="pt")["input_ids"]
            tokens = model.generate(prompt, do_sample=False, max_new_tokens=5, attention_mask=torch.ones_like(prompt))
            written.append(tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True).strip())
        return written

    assert said.out.splitlines() == answers(tmp_path / "model")
    assert said.out.split()[0] in BEGINNINGS  # it has learnt what it was shown
    assert said.out.splitlines() != answers(tiny_llama)


@pytest.mark.parametrize("algorithm", ["split_lora", "ho_sfl"])
def test_the_model_that_writes_has_the_parameters_that_the_federation_agreed_on(
    tmp_path: Path, tiny_llama: Path, table: Path, algorithm: str
) -> None:
    """Clients of `split_lora` put parameters of their own into the same modules while they run."""
    out = tmp_path / "run"
    said = train(out, tiny_llama, table, f"algorithm.name={algorithm}", "steps=3")
    assert said.status == 0, said.err
    found = checkpoint.load(out / "checkpoint")
    assert found is not None
    whole = dict(run.reload(out).model.whole.named_parameters())
    saved = {name: tensor for name, tensor in found[1].items() if name.startswith(("bottom.body", "top.body"))}
    assert sum("lora_" in name for name in saved) == 3 * 2 * 2
    for name, tensor in saved.items():
        assert torch.equal(whole[name.split(".body.", 1)[1]], tensor), name


def test_beams_and_length_of_the_command(trained: tuple[Path, Said]) -> None:
    out, _ = trained
    assert len(halfback("generate", out, "--max-new-tokens", "1", INPUTS[0]).out.split()) == 1
    said = halfback("generate", out, "--beams", "3", INPUTS[0])
    assert (said.status, said.out.split()[0] in BEGINNINGS) == (0, True)


def test_a_language_model_goes_on(tmp_path: Path, tiny_llama: Path, table: Path) -> None:
    settings = ["task.objective=causal_lm", "task.target=null"]
    assert train(tmp_path / "run", tiny_llama, table, "steps=1", *settings).status == 0
    said = halfback("generate", tmp_path / "run", "the film", "--max-new-tokens", "3")
    assert (said.status, said.err) == (0, "")
    _, tokenizer = load_model(str(tiny_llama), ModelRequest(head="causal_lm", num_labels=1, seed=0))
    assert tokenizer is not None
    assert 0 < len(tokenizer(said.out)["input_ids"]) <= 3


def test_what_generate_refuses(trained: tuple[Path, Said], tmp_path: Path) -> None:
    out, _ = trained
    assert "the text ' ' is blank" in refusal(halfback("generate", out, " "))
    assert "takes up to 32 in all" in refusal(halfback("generate", out, "--max-new-tokens", "30", INPUTS[0]))
    assert f"{tmp_path} holds no run" in refusal(halfback("generate", tmp_path, "a"))
    assert halfback(*digits(tmp_path / "digits", "steps=1")).status == 0
    line = refusal(halfback("generate", tmp_path / "digits", "a"))
    assert "holds a classifier; generate takes runs with task.objective=generation or causal_lm" in line
    assert halfback("generate", out).status == 2
    assert halfback("generate", out, "--beams", "0", "a").status == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["task.target=reply"], "no column 'reply'; it has"),
        (["task.generated_rows=7"], "task.generated_rows=7: validation has 6 different inputs"),
        (["task.generated_rows=6", "task.max_new_tokens=30"], "task.max_new_tokens=30: a prompt has 6 tokens"),
        (["task.beam=2"], "'task.beam' is unknown; did you mean beams"),
        (["task.max_length=1"], "task.max_length=1 must be at least 2"),
        (["task.template=a film"], "lacks {text}"),
        (["task.label=answer"], "task.label='answer' has no meaning"),
        (["partition.name=dirichlet"], "dirichlet"),
    ],
)
def test_what_train_refuses(tmp_path: Path, tiny_llama: Path, table: Path, settings: list[str], said: str) -> None:
    assert said in refusal(train(tmp_path / "run", tiny_llama, table, *settings))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_and_an_empty_target_are_refused(
    tmp_path: Path, tiny_bert: Path, tiny_llama: Path, table: Path
) -> None:
    line = refusal(train(tmp_path / "run", tiny_bert, table))
    assert "language modelling and generation need a decoder" in line
    blank = tmp_path / "blank.csv"
    blank.write_text(table.read_text() + "the film,\n")
    assert "line 14, column 'answer'" in refusal(train(tmp_path / "run", tiny_llama, blank))


def test_bleu_and_chrf_by_hand() -> None:
    """BLEU: 8 of 9 words, 6 of 7 pairs, 4 of 5 triples and 2 of 3 fours are in a reference of their own text."""
    bleu, _ = bleu_and_chrf(["a b c d e", "g h i j"], [["a b c d f"], ["z z", "g h i j"]])
    assert bleu == pytest.approx(100 * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25, rel=1e-9)
    # A short text pays exp(1 - reference's length / its own).
    bleu, _ = bleu_and_chrf(["a b c d"], [["a b c d e"]])
    assert bleu == pytest.approx(100 * math.exp(1 - 5 / 4), rel=1e-9)
    # chrF: 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple; precision and recall are alike.
    _, chrf = bleu_and_chrf(["abc"], [["abd"]])
    assert chrf == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3, rel=1e-9)
    assert bleu_and_chrf(["a b c d", "e f g h"], [["a b c d", "x"], ["e f g h"]]) == pytest.approx((100, 100))


def test_a_resumed_run_has_the_same_scores(trained: tuple[Path, Said], tmp_path: Path) -> None:
    out, _ = trained
    before = read_summary(out)["generation"]
    (out / "summary.json").unlink()
    run.load(out).resume()
    assert read_summary(out)["generation"] == before
    assert json.loads((out / "summary.json").read_text())["generation"] == before
