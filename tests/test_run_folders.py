"""Run folders come from other people and other disks: whatever is wrong in one is one line, and nothing is changed.

A mutation is made on a copy of a real run that was stopped after step 4 of 6.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import digits, halfback, refusal
from safetensors.torch import load_file, save_file
from test_run import loaded

from halfback import config
from halfback.engine import checkpoint
from halfback.runs import run
from halfback.runs.told import RunState

ROUND, TENSORS, VALUES = "round-00000004", "tensors.safetensors", "values.json"
SETTINGS = ["steps=6", "eval_every=2", "checkpoint_every=1", "top.optimizer=adamw", "controller={name: bang_bang}"]
SETTINGS += ["codecs.activations_up=[temporal]", "bottom.optimizer=momentum"]


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folders") / "run"

    def watch(state: RunState) -> None:
        if state.step == 4:
            raise StopIteration

    with pytest.raises(StopIteration):
        run.train(config.resolve(None, digits(out, *SETTINGS)[1:-2]), out, on_round=watch)
    return out


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


Mutation = Callable[[Path], object]


def values(change: Callable[[dict[str, Any]], object]) -> Mutation:
    def mutate(out: Path) -> None:
        path = out / "checkpoint" / ROUND / VALUES
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return mutate


def of_client(change: Callable[[dict[str, Any]], object]) -> Mutation:
    return values(lambda found: change(found["clients"]["0"]))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Mutation:
    """Saved as a checkpoint is, so that nothing but its content gives it away."""

    def mutate(out: Path) -> None:
        number, held, told = loaded(out)
        change(held)
        checkpoint.save(out / "checkpoint", number, held, told)

    return mutate


def written(name: str, data: bytes | str) -> Mutation:
    return lambda out: (out / name).write_bytes(data.encode() if isinstance(data, str) else data)


def records(change: Callable[[list[dict[str, Any]]], object]) -> Mutation:
    def mutate(out: Path) -> None:
        lines = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
        change(lines)
        (out / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return mutate


def pipe(name: str) -> Mutation:
    def mutate(out: Path) -> None:
        (out / name).unlink()
        os.mkfifo(out / name)

    return mutate


def first(held: dict[str, Any], beginning: str) -> str:
    return next(name for name in held if name.startswith(beginning))


def entries(found: dict[str, Any]) -> list[Any]:
    """What the near end of client 0's link remembers."""
    remembered: list[Any] = found["clients"]["0"]["link"]["activations_up"]["cache"]["entries"]
    return remembered


def swapped(out: Path) -> None:
    """Another round's tensors under these values."""
    path = out / "checkpoint" / ROUND / TENSORS
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)


def linked(out: Path) -> None:
    shutil.move(out / "checkpoint" / ROUND, out / "elsewhere")
    (out / "checkpoint" / ROUND).symlink_to(out / "elsewhere")


def named(name: str) -> Mutation:
    return lambda out: (out / "checkpoint" / ROUND).rename(out / "checkpoint" / name)


