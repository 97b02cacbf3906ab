"""Small inputs made after public reports about tools of this kind, where the folder of them is beside this one.

Each has its command in `cmd`, in words what is right in `expect`, and its files; `EXPECTED` says the same in a form
that can be checked. Commands run in this process, in a copy of the case's folder.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Said, halfback, refusal

from halfback import config as configuration
from halfback.data.tasks import load_task
from halfback.engine import checkpoint
from halfback.runs import run
from halfback.runs.folder import CHECKPOINT
from halfback.runs.told import RunState

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"

pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="the folder ../shared/cases is not here"),
    pytest.mark.xdist_group("cases"),  # one process loads the libraries once
]


@dataclass(frozen=True)
class Refused:
    """The first command that can fail is refused in one line that has all of these words."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Reads:
    """All commands succeed.

    initial: the metric before training, of each training command in turn. final: that of the last one after it.
    classes: in order, of the last run. rows: to train on. said: words among what was printed. exported: keys of the
    exported configuration.
    """

    initial: tuple[float, ...] = ()
    final: float | None = None
    classes: tuple[str, ...] = ()
    rows: int | None = None
    said: tuple[str, ...] = ()
    exported: tuple[tuple[str, Any], ...] = ()


def refused(*words: str) -> Refused:
    return Refused(words)


def reads(*initial: float, classes: str = "", exported: dict[str, Any] | None = None, **wanted: Any) -> Reads:
    return Reads(initial, classes=tuple(classes.split()), exported=tuple((exported or {}).items()), **wanted)


