import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfback.errors import UserError
from halfback.telemetry import records as module
from halfback.telemetry.records import (
    SUMMARY_KEYS,
    Record,
    read_records,
    read_summary,
    truncate_records,
    write_summary,
)
from halfback.telemetry.sinks import JsonLines, TensorBoard

RECORD = Record(3, 30, 0.5, None, 0.25, 1 << 40, 7, 1.5, 0.25, 0.0, 2.0, 120, {"gradient_down": 0.98})


def summary() -> dict:
    return {
        **dict.fromkeys(SUMMARY_KEYS, 1),
        "metric": {"name": "accuracy", "initial": 0.1, "final": 0.9, "best": math.nan, "initial_rows": 5},
        "bytes_by_kind": {"up": {"Slopes": {"slopes": 8}}, "down": {}},
        "trainable_parameters": {"bottom": 1, "top": 2},
        "private_activations": {"epsilon": 8.0, "delta": 1e-5, "noise": 0.6, "clip": 1.0, "releases": 1},
        "privacy": None,
        "generation": {"bleu": 31.5, "chrf": 55.0, "rows": 20, "decoding": "greedy, up to 64 tokens"},
        "versions": {"torch": "2.13"},
        "ended": None,
    }


def test_what_noise_on_activations_came_to_is_whole_numbers_or_null(tmp_path: Path) -> None:
    for wrong, said in (({"epsilon": 1.0}, "private_activations lacks"), (3, "private_activations must be an object")):
        with pytest.raises(UserError, match=said):
            write_summary(tmp_path, summary() | {"private_activations": wrong})
    write_summary(tmp_path, summary() | {"private_activations": None})
    assert read_summary(tmp_path)["private_activations"] is None
    spent = summary()["private_activations"] | {"epsilon": -1.0}
    write_summary(tmp_path, summary() | {"private_activations": spent})
    with pytest.raises(UserError, match=r"private_activations\.epsilon"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("generation", "said"),
    [(None, None), ({"bleu": 1.0}, "generation lacks chrf, decoding, rows"), (3, "generation must be an object")],
)
def test_generation_is_whole_or_null(tmp_path: Path, generation: object, said: str | None) -> None:
    if said is None:
        write_summary(tmp_path, summary() | {"generation": generation})
        assert read_summary(tmp_path)["generation"] is None
    else:
        with pytest.raises(UserError, match="generation"):
            write_summary(tmp_path, summary() | {"generation": generation})


def fill(folder: Path, count: int = 4) -> list[Record]:
    written = [replace(RECORD, round=round, step=10 * round) for round in range(count)]
    sink = JsonLines(folder)
    for record in written:
        sink.write(record)
    sink.close()
    return written


def test_a_record_comes_back_as_it_was() -> None:
    assert Record.from_json(RECORD.to_json()) == RECORD
    assert "\n" not in RECORD.to_json()


def test_a_record_from_before_there_were_fleets_is_read() -> None:
    line = {name: value for name, value in json.loads(RECORD.to_json()).items() if name != "simulated_seconds"}
    assert Record.from_json(json.dumps(line)) == RECORD
    timed = replace(RECORD, simulated_seconds=3.5)
    assert Record.from_json(timed.to_json()) == timed


def test_a_loss_that_is_not_finite_is_standard_json() -> None:
    line = replace(RECORD, train_loss=math.inf, metric=math.nan).to_json()
    assert json.loads(line, parse_constant=pytest.fail)["train_loss"] is None
    back = Record.from_json(line)
    assert math.isnan(back.train_loss)
    assert back.metric is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "one line of JSON"),
        ("[1]", "not list"),
        ('{"round": 1}', r"not \['round'\]"),
        (RECORD.to_json().replace('"step": 30', '"step": 3.5'), "step must be a number from 0 to 2\\^63 - 1, not 3.5"),
        (RECORD.to_json().replace('"step": 30', '"step": true'), "step must be a number from 0 .*, not True"),
        (RECORD.to_json().replace('"up_bytes"', '"upbytes"'), "upbytes"),
    ],
)
def test_a_wrong_record_is_named_in_one_line(line: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Record.from_json(line)
    assert "\n" not in str(error.value)


def test_each_record_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path)
    for count in (1, 2):
        sink.write(RECORD)
        assert len(read_records(tmp_path)) == count
    sink.close()