C, R, Y, S = f"checkpoint/{ROUND}", "records.jsonl", "config.yaml", "summary.json"
W = "pretrained.safetensors"
T, V = f"{C}/{TENSORS}", f"{C}/{VALUES}"
OTHER = config.dump(config.resolve(None, digits(Path("x"))[1:-2]))
CHECKPOINTS: dict[str, tuple[Mutation, str]] = {
    "values-gone": (lambda out: (out / V).unlink(), "values.json is not there"),
    "values-cut": (written(V, '{"step": 4'), "values.json must be JSON"),
    "values-list": (written(V, "[]"), "values.json must hold an object, not list"),
    "values-not-utf-8": (written(V, b"\xff\xfe"), "values.json is not text"),
    "values-deep": (written(V, 100_000 * '{"a":'), "must be JSON: it is nested too deep"),
    "values-huge-number": (written(V, '{"step": 1' + 400 * "0" + "}"), "the number 10000000000000000000… is out of"),
    "values-endless-number": (written(V, '{"step": 1' + 9000 * "0" + "}"), "is out of range"),
    "values-beyond-floats": (written(V, '{"wall_seconds": 1e999}'), "the number '1e999' is out of range"),
    "values-pipe": (pipe(V), "values.json is not a file"),
    "values-folder": (lambda out: ((out / V).unlink(), (out / V).mkdir()), "values.json is not a file"),
    "values-of-an-earlier-version": (values(lambda v: v.pop("tensors")), "written by an earlier version"),
    "no-fingerprint": (values(lambda v: v.pop("fingerprint")), "fingerprint: Field required"),
    "no-step": (values(lambda v: v.pop("step")), "step: Field required"),
    "no-config": (values(lambda v: v.pop("config")), "config: Field required"),
    "no-far": (values(lambda v: v.pop("far")), "far: Field required"),
    "foreign-key": (values(lambda v: v.update(other=1)), "'other' is there, and nothing has this name"),
    "step-digits": (values(lambda v: v.update(step="4")), "step='4': Input should be a valid integer"),
    "steps-true": (values(lambda v: v.update(steps=True)), "steps=True: Input should be a valid integer"),
    "cursor-a-fraction": (of_client(lambda c: c.update(cursor=1.0)), "clients.0.cursor=1.0: Input should"),
    "cursor-digits": (of_client(lambda c: c.update(cursor="1")), "clients.0.cursor='1': Input should be"),
    "seconds-digits": (values(lambda v: v.update(wall_seconds="1")), "wall_seconds='1': Input should be a valid"),
    "client-lost": (values(lambda v: v["clients"].pop("0")), "client 0 has a place in one of far and clients"),
    "clients-lost": (values(lambda v: v.update(clients={})), "client 0 has a place in one of far and clients"),
    "client-of-an-odd-number": (values(lambda v: v["clients"].update({"00": v["clients"]["0"]})), "clients.00"),
    "fingerprint-empty": (values(lambda v: v.update(fingerprint={})), "fingerprint: model.name is due"),
    "fingerprint-lacks-one": (values(lambda v: v["fingerprint"].pop("task.train")), "fingerprint: task.train is due"),
    "step-text": (values(lambda v: v.update(step="four")), "step='four': Input should be a valid integer"),
    "step-negative": (values(lambda v: v.update(step=-4)), "step=-4: Input should be greater than or equal to 0"),
    "step-of-another-round": (values(lambda v: v.update(step=3)), "of round 4 contradicts itself: it says step 3"),
    "losses-number": (values(lambda v: v.update(losses=3)), "losses=3: Input should be a valid list"),
    "losses-text": (values(lambda v: v.update(losses=["a"])), "losses.0='a'"),
    "losses-too-many": (values(lambda v: v.update(losses=[1.0])), "at round 4: losses since is 1, there it is 0"),
    "seconds-nan": (values(lambda v: v.update(wall_seconds=float("nan"))), "wall_seconds=nan"),
    "seconds-infinite": (values(lambda v: v.update(seconds=[1.0, float("inf"), 1.0])), "seconds.1=inf"),
    "seconds-two": (values(lambda v: v.update(seconds=[1.0, 1.0])), "seconds.2: Field required"),
    "passes-others": (values(lambda v: v.update(forward_passes=7)), "forward_passes is 7, there it is"),
    "bytes-others": (values(lambda v: v["ledger"].update(up={})), "up_bytes is 0, there it is"),
    "bytes-text": (values(lambda v: v["ledger"].update(up={"A": {"a": "b"}})), "ledger.up.A.a='b'"),
    "bytes-sideways": (values(lambda v: v["ledger"].update(sideways={})), "ledger.sideways"),
    "client-of-no-number": (values(lambda v: v["clients"].update(x=v["clients"]["0"])), "clients.x"),
    "client-beyond-all": (
        values(lambda v: v["clients"].update({"9": v["clients"]["0"]})),
        "client 9 is in the checkpoint",
    ),
    "client-of-two-values": (of_client(lambda c: c.pop("replayed")), "clients.0.replayed: Field required"),
    "client-before-the-start": (of_client(lambda c: c.update(cursor=-1)), "clients.0.cursor=-1"),
    "client-ahead": (of_client(lambda c: c.update(position=99)), "position 99 contradicts the history"),
    "server-ahead": (values(lambda v: v.update(position=99)), "position 99 contradicts the history"),
    "peaks-none": (values(lambda v: v.update(peaks=None)), "peaks=None"),
    "link-lost": (of_client(lambda c: c.update(link={})), "can't be gone on from: KeyError"),
    "far-lost": (values(lambda v: v["far"].update({"0": {}})), "can't be gone on from: KeyError"),
    "far-list": (values(lambda v: v["far"].update({"0": [{}]})), "far.0=[{}]: Input should be"),
    "link-forgets": (values(lambda v: entries(v).clear()), "the samples that are remembered are not those that have"),
    "link-of-no-size": (values(lambda v: entries(v)[0].__setitem__(1, float("nan"))), "must be whole numbers"),
    "controller-best-text": (values(lambda v: v["controller"].update(best_loss="a")), "best_loss='a': a finite number"),
    "controller-best-nan": (
        values(lambda v: v["controller"].update(best_loss=float("nan"))),
        "best_loss=nan: a finite",
    ),
    "controller-lost": (values(lambda v: v.update(controller={})), "can't be gone on from: KeyError"),
    "controller-text": (values(lambda v: v["controller"].update(threshold="a")), "controller: a threshold is 'a'"),
    "away": (values(lambda v: v.update(deployment={})), "deployment.lineage: Field required"),
    "config-other": (values(lambda v: v["config"].update(seed=5)), "belongs to another configuration: seed was 5"),
    "config-list": (values(lambda v: v.update(config=[])), "config=[]"),
    "fingerprint-other": (
        values(lambda v: v["fingerprint"].update({"task.train": "0"})),
        "task.train has changed: the training rows of",
    ),
    "start-number": (values(lambda v: v.update(start=3)), "start=3"),
    "tensors-gone": (lambda out: (out / T).unlink(), f"{C} can't be read: "),
    "tensors-cut": (lambda out: (out / T).write_bytes((out / T).read_bytes()[:-5]), "is damaged, or not the one"),
    "tensors-of-another-round": (swapped, "tensors.safetensors is damaged, or not the one that was saved"),
    "tensors-pipe": (pipe(T), "tensors.safetensors is not a file"),
    "tensor-missing": (tensors(lambda t: t.pop(first(t, "bottom."))), "tensor bottom."),
    "tensor-missing-of-the-top": (tensors(lambda t: t.pop(first(t, "top."))), "is missing"),
    "moment-missing": (tensors(lambda t: t.pop(first(t, "bottom_moment."))), "tensor bottom_moment.velocity"),
    "optimizer-missing": (tensors(lambda t: t.pop("top_optimizer.0.exp_avg")), "top_optimizer.0.exp_avg is missing"),
    "tensor-surplus": (tensors(lambda t: t.update({"bottom.new": torch.ones(2)})), "tensor bottom.new is there, and"),
    "optimizer-surplus": (
        tensors(lambda t: t.update({"top_optimizer.99.step": torch.ones(())})),
        "tensor top_optimizer.99.step is there, and nothing has this name",
    ),
    "history-surplus": (tensors(lambda t: t.update(history2=torch.ones(2))), "tensor history2 is there, and nothing"),
    "memory-surplus": (
        tensors(lambda t: t.update({"client.0.link.new": torch.ones(2)})),
        "client.0.link.new is there, and",
    ),
    "controller-surplus": (
        tensors(lambda t: t.update({"controller.new": torch.ones(2)})),
        "tensor controller.new is th",
    ),
    "tensor-of-one-byte": (
        tensors(lambda t: t.update({first(t, "top."): t[first(t, "top.")].to(torch.float8_e4m3fn)})),
        "is torch.float8_e4m3fn",
    ),
    "tensor-misshaped": (tensors(lambda t: t.update({first(t, "bottom."): torch.ones(1)})), "torch.float32 (1,), tor"),
    "tensor-of-another-dtype": (
        tensors(lambda t: t.update({first(t, "top."): t[first(t, "top.")].double()})),
        "torch.float64",
    ),
    "optimizer-misshaped": (
        tensors(lambda t: t.update({"top_optimizer.0.exp_avg": torch.ones(1)})),
        "tensor top_optimizer.0.exp_avg is torch.float32 (1,)",
    ),
    "tensor-not-finite": (
        tensors(lambda t: t[first(t, "bottom.")].view(-1)[0].fill_(float("nan"))),
        "is not finite",
    ),
    "moment-infinite": (tensors(lambda t: t[first(t, "bottom_moment.")].view(-1)[0].fill_(torch.inf)), "not finite"),
    "history-flat": (tensors(lambda t: t.update(history=torch.ones(4))), "tensor history is torch.float32 (4,)"),
    "history-short": (tensors(lambda t: t.update(history=t["history"][:1])), "position 4 contradicts the history"),
    "memory-lost": (tensors(lambda t: t.pop(first(t, "far."))), "the samples that are remembered are not those that"),
    "checkpoint-is-a-link": (linked, f"{ROUND} can't be read: it is a link"),
    "checkpoint-is-a-file": (
        lambda out: (shutil.rmtree(out / C), (out / C).write_text("")),
        f"{ROUND} can't be read: it is a file",
    ),
    "checkpoint-of-another-name": (named("round-00000003"), "of round 3 contradicts itself: it says step 4"),
    "checkpoint-of-a-round-to-come": (named("round-99999999"), "of round 99999999 contradicts itself"),
    "records-gone": (lambda out: (out / R).unlink(), "records.jsonl is not there"),
    "records-empty": (written(R, ""), "contradicts the checkpoint of round 4: it ends with records of none"),
    "records-one-missing": (records(lambda r: r.pop(1)), "it ends with records of 0, 4"),
    "records-one-twice": (records(lambda r: r.append(r[2])), "it ends with records of 0, 2, 4, 4"),
    "records-of-another-step": (records(lambda r: r[2].update(step=3)), "step is 4, there it is 3"),
    "records-of-other-bytes": (records(lambda r: r[2].update(up_bytes=1)), "up_bytes is "),
    "config-gone": (lambda out: (out / Y).unlink(), f"there is no {Y}"),
    "config-laughs": (written(Y, "a: &a [*a]\n"), f"{Y}', line 1: *a refers to what it stands in"),
    "config-deep": (written(Y, 10_000 * "- "), "nested deeper than 50 levels"),
    "config-pipe": (pipe(Y), f"{Y} is not a file"),
    "config-of-another": (
        written(Y, config.dump(config.resolve(None, digits(Path("x"))[1:-2]))),
        "another configuration",
    ),
}
RECORDS: dict[str, tuple[Mutation, str]] = {
    "records-not-utf-8": (written(R, b"\xff\xfe"), "records.jsonl is not text"),
    "records-pipe": (pipe(R), "records.jsonl is not a file"),
    "records-no-step": (records(lambda r: r[0].pop("step")), "line 1: "),
    "records-step-text": (records(lambda r: r[1].update(step="a")), "line 2: "),
    "records-step-list": (records(lambda r: r[1].update(step=[1])), "line 2: "),
    "records-step-huge": (records(lambda r: r[1].update(step=10**400)), "line 2: "),
    "records-step-negative": (records(lambda r: r[1].update(step=-1)), "line 2: "),
    "records-seconds-huge": (records(lambda r: r[1].update(wall_seconds=1.7e308)), "line 2: "),
    "records-metric-nan": (records(lambda r: r[1].update(metric=float("nan"))), "line 2: "),
    "records-metric-infinite": (records(lambda r: r[1].update(metric=float("inf"))), "line 2: "),
    "records-metric-list": (records(lambda r: r[1].update(metric=[])), "line 2: "),
    "records-deep": (written(R, 100_000 * "[" + "\n{}\n"), "line 1: "),
    "records-cut-in-the-middle": (written(R, '{"round": 0\n{}\n'), "line 1: "),
}