SETTINGS = [
    *("model.name=../../models/bert_np", "model.cut=1", "algorithm.name=ho_sfl", "clients=2", "sampled_clients=2"),
    *("batch_size=4", "bottom.train=lora", "top.train=lora", "lora.rank=2", "bottom.lr=1e-3", "top.lr=1e-3"),
    *("task.name=csv", "task.train=train.csv", "task.validation=train.csv"),
]
EXPECTED: dict[str, Refused | Reads] = {
    # Tables: nothing is lost in silence, and what can be read is.
    "csv_backslash_no_comma": refused("line 12", "quote"),
    "csv_behind_closing_quote": refused("line 12", "quote"),
    "csv_blank_first_line": reads(100.0, rows=40),
    "csv_bom_quoted": reads(100.0),
    "csv_cr_only": reads(100.0),
    "csv_duplicate_rows_across": reads(100.0),
    "csv_index_column": reads(100.0, rows=40),
    "csv_inner_quotes": refused("task.train_rows=999", "21 rows"),
    "csv_long_first_field": refused("64", "task.max_length"),
    "csv_long_second_field": refused("64", "task.max_length"),
    "csv_quote_backslash": refused("line 12", "quote"),
    "csv_semicolon": reads(100.0),
    "csv_semicolon_commas": reads(87.5, rows=40),
    "csv_space_header": reads(100.0),
    "csv_stray_quote": refused("line", "quote"),
    "csv_tab": reads(100.0),
    "csv_trailing_delimiter": reads(100.0),
    "csv_unclosed_quote_end": refused("line", "quote"),
    "csv_utf16": reads(100.0),
    "data_replaced_same_mtime": reads(100.0, 0.0, 0.0),
    "gz_replaced_same_mtime": reads(100.0, 0.0),
    "jsonl_replaced_same_mtime": reads(100.0, 0.0),
    "hub_folder_csv_bool": reads(classes="False True"),
    "hub_folder_csv_leading_zero": reads(classes="01 1 02"),
    "hub_folder_csv_none": reads(100.0),
    "json_columns_split": refused("train.json"),
    "json_date_labels": reads(classes="2020-01-01 2021-01-01"),
    "json_leading_zero_labels": reads(classes="01 1 02"),
    "json_leading_zero_texts": reads(),
    "json_nan_text": refused("row 8", "text"),
    "json_nested_data": refused("train.json"),
    "json_null_label_float": refused("row 6", "label"),
    "jsonl_bigint_labels": reads(classes="10000000000000000000 10000000000000000001"),
    "jsonl_bom": reads(100.0),
    "jsonl_date_labels": reads(classes="2020-01-01 2021-01-01"),
    "jsonl_date_targets": reads(),
    "jsonl_date_texts": reads(),
    "jsonl_leading_zero_labels": reads(classes="01 1 02"),
    "jsonl_mixed_text": reads(97.5),
    "jsonl_nan_text": refused("line 8", "text"),
    "jsonl_pair_dict": refused("'more'"),
    "jsonl_text_list": refused("'text'", "list"),
    "jsonl_text_messages": refused("'text'", "list"),
    "label_codes_exponent": reads(classes="1e5 2d4"),
    "label_codes_underscore": reads(classes="1_2 2_1"),
    "label_float_csv": refused("'0.0'", "line 2", "write 0"),
    "label_infinity": reads(classes="infinity zero"),
    "label_leading_zero": refused("'1'", "'01'"),
    "label_mixed_json": reads(100.0, classes="0 1"),
    "label_spaces_inside": reads(100.0, classes="negative positive"),
    "label_true_false_csv": refused("'False'", "'false'"),
    "yaml_column_no": reads(100.0),
    "yaml_column_number": reads(100.0),
    "yaml_exponent_recipe": reads(100.0),
    "dirichlet_small_alpha": refused("alpha=0.05", "use a larger alpha"),
    "one_row_each": reads(100.0),
    # Weights, classes and tokens: a model is what its folder says, or refused.
    "weights_bert_bare": reads(),
    "weights_bert_bin": reads(100.0),
    "weights_bert_shards": reads(100.0),
    "weights_llama_full_causal_lm": reads(),
    **{
        f"weights_bert_{name}": refused("bert_" + name)
        for name in (
            "compiled",
            "config_1_layer",
            "config_3_layers",
            "config_vocab",
            "config_width",
            "ddp",
            "one_layer_gone",
            "wrong_family",
        )
    },
    "label_order_after_export": reads(said=("the head starts anew",)),
    "label_order_gpt2": reads(90.0, classes="negative positive"),
    "label_order_of_checkpoint": reads(97.5, classes="negative positive"),
    "label_order_same": reads(100.0, classes="negative positive"),
    "decoder_appending_eos": reads(),
    "decoder_pad_outside_vocabulary": reads(),
    "decoder_without_pad_and_eos": reads(),
    "export_problem_type": reads(100.0, exported={"problem_type": "single_label_classification"}),
    **{f"family_{name}": reads() for name in ("gemma3_sw4", "gpt2", "mistral_sw4", "opt", "qwen2_sw4")},
    **{f"fp16_{name}": reads() for name in ("gemma3_sw4", "gpt2", "llama_full", "mistral_sw4", "opt")},
    "roberta_positions": refused("18", "task.max_length"),
    "roberta_positions_ok": reads(),
    "special_tokens_in_text": reads(),
    "template_text_braces": reads(),
    # Images: every file has a stated meaning, and its class is the first folder's.
    "image_16bit": reads(final=100.0),
    "image_16bit_tiff": reads(),
    "image_appledouble": reads(final=100.0, classes="one two", rows=16),
    "image_bomb_svg_txt": refused("readme.png"),
    "image_cmyk": reads(final=100.0),
    "image_empty_class_folder": reads(final=100.0, classes="one three two"),
    "image_empty_class_validation": reads(classes="one three two"),
    "image_exif_orientation": reads(),
    "image_export_processor": reads(100.0),
    "image_float_tiff": refused(".tif"),
    "image_hidden_class_folder": reads(final=100.0, classes="one two"),
    "image_hidden_folder_inside": reads(final=100.0, classes="one two", rows=16),
    "image_la_black_on_transparent": reads(final=100.0),
    "image_macosx_folder": reads(final=100.0, classes="one two"),
    "image_metadata_csv": reads(final=100.0, classes="one two"),
    "image_nested": reads(final=100.0, classes="one two"),
    "image_nested_by_camera": reads(classes="one two"),
    "image_nested_partly": reads(classes="one two", rows=24),
    "image_palette_transparent": reads(final=100.0),
    "image_rgba_black_on_transparent": reads(final=100.0),
    "image_stray_top_level": reads(final=100.0, classes="one two"),
    "image_truncated": refused("train/"),
    "image_truncated_jpeg": refused("train/"),
    "image_uppercase_and_webp": reads(final=100.0, rows=16),
    "vit_image_size": reads(),
    "vit_normalisation": reads(100.0),
}


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A copy of the case's folder, with the models two levels up, as the current folder."""
    (tmp_path / "models").symlink_to(CASES / "models")
    folder = tmp_path / "cases" / request.param
    shutil.copytree(CASES / request.param, folder, copy_function=shutil.copy)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    shutil.copystat(CASES / request.param, folder)
    with chdir(folder):
        yield folder


