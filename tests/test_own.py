"""Models, rows, losses and metrics of one's own, and what other packages register."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from halfback.assembly import Built, build
from halfback.assembly.given import Given, settings_of
from halfback.codecs import CODECS, codec
from halfback.config import RunConfig
from halfback.controllers import CONTROLLERS, controller
from halfback.controllers.fixed import Fixed
from halfback.data.options import TaskOptions
from halfback.data.own import Data
from halfback.data.tasks import TASKS, describe_tasks, load_task, task
from halfback.errors import UserError
from halfback.models.adapters import export, merged
from halfback.models.families import FAMILIES, family
from halfback.registry import Registry
from halfback.testing import check_codec, check_controller, check_family, check_task, small

WHOLE = {"task__train_rows": None, "task__validation_rows": None}  # of what `small.images` takes of the digits
FULL = {"bottom__train": "full", "top__train": "full"}
LORA = {"bottom__train": "lora", "top__train": "lora"}


def vectors(rows: int = 160) -> list[tuple[Tensor, int]]:
    """Six numbers a row, whose first two say the class."""
    numbers = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return [(row, int(row[0] + row[1] > 0)) for row in numbers]


def perceptron() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def configured(given: Given, algorithm: str, **changes: Any) -> RunConfig:
    return small.images(algorithm, **{**WHOLE, **changes, **settings_of(given)})


def built(given: Given, algorithm: str = "ho_sfl", **changes: Any) -> Built:
    return build(configured(given, algorithm, **{**FULL, "top__lr": 0.02, **changes}), given=given)


@family("layers", before=("stem",), after=("norm", "out"))
class Net(nn.Module):
    """A module that says in a line where its blocks are."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.norm = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width))
        self.out = nn.Linear(width, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.stem(pixels)
        for layer in self.layers:
            hidden = hidden + F.relu(layer(hidden))
        return self.out(self.norm(hidden))


def pictures() -> torch.utils.data.TensorDataset:
    labels = torch.arange(90) % 3
    noise = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(noise + labels[:, None, None, None], labels)


@pytest.mark.parametrize(
    "changes",
    [{}, LORA, {"model__head": 0}, {"codecs__activations_up": ["temporal", "int8"], "codecs__gradient_down": ["int8"]}],
    ids=["full", "lora", "u-shape", "codecs"],
)
def test_a_sequential_on_lists_of_tensors_learns(changes: dict[str, Any]) -> None:
    net = perceptron()
    run = built(Given(model=net, data=Data(vectors(), vectors())), model__cut=2, **changes)
    first = run.evaluate().loss
    small.run(run.federation, 25)
    assert run.evaluate().loss < first - 0.1
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), perceptron().parameters(), strict=True))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_given_run_goes_on_from_its_state() -> None:
    given = Given(model=perceptron(), data=Data(vectors()))
    unbroken, first, second = (built(given, model__cut=2).federation for _ in range(3))
    small.run(unbroken, 4)
    small.run(first, 2)
    second.load_state(*first.state())
    small.run(second, 2, first=2)
    small.assert_equal_states(unbroken, second)


def test_what_was_trained_comes_back_as_the_module_that_was_given(tmp_path: Path) -> None:
    run = built(Given(model=perceptron(), data=Data(vectors())), model__cut=2, **LORA)
    small.run(run.federation, 3)
    run.federation.server.agreed_bottom()
    found = merged(run.model)
    rows = torch.stack([row for row, _ in vectors()])
    with torch.no_grad():
        torch.testing.assert_close(found(rows), run.model.logits({"pixel_values": rows}), rtol=1e-5, atol=1e-6)
    assert found.state_dict().keys() == perceptron().state_dict().keys()
    export(run.model, tmp_path)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "model.safetensors").keys() == perceptron().state_dict().keys()


@pytest.mark.parametrize("algorithm", ["ho_sfl", "heron_sfl", "split_lora"])
def test_a_module_that_says_where_its_blocks_are(algorithm: str) -> None:
    run = built(Given(model=Net(), data=Data(pictures())), algorithm, model__cut=2, bottom__lr=1e-3)
    first = run.evaluate().loss
    small.run(run.federation, 12)
    assert run.evaluate().loss < first
    assert run.task.label_names == ["0", "1", "2"]


def test_families_of_ones_own_are_checked() -> None:
    check_family(Net(), {"pixel_values": torch.randn(2, 1, 8, 8)})
    assert FAMILIES["Net"].module is Net

    class Between(Net):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * 2 + self.stem(pixels).mean()

    with pytest.raises(AssertionError, match="other logits"):
        check_family(Between(), {"pixel_values": torch.randn(2, 1, 8, 8)})
    with pytest.raises(UserError, match="doesn't give what it gives whole"):
        built(Given(model=Between(), data=Data(pictures())))