def contents(out: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"") for p in sorted(out.rglob("*"))}


# What a run goes on from is read by one function; that every command calls it shows in one mutation of each file.
BY_ALL = ("values-gone", "step-text", "tensors-cut", "tensor-missing", "memory-lost", "records-gone", "config-deep")


@pytest.mark.parametrize("what", [*CHECKPOINTS, *RECORDS])
def test_what_a_run_goes_on_from(copied: Path, what: str) -> None:
    mutate, said = (CHECKPOINTS | RECORDS)[what]
    mutate(copied)
    before = contents(copied)
    others = (["export", "--out", copied.parent / "model"], ["generate", "a text"]) if what in BY_ALL else ()
    for arguments in (["resume"], *others):
        line = refusal(halfback(arguments[0], copied, *arguments[1:]))
        assert said in line, line
    assert contents(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("what", RECORDS)
def test_what_a_report_reads(copied: Path, what: str) -> None:
    mutate, said = RECORDS[what]
    mutate(copied)
    line = refusal(halfback("report", copied, "--out", copied.parent / "page.html"))
    assert said in line, line


@pytest.mark.parametrize("name", [f"{ROUND}.bak", f"{ROUND} (copy)", "round-abc", "round-9", "backup", "unfinished-9"])
def test_what_lies_beside_a_checkpoint_is_neither_loaded_nor_removed(copied: Path, stopped: Path, name: str) -> None:
    beside = copied / "checkpoint" / name
    shutil.copytree(copied / "checkpoint" / ROUND, beside)
    held = contents(beside)
    assert halfback("resume", copied).status == 0
    assert contents(beside) == held
    assert {path.name for path in (copied / "checkpoint").iterdir()} == {"round-00000006", name}
    assert halfback("export", copied, "--out", copied.parent / "model").status == 0


@pytest.mark.parametrize("name", ["records.jsonl.part", "summary.json.part", "report.html"])
def test_nothing_is_written_through_a_link_or_into_a_pipe(copied: Path, name: str) -> None:
    """What lies in a folder that came from elsewhere may lead to any file of whoever continues the run."""
    mine = copied.parent / "mine"
    mine.write_text("precious")
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(mine)
    assert halfback("report", copied).status == 0
    assert halfback("resume", copied).status == 0
    assert mine.read_text() == "precious"
    assert not (copied / name).is_symlink()


def test_a_pipe_in_the_place_of_what_is_written(copied: Path) -> None:
    os.mkfifo(copied / "summary.json.part")
    assert halfback("resume", copied).status == 0
    (copied / "report.html").unlink()
    os.mkfifo(copied / "report.html")
    for command in ("report", "resume"):
        assert "report.html cannot be written: it is not a file" in refusal(halfback(command, copied))


@pytest.mark.parametrize("there", ["a file", "a link to itself"])
def test_a_run_whose_checkpoint_is_no_folder_keeps_its_records(copied: Path, there: str) -> None:
    place = copied / "checkpoint"
    shutil.rmtree(place)
    if there == "a file":
        place.write_text("")
    else:
        place.symlink_to(place)
    before = contents(copied)
    assert "it is no folder" in refusal(halfback("resume", copied))
    assert contents(copied) == before


def test_a_start_or_a_folder_whose_name_no_disk_takes(copied: Path) -> None:
    values(lambda v: v.update(start="/" + 300 * "a"))(copied)
    for arguments in (["resume", copied], ["export", copied, "--out", copied.parent / "m"], ["resume", 300 * "a"]):
        assert "aaa" in (line := refusal(halfback(*arguments)))
        assert "File name too long" in line


@pytest.mark.parametrize("what", [".", "checkpoint", V])
def test_a_folder_that_may_not_be_read(copied: Path, what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    for folder in (copied.parent, *copied.parent.parents):
        if str(folder).startswith(str(Path(os.environ.get("TMPDIR", "/tmp")).resolve()) + "/"):
            folder.chmod(0o755)
    (copied / what).chmod(0)
    os.seteuid(65534)
    try:
        for arguments in (["resume", copied], ["export", copied, "--out", "/nowhere/model"]):
            assert "ermission denied" in refusal(halfback(*arguments))
    finally:
        os.seteuid(0)


def pretrained(change: Callable[[dict[str, torch.Tensor]], object]) -> Mutation:
    def mutate(out: Path) -> None:
        held = load_file(out / "pretrained.safetensors")
        change(held)
        save_file(held, out / "pretrained.safetensors")

    return mutate


PRETRAINED: dict[str, tuple[Mutation, str]] = {
    "misshaped": (pretrained(lambda t: t.update({next(iter(t)): torch.ones(2, 2)})), "or of another shape"),
    "missing": (pretrained(lambda t: t.pop(first(t, "stem.conv"))), "is missing"),
    "surplus": (pretrained(lambda t: t.update(other=torch.ones(2))), "tensor 'other'"),
    "not-finite": (pretrained(lambda t: t[first(t, "stem.conv")].fill_(torch.nan)), "not finite"),
    "pipe": (pipe("pretrained.safetensors"), "it is not a file"),
    "folder": (lambda out: ((out / W).unlink(), (out / W).mkdir()), "it is not a file"),
}


@pytest.fixture(scope="module")
def from_pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    assert halfback(*digits(out, "steps=1", "model.pretrain={task: digits, steps: 1}")).status == 0
    (out / S).unlink()
    return out


@pytest.mark.parametrize("what", PRETRAINED)
def test_pretrained_weights(from_pretrained: Path, tmp_path: Path, what: str) -> None:
    mutate, said = PRETRAINED[what]
    copy = Path(shutil.copytree(from_pretrained, tmp_path / "run"))
    mutate(copy)
    line = refusal(halfback("resume", copy))
    assert said in line, line


def test_what_a_killed_save_left_is_removed(copied: Path) -> None:
    (copied / "checkpoint" / "unfinished-00000005").mkdir()
    assert halfback("resume", copied).status == 0
    assert [path.name for path in (copied / "checkpoint").iterdir()] == ["round-00000006"]


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    out = tmp_path_factory.mktemp("compared") / "out"
    work = ["compare", *digits(out, "steps=2")[2:-2], "--algorithms", "frozen_bottom,split_lora", "--seeds", 1]
    assert halfback(*work, "--out", out).status == 0
    return out, work


def summary(change: Callable[[dict[str, Any]], object]) -> Mutation:
    def mutate(out: Path) -> None:
        found = json.loads((out / "summary.json").read_text())
        change(found)
        (out / "summary.json").write_text(json.dumps(found))

    return mutate


SUMMARIES: dict[str, tuple[Mutation, str]] = {
    "cut": (written(S, '{"algorithm"'), "must be JSON"),
    "list": (written(S, "[]"), "list"),
    "not-utf-8": (written(S, b"\xff"), "is not text"),
    "deep": (written(S, 100_000 * "["), "must be JSON"),
    "pipe": (pipe(S), "is not a file"),
    "huge": (written(S, '{"steps": 1' + 400 * "0" + "}"), "must be JSON"),
    "bytes-text": (summary(lambda s: s.update(up_bytes="many")), "up_bytes must be a finite number, not 'many'"),
    "bytes-negative": (summary(lambda s: s.update(up_bytes=-1)), "up_bytes must be from 0"),
    "metric-nan": (summary(lambda s: s["metric"].update(final=float("nan"))), "metric.final must be a finite number"),
    "metric-list": (summary(lambda s: s.update(metric=[])), "metric must be an object"),
    "kinds-text": (summary(lambda s: s["bytes_by_kind"].update(up={"A": {"a": "b"}})), "bytes_by_kind.up.A.a must be"),
    "versions-list": (summary(lambda s: s.update(versions=[])), "versions must be an object"),
    "generation-list": (summary(lambda s: s.update(generation=[1])), "generation must be an object"),
}


@pytest.mark.parametrize("what", SUMMARIES)
def test_a_summary(compared: tuple[Path, list[object]], tmp_path: Path, what: str) -> None:
    """As a report, a comparison and a resumed run read it."""
    (out, work), (mutate, said) = compared, SUMMARIES[what]
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    cell = copy / "cells" / "split_lora-0"
    mutate(cell)
    others = (["resume", cell], [*work, "--out", copy]) if what in ("cut", "pipe", "bytes-text") else ()
    for arguments in (["report", cell], *others):
        line = refusal(halfback(*arguments))
        assert said in line, line


def test_a_report_of_a_summary_without_a_task(compared: tuple[Path, list[object]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compared[0] / "cells" / "split_lora-0", tmp_path / "run"))
    summary(lambda s: s.pop("task"))(copy)
    assert halfback("report", copy).status == 0


CELLS: dict[str, tuple[Mutation, str]] = {
    "summary-of-another": (summary(lambda s: s.update(seed=7)), "is that of another run: seed is 7, not 0"),
    "summary-lacks-a-key": (summary(lambda s: s.pop("steps")), "lacks steps"),
    "summary-foreign-key": (summary(lambda s: s.update(other=1)), "unknown keys other"),
    "records-empty": (written(R, ""), "has no records, but the run is over"),
    "records-foreign-key": (records(lambda r: r[0].update(other=1)), "line 1: a record has the fields"),
    "diverged-cut": (lambda out: ((out / S).unlink(), written("diverged.json", "{")(out)), "must be JSON"),
    "diverged-list": (lambda out: ((out / S).unlink(), written("diverged.json", "[]")(out)), "after_step and error"),
    "diverged-text": (
        lambda out: ((out / S).unlink(), written("diverged.json", '{"after_step": "a", "error": ""}')(out)),
        "after_step must be a count, not 'a'",
    ),
}


@pytest.mark.parametrize("what", CELLS)
def test_a_cell(compared: tuple[Path, list[object]], tmp_path: Path, what: str) -> None:
    (out, work), (mutate, said) = compared, CELLS[what]
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    mutate(copy / "cells" / "split_lora-0")
    assert said in refusal(halfback(*work, "--out", copy))


def test_a_summary_before_the_last_step(stopped: Path, compared: tuple[Path, list[object]], copied: Path) -> None:
    shutil.copy(compared[0] / "cells" / "split_lora-0" / S, copied / S)
    assert "summary.json is there, but the checkpoint is that of step 4" in refusal(halfback("resume", copied))


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torchrl")
    out, steps = tmp_path_factory.mktemp("learning") / "run", ["steps=12", "eval_every=6", "checkpoint_every=1"]
    rules = ["controller={name: ddpg, warm_up: 3, probe_every: 2}", "codecs.activations_up=[temporal]"]
    work = digits(out, *steps, *rules, "task.train_rows=32", "sampled_clients=4")

    def watch(state: RunState) -> None:
        if state.step == 10:
            raise StopIteration

    with pytest.raises(StopIteration):
        run.train(config.resolve(None, work[1:-2]), out, on_round=watch)
    return out


LEARNER = "controller.learner."
LEARNERS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "network-missing": (lambda t, v: t.pop(first(t, f"{LEARNER}networks.actor")), "is missing"),
    "network-misshaped": (
        lambda t, v: t.update({first(t, f"{LEARNER}networks.actor"): torch.ones(1)}),
        "is torch.float",
    ),
    "moment-missing": (lambda t, v: t.pop(first(t, f"{LEARNER}actor_optimizer.0.exp_avg")), "exp_avg is missing"),
    "moment-misshaped": (
        lambda t, v: t.update({f"{LEARNER}actor_optimizer.0.exp_avg": torch.ones(1)}),
        "tensor exp_avg",
    ),
    "action-of-another-dtype": (lambda t, v: t.update({"controller.action": torch.ones(1).half()}), "tensor action is"),
    "state-misshaped": (lambda t, v: t.update({"controller.state": torch.ones(1)}), "tensor state is"),
    "reference-text": (lambda t, v: v["controller"].update(reference="a"), "is not what a learner counts"),
    "decisions-true": (lambda t, v: v["controller"].update(decisions=True), "is not what a learner counts"),
    "waiting-text": (lambda t, v: v["controller"].update(waiting=[["a", 0.5]]), "is not what a learner counts"),
}


@pytest.mark.parametrize("what", LEARNERS)
def test_what_a_learner_goes_on_from(learning: Path, tmp_path: Path, what: str) -> None:
    change, said = LEARNERS[what]
    copy = Path(shutil.copytree(learning, tmp_path / "run"))
    number, held, told = loaded(copy)
    change(held, told)
    checkpoint.save(copy / "checkpoint", number, held, told)
    line = refusal(halfback("resume", copy))
    assert said in line, line