@pytest.mark.parametrize("copied", sorted(EXPECTED), indirect=True)
def test_a_case_from_the_field_goes_as_it_should(copied: Path) -> None:
    expected = EXPECTED[copied.name]
    told, metrics = [], []
    for command in (copied / "cmd").read_text().strip().split(";"):
        words = shlex.split(command)
        if words[0] != "halfback":
            subprocess.run(command, shell=True, check=True)
            continue
        said = halfback(*words[1:])
        if isinstance(expected, Refused):
            line = refusal(said)
            assert all(word in line for word in expected.words), line
            assert len(line) < 1000
            return
        assert said.status == 0, said.err
        told.append(said)
        if words[1] == "train":
            summary = json.loads(Path(words[words.index("--out") + 1], "summary.json").read_text())
            metrics.append(summary["metric"])
    assert isinstance(expected, Reads), "was to be refused"
    _check(expected, told, metrics)


def _check(expected: Reads, told: list[Said], metrics: list[dict[str, Any]]) -> None:
    if expected.initial:
        assert [metric["initial"] for metric in metrics] == pytest.approx(expected.initial)
    if expected.final is not None:
        assert metrics[-1]["final"] == pytest.approx(expected.final)
    for word in expected.said:
        assert any(word in said.out for said in told)
    config = configuration.load(Path("run/config.yaml"))
    task = load_task(config.task, seed=0)
    if expected.classes:
        assert tuple(task.label_names) == expected.classes
    if expected.rows is not None:
        assert len(task.train.labels) == expected.rows
    if expected.exported:
        exported = json.loads(Path("model/config.json").read_text())
        assert {key: exported.get(key) for key, _ in expected.exported} == dict(expected.exported)


def test_every_case_is_in_the_table() -> None:
    """A case without a row here would look as if it were checked."""
    there = {path.parent.name for path in CASES.glob("*/cmd")}
    assert there - set(EXPECTED) == {"resume_data_replaced"}  # has a test of its own


@pytest.mark.parametrize("copied", ["resume_data_replaced"], indirect=True)
def test_a_run_goes_on_over_the_rows_that_it_began_with_alone(copied: Path) -> None:
    """Stopped in the middle, then the file has its labels exchanged, another order, or half of its rows."""
    text = (copied / "a.csv").read_text()
    (copied / "half.csv").write_text("".join(text.splitlines(keepends=True)[:21]))
    shutil.copy("a.csv", "train.csv")
    config = configuration.resolve(None, [*SETTINGS, "steps=16", "checkpoint_every=3", "eval_every=4"])

    def stop(state: RunState) -> None:
        if state.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(config, Path("run"), on_round=stop)
    for other in ("b.csv", "c.csv", "half.csv"):
        shutil.copy(other, "train.csv")
        for command in (["resume", "run"], ["export", "run", "--out", "model"]):
            assert "task.train has changed" in refusal(halfback(*command))
    shutil.copy("a.csv", "train.csv")
    assert halfback("resume", "run").status == 0
    run.train(config, Path("unbroken"))
    tensors = [checkpoint.load(Path(folder, CHECKPOINT)) for folder in ("run", "unbroken")]
    one, other = (found[1] for found in tensors if found is not None)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
