"""What a server, a package or a disk may say to a device: whatever is wrong is one line, and changes nothing."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed import adapted, run_of, shared_rows, world
from safetensors.numpy import load_file, save_file

from halfback.engine.remote.frames import Refused, read_reply
from halfback_device.client import Device
from halfback_device.data import Rows
from halfback_device.package import MANIFEST, Package
from halfback_device.plan import plan_of

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

SETTINGS: dict[str, Any] = {
    "algorithm__directions": 1,
    "algorithm__exact_blocks": 1,
    "bottom__optimizer": "adamw",
    "codecs__slopes_up": ["sign"],
    "codecs__activations_up": [{"name": "temporal"}, "int8"],
}


@dataclass
class Recorded:
    """A run that went well: the package, the rows, and what client 0 was asked in it."""

    package: Package
    rows: Rows
    folder: Path
    asked: list[tuple[str, bytes]]

    def device(self, folder: Path, **changes: Any) -> Device:
        return Device(changes.pop("package", self.package), changes.pop("rows", self.rows), folder, **changes)

    @property
    def prepare(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.asked[0][0])
        return told


@pytest.fixture(scope="module")
def recorded(base: Path, tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    config = run_of("ho_sfl", tiny_bert, sentences, **SETTINGS)
    package, rows = adapted(base, config, folder / "package"), shared_rows(sentences)
    run = world(config, ["device", "device", "device"], rows, folder / "run", lambda client: package)
    run.run(3)
    run.server.state()
    return Recorded(package, rows, folder, [(q.header, q.body) for number, q in run.carrier.asked if number == 0])


def refusal(reply: tuple[str, bytes]) -> Refused:
    told = read_reply(reply[0])
    assert isinstance(told, Refused), told
    assert told.error.isprintable()
    assert len(told.error) < 1000
    return told


def test_questions_late_or_twice_change_nothing(recorded: Recorded, tmp_path: Path) -> None:
    device = recorded.device(tmp_path)
    assert refusal(device.reply(*recorded.asked[1])).why == "peer"  # prepare is due first
    said = [device.reply(*each) for each in recorded.asked[:4]]
    assert refusal(device.reply(*recorded.asked[3])).why == "stale"
    assert refusal(device.reply(*recorded.asked[5])).why == "stale"
    assert device.reply(*recorded.asked[0]) == said[0]  # of a server that asks anew
    assert read_reply(device.reply(*recorded.asked[4])[0]).kind == "said"


def test_an_earlier_server_s_round_is_gone_back_from(recorded: Recorded, tmp_path: Path) -> None:
    """A device that has gone beyond where the server is begins anew, and says the same to the bit."""
    device = recorded.device(tmp_path)
    first = [_without_seconds(device.reply(*each)) for each in recorded.asked]
    again = [_without_seconds(device.reply(*each)) for each in recorded.asked[:-1]]  # but for the state on its disk
    assert again == first[:-1]


def _without_seconds(reply: tuple[str, bytes]) -> Any:
    told = json.loads(reply[0])
    return {key: value for key, value in told.items() if "seconds" not in key and "peak" not in key}, reply[1]


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_questions_are_refused_in_one_line(recorded: Recorded, tmp_path: Path, seed: int) -> None:
    dice, device = random.Random(seed), recorded.device(tmp_path)
    says = [index for index, (header, _) in enumerate(recorded.asked) if '"say"' in header]
    answered = 0
    for _ in range(60):
        upto = dice.choice(says[: len(says) // 3])  # of the first round
        for each in recorded.asked[:upto]:
            device.reply(*each)
        header, body = recorded.asked[upto]
        if dice.random() < 0.8:
            body = _mutated(body, dice, recorded.asked)
        else:
            header = _mutated(header.encode(), dice, recorded.asked).decode(errors="replace")
        told = read_reply(device.reply(header, body)[0])
        if isinstance(told, Refused):
            assert told.why in ("peer", "stale", "diverged"), told.error
            assert told.error.isprintable()
        else:
            answered += 1  # other numbers of the right form are an answer too
    assert answered < 45


def _mutated(data: bytes, dice: random.Random, others: list[tuple[str, bytes]]) -> bytes:
    """The bytes with some changed, cut out, doubled, cut off, or replaced by extreme lengths or another message's."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(min(len(changed), 64) + 1) if dice.random() < 0.7 else dice.randrange(len(changed) + 1)
        match dice.randrange(6):
            case 0:
                changed[at : at + 1] = dice.randbytes(1)
            case 1:
                del changed[at : at + dice.randint(1, 8)]
            case 2:
                changed[at:at] = changed[at : at + dice.randint(1, 16)]
            case 3:
                changed[at : at + 4] = dice.choice(
                    (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", bytes(4))
                )
            case 4:
                del changed[at:]
            case _:
                changed[at:] = dice.choice(others)[1][at:]
    return bytes(changed)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for key in way:
            told = told[key]
        told[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("config.bottom.lr", 0.5), "bottom.lr=0.5"),
        (_set("config.seed", 6), "seed=6"),
        (_set("config.algorithm.name", "split_lora"), "algorithm.name="),
        (_set("config.task.max_length", 12), "task.max_length=12"),
        (_set("config.partition.alpha", 0.1), "partition.alpha=0.1"),
        (_set("config.secure.sum", True), "secure.sum=True in this run, False in the package"),
        (_set("config", {}), "Prepare.client"),
        (_set("client", 3), "Prepare.client"),
        (_set("label_names", ["positive", "negative"]), "classes"),
        (_set("weights", "0" * 64), "weights"),
    ],
)
def test_a_run_that_the_package_is_not_for_is_refused(
    recorded: Recorded, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    told = recorded.prepare
    change(told)
    device = recorded.device(tmp_path)
    assert said in refusal(device.reply(json.dumps(told))).error
    assert refusal(device.reply(recorded.asked[0][0], b"weights")).why == "peer"
    assert read_reply(device.reply(*recorded.asked[0])[0]).kind == "ready"


def test_labels_stay_where_they_are_to_stay(recorded: Recorded, tmp_path: Path) -> None:
    device = recorded.device(tmp_path, keep_labels=True)
    assert "keeps its labels" in refusal(device.reply(*recorded.asked[0])).error


def test_what_is_wrong_with_a_row_stays_on_the_device(
    recorded: Recorded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na secret,maybe\n")
    device = recorded.device(tmp_path, rows=Rows(str(path), text="text", label="label"))
    told = refusal(device.reply(*recorded.asked[0]))
    assert told.why == "user"
    assert "maybe" not in told.error
    assert "maybe" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("config.algorithm.name", "split_lora"), "algorithm.name"),
        (
            _set("config.algorithm", {"name": "ho_sfl", "estimator": "forward_ad", "exact_blocks": 1}),
            "algorithm.estimator",
        ),
        (_set("config.algorithm", {"name": "ho_sfl", "directions": -1, "exact_blocks": 1}), "algorithm.directions"),
        (_set("config.algorithm", {"name": "hosl", "exact_blocks": 1}), "exact_blocks"),
        (_set("config.model.head", 0), "graphs"),
        (_set("config.model.dtype", "bfloat16"), "model.dtype"),
        (_set("config.client.memory", 10.0), "client.memory"),
        (_set("config.codecs.activations_up", ["topk"]), "topk"),
        (_set("config.codecs.activations_up", "int8"), "codecs.activations_up"),
        (_set("config.bottom.lr", float("1e9")), "bottom.lr"),
        (_set("config.batch_size", True), "batch_size"),
        (_set("config.secure.sum", "yes"), "secure.sum='yes': true or false"),
        (_set("config.secure.sum", True), "codecs.slopes_up: secure.sum=true sends whole numbers"),
        (_set("config.seed", -1), "seed"),
        (_set("config", None), "config"),
        (_set("task", []), "task.objective"),
        (_set("task.texts.side", "up"), "task.texts.side"),
        (lambda manifest: manifest["task"]["texts"].pop("template"), "task.texts.template"),
        (_set("config.codecs.activations_up", [{"name": [[]]}]), "codecs.activations_up"),
        (lambda manifest: manifest["graphs"]["embed"]["weights"].pop(), "can't be run"),
        (_set("config.algorithm", {"name": "ho_sfl", "exact_blocks": 0}), "exact_blocks=0"),
        (_set("weights", {}), "weights.format"),
        (_set("groups", 3), "groups"),
        (lambda manifest: manifest["files"].pop("tokenizer.json"), "tokenizer.json"),
    ],
)
def test_a_package_that_a_device_can_t_work_with_is_one_line(
    recorded: Recorded, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    manifest = json.loads((recorded.folder / "package" / MANIFEST).read_text())
    change(manifest)
    package, told = Package(recorded.package.folder, manifest, recorded.package.weights), recorded.prepare
    told["config"] = manifest["config"] if isinstance(manifest["config"], dict) else told["config"]
    assert said in refusal(recorded.device(tmp_path, package=package).reply(json.dumps(told))).error


def test_blocks_below_the_first_that_is_trained_are_not_gone_back_through(recorded: Recorded) -> None:
    """LoRA may be in some blocks alone, whatever `exact_blocks` says; a package has no graphs for those below."""
    manifest = json.loads((recorded.folder / "package" / MANIFEST).read_text())
    assert plan_of(manifest).exact_blocks == 1
    manifest["config"]["algorithm"]["exact_blocks"] = "all"
    assert plan_of(manifest).exact_blocks == 1


@pytest.mark.parametrize(
    "change",
    [
        _set("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////////w=="}),
        _set("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
        _set("pre_tokenizer", {"type": "FixedLength", "length": 0}),
        _set("post_processor.single", [{"Sequence": {"id": "B", "type_id": 0}}]),
        _set("model", {"type": "Unigram", "unk_id": None, "vocab": []}),
    ],
)
def test_a_tokenizer_that_fails_or_panics_is_one_line(
    recorded: Recorded, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """The library's panics are no exceptions of Python's: they would end the worker, again and again."""
    folder = shutil.copytree(recorded.package.folder, tmp_path / "package")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    package = Package(folder, recorded.package.manifest, recorded.package.weights)
    told = refusal(recorded.device(tmp_path, package=package).reply(*recorded.asked[0]))
    assert told.why == "user"
    assert "tokenizer" in told.error


def test_two_processes_do_not_work_in_one_folder(recorded: Recorded, tmp_path: Path) -> None:
    """Each would empty the other's caches and remove its states."""
    path = tmp_path / recorded.prepare["run"] / "client-0" / "lock"
    path.parent.mkdir(parents=True)
    holds = "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    device = recorded.device(tmp_path)
    with subprocess.Popen([sys.executable, "-c", holds, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "another process works in it" in refusal(device.reply(*recorded.asked[0])).error
        other.communicate(b"\n")
    assert read_reply(device.reply(*recorded.asked[0])[0]).kind == "ready"


@pytest.fixture
def left(recorded: Recorded, tmp_path: Path) -> tuple[Path, str, str]:
    """The states that a device has left, and what it is asked when it comes back: to prepare, and the round behind."""
    device = recorded.device(tmp_path)
    for each in recorded.asked:
        told = read_reply(device.reply(*each)[0])
    assert told.kind == "saved"
    order = json.loads(next(header for header, _ in reversed(recorded.asked) if '"open"' in header))
    return tmp_path, recorded.asked[0][0], json.dumps(order | {"round": 3, "first": 6})


def _states(folder: Path) -> Path:
    (found,) = folder.glob("*/client-0/states/round-*")
    return found


def test_a_device_goes_on_from_its_disk(recorded: Recorded, left: tuple[Path, str, str]) -> None:
    folder, prepare, order = left
    device = recorded.device(folder)
    device.reply(prepare)
    assert read_reply(device.reply(order)[0]).kind == "said"
    client: Any = device._client
    assert client._session.party.theta.position == 6  # and Join says so


def _values(change: Callable[[dict[str, Any]], None], *, summed: bool = True) -> Callable[[Path], None]:
    """`summed`: the checksum is right again, as in a state that was made up."""

    def damage(state: Path) -> None:
        from halfback_device.state import _sum

        values = json.loads((state / "values.json").read_text())
        change(values)
        if summed:
            del values["sum"]
            values["sum"] = _sum((state / "arrays.safetensors").read_bytes(), values)
        (state / "values.json").write_text(json.dumps(values))

    return damage


def _arrays(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(state: Path) -> None:
        arrays: dict[str, Any] = load_file(state / "arrays.safetensors")
        change(arrays)
        save_file(arrays, state / "arrays.safetensors")
        _values(lambda values: None)(state)

    return damage


def _first(change: Callable[[np.ndarray], np.ndarray], start: str = "theta.") -> Callable[[dict[str, Any]], None]:
    def damage(arrays: dict[str, Any]) -> None:
        name = next(name for name in sorted(arrays) if name.startswith(start))
        arrays[name] = change(arrays[name])

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: (state / "values.json").write_text("{"), "can't be read"),
        (lambda state: (state / "values.json").write_text("[]"), "values.json"),
        (lambda state: (state / "values.json").write_text("[" * 100_000), "can't be read"),
        (lambda state: (state / "values.json").unlink(), "can't be read"),
        (lambda state: (state / "arrays.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda state: (state / "arrays.safetensors").unlink(), "no file"),
        (_values(_set("position", 4), summed=False), "damaged"),
        (_values(_set("position", 1.5)), "position"),
        (_values(_set("position", -1)), "out of range"),
        (_values(_set("more", 1)), "nothing else"),
        (_values(_set("about", {})), "have changed"),
        (_values(_set("link", {})), "can't be gone on from"),
        (_arrays(lambda arrays: arrays.clear()), "is missing"),
        (_arrays(lambda arrays: arrays.update(new=np.zeros(3))), "nothing has this name"),
        (_arrays(_first(lambda a: a.astype(np.float64))), "another form"),
        (_arrays(_first(lambda a: a * np.float32("nan"))), "not finite"),
        (_arrays(_first(lambda a: a[:1], "moment.")), "another form"),
    ],
)
def test_a_damaged_state_is_one_line_and_changes_nothing(
    recorded: Recorded, left: tuple[Path, str, str], damage: Callable[[Path], None], said: str
) -> None:
    folder, prepare, order = left
    damage(_states(folder))
    device = recorded.device(folder)
    device.reply(prepare)
    told = refusal(device.reply(order))
    assert told.why == "user"
    assert said in told.error
    shutil.rmtree(_states(folder))
    assert read_reply(device.reply(order)[0]).kind == "said"  # it begins anew
    client: Any = device._client
    theta = client._session.party.theta
    assert theta.position == 0
    assert all(np.array_equal(theta.parameters[name], begin) for name, begin in recorded.package.theta().items())