SENTENCES = [("a great film", 1), ("the plot is dull", 0), ("a very warm film", 1), ("an awful film", 0)] * 16


@pytest.fixture(scope="session")
def bert(tiny_bert: Path) -> tuple[nn.Module, Any]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    return model, transformers.AutoTokenizer.from_pretrained(tiny_bert)


def sensitivity(logits: Tensor, labels: Tensor) -> float:
    """The share of class 1 that is found, in percent."""
    return float(100 * (logits.argmax(dim=1)[labels == 1] == 1).float().mean())


def test_a_transformers_model_on_texts_with_a_loss_and_a_metric_of_ones_own(bert: tuple[nn.Module, Any]) -> None:
    model, tokenizer = bert
    smooth: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss(label_smoothing=0.1)
    data = Data(SENTENCES, SENTENCES[:8])
    run, usual = (
        built(given, **LORA)
        for given in (Given(model, tokenizer, data, smooth, sensitivity), Given(model, tokenizer, data))
    )
    assert (run.task.metric, usual.task.metric) == ("sensitivity", "accuracy")
    before = run.evaluate()
    assert small.run(run.federation, 20) != small.run(usual.federation, 20)
    found = run.evaluate()
    assert found.loss < before.loss
    assert found.metric == 100


@pytest.mark.parametrize(
    ("algorithm", "changes"), [("ho_sfl", {}), ("ho_sfl", {"model__head": 0}), ("heron_sfl", {})], ids=str
)
def test_the_usual_loss_given_as_a_function_gives_the_usual_bits(algorithm: str, changes: dict[str, Any]) -> None:
    data = Data(vectors())
    runs = [
        built(Given(model=perceptron(), data=data, loss=loss), algorithm, model__cut=2, **changes)
        for loss in (None, F.cross_entropy)
    ]
    losses = [small.run(run.federation, 3) for run in runs]
    assert losses[0] == losses[1]


def weighted(logits: Tensor, labels: Tensor) -> Tensor:
    """No mean over rows: it is divided by the sum of the classes' weights in the batch."""
    return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 9.0]))


def test_a_loss_that_is_no_mean_is_refused_where_rows_are_taken_by_few() -> None:
    data = Data(vectors())
    small.run(built(Given(model=perceptron(), data=data, loss=weighted), model__cut=2).federation, 1)
    for algorithm, changes in (("ho_sfl", {"model__head": 0}), ("heron_sfl", {})):
        with pytest.raises(UserError, match=r"^loss: .* so a plain mean over rows is needed$"):
            built(Given(model=perceptron(), data=data, loss=weighted), algorithm, model__cut=2, **changes)