def test_a_writer_killed_at_any_byte_costs_its_last_record_at_most(tmp_path: Path) -> None:
    written = fill(tmp_path, 2)
    whole = (tmp_path / "records.jsonl").read_bytes()
    first = whole.index(b"\n")
    for length in range(first + 1, len(whole)):
        (tmp_path / "records.jsonl").write_bytes(whole[:length])
        expected = written if length == len(whole) - 1 else written[:1]
        assert read_records(tmp_path) == expected
    (tmp_path / "records.jsonl").write_bytes(whole[:-20])
    assert [record.round for record in read_records(tmp_path)] == [0]
    sink = JsonLines(tmp_path)  # appending after the torn line must not glue two records together
    sink.write(RECORD)
    sink.close()
    assert read_records(tmp_path) == [written[0], RECORD]


def test_truncation_drops_what_came_after_the_round(tmp_path: Path) -> None:
    written = fill(tmp_path)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"round": 4, "st')
    truncate_records(tmp_path, 1)
    assert read_records(tmp_path) == written[:2]
    assert (tmp_path / "records.jsonl").read_bytes().endswith(b"}\n")
    truncate_records(tmp_path, -1)
    assert read_records(tmp_path) == []
    truncate_records(tmp_path / "nowhere", 0)
    assert os.listdir(tmp_path) == ["records.jsonl"]


def test_a_crash_while_replacing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fill(tmp_path)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        truncate_records(tmp_path, 1)
    assert read_records(tmp_path) == written


def test_missing_and_corrupt_records_are_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        read_records(tmp_path)
    fill(tmp_path)
    text = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "records.jsonl").write_text("nonsense\n" + text)
    with pytest.raises(UserError, match="line 1: "):
        read_records(tmp_path)
    (tmp_path / "records.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_records(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    assert read_records(tmp_path) == []


def test_a_summary_comes_back_with_null_for_what_json_cannot_hold(tmp_path: Path) -> None:
    write_summary(tmp_path, summary())
    back = read_summary(tmp_path)
    assert back.pop("metric") == {"name": "accuracy", "initial": 0.1, "final": 0.9, "best": None, "initial_rows": 5}
    assert back == {key: value for key, value in summary().items() if key != "metric"}
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made.pop("seed"), "lacks seed"),
        (lambda made: made.update(sed=1), "unknown keys sed; allowed are"),
        (lambda made: made["metric"].pop("best"), "metric lacks best"),
        (lambda made: made.update(bytes_by_kind=3), "bytes_by_kind must be an object, not 3"),
        (lambda made: made["bytes_by_kind"].update(sideways={}), "unknown keys sideways"),
    ],
)
def test_a_summary_with_other_keys_is_refused(tmp_path: Path, change, said: str) -> None:
    made = summary()
    change(made)
    with pytest.raises(UserError, match=said):
        write_summary(tmp_path, made)
    assert os.listdir(tmp_path) == []
    (tmp_path / "summary.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match=said):
        read_summary(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_corrupt_summary_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "summary.json"))):
        read_summary(tmp_path)


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(tmp_path)
    sink.write(RECORD)
    sink.write(replace(RECORD, step=40, train_loss=0.4))
    sink.close()
    resumed = TensorBoard(tmp_path, resumed_at=40)
    resumed.write(replace(RECORD, step=40, train_loss=0.3))
    resumed.close()
    read = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert "loss/validation" not in read.Tags()["scalars"]
    assert [(event.step, round(event.value, 3)) for event in read.Scalars("loss/train")] == [(30, 0.5), (40, 0.3)]
    assert read.Scalars("bytes/up")[0].value == float(1 << 40)


NOT_TO_BE_READ: dict[str, list[Any]] = {
    "client_seconds": [math.inf, math.nan, -1.0, None, 10**400, "1", True],
    "wall_seconds": [-1e-9],
    "simulated_seconds": [-1.0, math.inf, "1", True],
    "forward_passes": [1 << 63, -1, 1.0, None],
    "up_bytes": [10**5000],
    "validation_loss": ["0.5"],
    "thresholds": [{"gradient_down": math.inf}, {"gradient_down": None}, {"gradient_down": True}, None],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, some in NOT_TO_BE_READ.items() for value in some],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_read_is_not_written(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"a record's {field} must be") as error:
        replace(RECORD, **{field: value}).to_json()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    if not isinstance(value, int) or value < 10**4000:  # Python writes out no longer ones
        line = json.dumps(json.loads(RECORD.to_json()) | {field: value})
        with pytest.raises(UserError, match=rf"a record('s {field})? must be"):  # some are no JSON that is read
            Record.from_json(line)


def test_a_number_that_a_reader_takes_for_infinity_is_refused() -> None:
    line = RECORD.to_json().replace('"server_seconds": 0.25', '"server_seconds": 1e999')
    with pytest.raises(UserError, match="a record must be one line of JSON"):
        Record.from_json(line)