FRAME = pandas.DataFrame(SENTENCES, columns=["text", "label"])
TEXTS: dict[str, Any] = {
    "pairs": SENTENCES,
    "dicts": [{"text": text, "label": label} for text, label in SENTENCES],
    "columns": {"label": torch.tensor(FRAME["label"]), "text": list(FRAME["text"])},
    "frame": FRAME,
    "dataset": datasets.Dataset.from_pandas(FRAME),
    "torch-format": datasets.Dataset.from_pandas(FRAME).with_format("torch"),
    "torch": torch.utils.data.Subset(SENTENCES, range(len(SENTENCES))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("form", TEXTS)
def test_every_form_of_texts_is_the_same_task(form: str) -> None:
    raw, plain = (load_task(TaskOptions("given"), seed=0, given=Data(rows)) for rows in (TEXTS[form], SENTENCES))
    assert raw.train.texts == plain.train.texts
    assert torch.equal(raw.train.labels, plain.train.labels)
    assert raw.label_names == plain.label_names == ["0", "1"]


PIXELS = torch.arange(24.0).reshape(6, 1, 2, 2)
TENSORS: dict[str, Any] = {
    "pairs": [(pixels, number % 2) for number, pixels in enumerate(PIXELS)],
    "arrays": {"image": PIXELS.numpy(), "label": [0, 1] * 3},
    "dataset": datasets.Dataset.from_dict({"pixel_values": PIXELS.tolist(), "label": [0, 1] * 3}),
    "frame": pandas.DataFrame({"image": list(PIXELS.numpy()), "label": [0, 1] * 3}),
    "torch": torch.utils.data.TensorDataset(PIXELS, torch.tensor([0, 1] * 3)),
}


@pytest.mark.parametrize("form", TENSORS)
def test_every_form_of_tensors_is_the_same_task(form: str) -> None:
    raw = load_task(TaskOptions("given"), seed=0, given=Data(TENSORS[form], TENSORS["pairs"]))
    assert raw.train.images is not None
    assert torch.equal(raw.train.images, PIXELS)
    assert raw.train.labels.tolist() == [0, 1] * 3
    assert raw.in_channels == 1


def test_columns_have_the_names_that_the_settings_say() -> None:
    frame = FRAME.rename(columns={"text": "review", "label": "verdict"}).replace({"verdict": {0: "bad", 1: "good"}})
    options = TaskOptions("given", text="review", label="verdict", holdout=0.25)
    raw = load_task(options, seed=0, given=Data(frame))
    assert raw.label_names == ["bad", "good"]
    written = load_task(
        TaskOptions("given", objective="causal_lm"), seed=0, given=Data([text for text, _ in SENTENCES])
    )
    assert written.label_names == []


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"^the given training set is NoneType; a datasets.Dataset, "),
    "empty": ([], r"^the given training set is empty"),
    "stream": (iter(SENTENCES), r"^the given training set is list_iterator; "),
    "no-pair": ([("a", 1), ("b", 0, 2)], r"^row 2 of the given training set is no row like the others"),
    "other-keys": ([{"text": "a", "label": 1}, {"text": "b"}], r"^row 2 of the given training set has text; "),
    "no-label": (["a", "b"], r"^the given training set has no column 'label'; it has text$"),
    "lengths": ({"text": ["a", "b"], "label": [1]}, r"^column 'label' of the given training set has 1 rows"),
    "a-cell": ({"text": "a", "label": [1]}, r"^the given training set has str for column 'text'"),
    "missing-text": ([("a", 1), (None, 0)], r"^row 2, column 'text' of the given training set has no text"),
    "missing-label": ([("a", 1), ("b", None)], r"^label None in row 2, column 'label' of the given training set"),
    "float-label": ([("a", 1), ("b", 0.5)], r"^label '0.5' in row 2, column 'label' of the given training set is"),
    "one-class": ([("a", 1)] * 30, r"^the given training set has one class only"),
    "shapes": ([(PIXELS[0], 0), (PIXELS[0, 0], 1)], r"^row 2, column 'text' of .* has shape \(2, 2\); .*\(1, 2, 2\)"),
    "infinite": ([(PIXELS[0], 0), (PIXELS[0] / 0, 1)], r"^row 2, column 'text' of .* a number that is not finite$"),
    "ragged": ([([[1.0], [2.0, 3.0]], 0), ([[1.0]], 1)], r"^row 1, column 'text' of .* is no array of numbers$"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_rows_are_one_clear_line(what: str) -> None:
    rows, says = BAD[what]
    with pytest.raises(UserError, match=says) as refused:
        load_task(TaskOptions("given"), seed=0, given=Data(rows))
    assert "\n" not in str(refused.value)


class Plain(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows


def test_bad_models_and_functions_are_one_clear_line(bert: tuple[nn.Module, Any]) -> None:
    rows, texts = Data(vectors()), Data(SENTENCES)
    cases: dict[str, Given] = {
        "nobody said where the blocks of Plain are": Given(model=Plain(), data=rows),
        "nn.Sequential of 1 children, 1 with parameters, can't": Given(model=nn.Sequential(nn.Linear(6, 2)), data=rows),
        r"model: it gives logits \(4, 1\) for 4 rows; \(4, 2\) is needed": Given(
            model=nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)), data=rows
        ),
        "BertForSequenceClassification takes texts; the rows of task 'given' are tensors": Given(
            bert[0], bert[1], rows
        ),
        "Sequential takes tensors; the rows of task 'given' are texts": Given(perceptron(), bert[1], texts),
        "tokenizer=…: the rows are texts": Given(model=bert[0], data=texts),
        r"the given loss returns a tensor \(4,\)": Given(
            model=perceptron(), data=rows, loss=lambda z, y: F.cross_entropy(z, y, reduction="none")
        ),
        "its parameters are float64": Given(model=perceptron().double(), data=rows),
    }
    for says, given in cases.items():
        with pytest.raises(UserError, match=says):
            built(given)
    widening = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(16, 2))
    small.run(built(Given(model=widening, data=rows), "heron_sfl", model__auxiliary=2).federation, 1)
    with pytest.raises(UserError, match=r"^model.auxiliary: what these blocks of the given model give doesn't fit"):
        built(Given(model=widening, data=rows), "heron_sfl", model__auxiliary=1)
    with pytest.raises(UserError, match="the given metric returns nan"):
        built(Given(model=perceptron(), data=rows, metric=lambda _z, _y: float("nan"))).evaluate()


def test_a_run_needs_what_it_was_given() -> None:
    given = Given(perceptron(), None, Data(vectors()), F.cross_entropy, sensitivity)
    config = configured(given, "ho_sfl")
    for argument, setting in (("model", "model.name"), ("data", "task.name"), ("loss", "task.loss")):
        lacking = Given(**{name: None if name == argument else getattr(given, name) for name in vars(given)})
        with pytest.raises(
            UserError, match=f"^{setting}='given': it was given in Python; give it again, as {argument}="
        ):
            build(config, given=lacking)
    with pytest.raises(UserError, match=r"^model=…: this run has model.name='resnet8', and takes no other"):
        build(small.images("ho_sfl"), given=given)


@dataclass(frozen=True)
class Halves:
    """A codec: half of each value."""

    def bind(self, width: int, dtype: torch.dtype) -> Any:
        return _Halves(width, dtype)


class _Halves:
    extras = 0

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype

    def encode(self, matrix: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return matrix / 2, ()

    def decode(self, payload: Tensor, _: tuple[Tensor, ...]) -> Tensor:
        return payload * 2


@dataclass(frozen=True)
class Lowering:
    """A rule: every threshold is the same."""

    threshold: float = 0.5

    def start(self, links: Sequence[str], seed: int) -> Any:
        return Fixed(dict.fromkeys(links, self.threshold))


@pytest.fixture
def registered() -> Any:
    codec("halves")(Halves)
    controller("lowering")(Lowering)
    yield
    for table, name in ((CODECS, "halves"), (CONTROLLERS, "lowering"), (TASKS, "vectors")):
        table._here.pop(name, None)


def test_what_a_decorator_registers_is_chosen_by_name(registered: None) -> None:
    @task("vectors")
    def rows() -> Data:
        """Six numbers a row."""
        return Data(vectors())

    check_codec(["halves", "int8"], lost=0.01)
    check_controller("lowering", {"threshold": 0.3})
    check_task("vectors")
    assert ("vectors", "Six numbers a row.") in describe_tasks()
    chosen = {"controller__name": "lowering", "codecs__activations_up": ["temporal", "halves"], "task__name": "vectors"}
    given = Given(model=perceptron())
    run = build(configured(given, "ho_sfl", **FULL, **chosen), given=given)
    small.run(run.federation, 2)
    assert run.federation.server.thresholds() == {"activations_up": 0.5}


def test_a_check_finds_what_is_broken(registered: None) -> None:
    class Loses(_Halves):
        def decode(self, payload: Tensor, _: tuple[Tensor, ...]) -> Tensor:
            return payload

    class Draws(_Halves):
        def encode(self, matrix: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            return matrix + torch.randn_like(matrix), ()

    class Wanders(Fixed):
        def thresholds(self) -> dict[str, float]:
            return {link: 2.0 for link in super().thresholds()}

    class Rolls(Fixed):
        def thresholds(self) -> dict[str, float]:
            return {link: float(torch.rand(1)) for link in super().thresholds()}

    for broken, says in ((Loses, "of the energy is lost"), (Draws, "different bytes")):
        bind: dict[str, Any] = {"bind": lambda _, width, dtype, b=broken: b(width, dtype)}
        codec("halves")(dataclass(frozen=True)(type("Broken", (), bind)))
        with pytest.raises(AssertionError, match=says):
            check_codec(["halves"], lost=0.01)
    for rule, says in ((Wanders, "threshold 2.0"), (Rolls, "of one seed differ")):
        start: Mapping[str, Any] = {"start": lambda _, links, seed, r=rule: r(dict.fromkeys(links, 0.5))}
        controller("lowering")(dataclass(frozen=True)(type("Broken", (), dict(start))))
        with pytest.raises(AssertionError, match=says):
            check_controller("lowering")


def test_a_registry_takes_entry_points_and_keeps_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[halfback.things]\nown = other_things:OTHER\nother = other_things:OTHER\n")
    (tmp_path / "other_things.py").write_text("OTHER = 'other'\n")
    monkeypatch.syspath_prepend(tmp_path)
    found: Registry[str] = Registry("halfback.things", {"own": "mine"})
    assert dict(found) == {"own": "mine", "other": "other"}
    found.add("here", "now")
    found.add("here", "then")
    assert list(found.items()) == [("own", "mine"), ("other", "other"), ("here", "then")]
    with pytest.raises(UserError, match="'own' is halfback's own"):
        found.add("own", "theirs")
    sys.modules.pop("other_things")
