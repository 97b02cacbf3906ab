"""What a site's file decides: its own rows, which never leave it, and in what runs it takes part."""

import json
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.here import at_client, at_server
from halfback.deploy.site import TEMPLATE, SiteConfig, folder_of, read_site, tokens_of
from halfback.errors import UserError
from halfback.runs import run
from halfback.testing import small
from tests.deploy.local import Relays, serve_here

Write = Callable[[str, list[tuple[str, str]]], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def table(name: str, rows: list[tuple[str, str]]) -> str:
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["note,mood", *(f"{text},{label}" for text, label in rows)]) + "\n")
        return str(path)

    return table


def site(text: str, tmp_path: Path) -> SiteConfig:
    path = tmp_path / "halfback.yaml"
    path.write_text(text)
    return read_site(path)


def data(model: Path | None = None, **columns: str) -> SiteConfig:
    """A site with these rows; `model`: where it has the model, which a recipe can't say."""
    own = {"name": "csv", "text": "note", "label": "mood"} | columns
    return SiteConfig.model_validate({"data": own, "model": None if model is None else str(model)})


GOOD = [(f"the film is great {'very ' * n}", "good") for n in range(12)]
BAD = [(f"the plot is dull {'very ' * n}", "bad") for n in range(7)]


def test_sites_with_rows_of_their_own_train_on_all_of_them_and_nothing_of_them_is_on_the_server(
    tmp_path: Path, write: Write, tiny_bert: Path, sentences: Path
) -> None:
    """One client has one class alone, and none is told what the others' rows are."""
    recipe = small.texts("ho_sfl", tiny_bert, sentences, clients=2, sampled_clients=2, steps=6, model__head=0)
    sites = {0: data(tiny_bert, train=write("a", GOOD)), 1: data(tiny_bert, train=write("b", BAD[:3] + GOOD[:6]))}
    server = data(tiny_bert, validation=write("held", BAD + GOOD))
    relays = Relays(tmp_path, [0, 1], sites)
    try:
        assert serve_here(tmp_path, configuration.to_tree(recipe), relays, server) == {"how": "finished", "why": ""}
    finally:
        relays.close()
    out = tmp_path / "job" / "run"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["forward_passes"] > 0
    assert "labels" not in summary["bytes_by_kind"]["up"]["Activations"]
    for path in out.rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert b"great very very" not in held
            assert str(tmp_path / "a.csv").encode() not in held
            assert str(tmp_path / "b.csv").encode() not in held
    fetched = run.load(out)  # like a run of one process
    assert fetched.evaluate().loss == fetched.records[-1].validation_loss


def test_a_label_that_the_server_does_not_know_is_named(
    tmp_path: Path, write: Write, tiny_bert: Path, sentences: Path
) -> None:
    recipe = small.texts(
        "ho_sfl", tiny_bert, sentences, clients=1, sampled_clients=1, steps=2, deployment__patience=30.0
    )
    relays = Relays(tmp_path, [0], {0: data(tiny_bert, train=write("a", [*GOOD, ("odd", "so-so")]))})
    try:
        server = data(tiny_bert, validation=write("held", BAD + GOOD))
        ended = serve_here(tmp_path, configuration.to_tree(recipe), relays, server)
    finally:
        relays.close()
    assert ended["how"] == "failed"
    assert "client 0: label 'so-so' in line 14" in ended["why"]


def gateway(more: str = "trial: false", seats: str = "4") -> str:
    """The file of a site that is a gateway."""
    return (
        f"{{runtime: device, package: p, devices: {{listen: 'a:1', certificate: c, key: k, seats: {seats}}}, {more}}}"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datta: {}", "key 'datta' is unknown; did you mean data?"),
        ("data: {train: [3]}", "data.train=[3]: Input should be a valid string"),
        ("keep_labels: yes", "keep_labels='yes': Input should be a valid boolean"),
        ("a: &a [*a]", ", line 1: *a refers to what it stands in"),
        ("model: a\nmodel: b", ", line 2: key 'model' is there twice"),
        ("model: !!python/name:os.system", "is not allowed"),
        ("data: " + "[" * 10_000, "nested deeper than 50 levels"),
        ("device: gpu", "device='gpu': String should match pattern"),
        ("keep_labels: maybe", "keep_labels='maybe': Input should be a valid boolean"),
        ("data: {train: rows.csv}", "data.name is missing"),
        ("runtime: onnx", "runtime='onnx': Input should be 'torch' or 'device'"),
        ("package: /srv/package", "package: it is for runtime: device"),
        ("interpreter: python3", "interpreter: it is for runtime: device"),
        ("runtime: device", "runtime: device needs package, the folder that `halfback package` made"),
        ("{runtime: device, package: p}", "runtime: device needs data: a device reads rows of its own alone"),
        ("{runtime: device, package: p, data: {name: sst2}}", "data.name=sst2: a device reads csv or images"),
        ("{runtime: device, package: p, data: {name: csv}, model: m}", "model: with runtime: device the package is"),
        ("{runtime: device, package: p, data: {name: csv}, device: cuda}", "device: cuda: with runtime: device it is"),
        ("devices: {listen: a:1, certificate: c, key: k}", "devices: it is for runtime: device"),
        (gateway("data: {name: csv}"), "data: with devices it is each device's own"),
        (gateway("interpreter: python3"), "interpreter: with devices it is each device's own"),
        (gateway("device: cpu"), "device: with devices it is each device's own"),
        (gateway().replace("package: p, ", ""), "runtime: device needs package"),
        (gateway(seats="0"), "devices.seats=0: Input should be greater than or equal to 1"),
        (gateway(seats="1000000"), "devices.seats=1000000: Input should be less than or equal to 10000"),
        (gateway(seats="4, port: 1"), "key 'devices.port' is unknown; allowed: listen, certificate, key, seats"),
        (gateway().replace("key: k, ", ""), "devices.key is missing"),
        (gateway(seats="4, metrics: 0"), "devices.metrics=0: Input should be greater than or equal to 1"),
        ("trial: 1", "trial=1: Input should be a valid boolean"),
        ("{", "is no YAML"),
        ("[]", "Input should be a valid dictionary"),
    ],
)
def test_a_wrong_site_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^site file ") as error:
        site(text, tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_site_keeps_hides_no_package(tmp_path: Path) -> None:
    """FLARE's processes run beside it, and Python looks for packages where it runs before it asks an installed one."""
    folder_of(SiteConfig(), tmp_path / "local").mkdir()
    assert PathFinder.find_spec("halfback", [str(tmp_path)]) is None


def test_a_gateway_keeps_its_tokens_in_its_folder_or_where_its_file_says(tmp_path: Path) -> None:
    own, elsewhere = site(gateway(), tmp_path), site(gateway(seats="4, tokens: /srv/tokens.json"), tmp_path)
    assert tokens_of(own, Path("kit/local")) == Path("kit/halfback-site/tokens.json")
    assert tokens_of(elsewhere, Path("kit/local")) == Path("/srv/tokens.json")
    with pytest.raises(UserError, match="there is no `devices` in it, so nothing has a token"):
        tokens_of(SiteConfig(), Path("kit/local"))


def test_a_missing_site_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"halfback.yaml can't be read: No such file or directory; see docs/deploy.md"):
        read_site(tmp_path / "halfback.yaml")


def test_the_template_is_a_site_file_and_so_is_what_it_shows(tmp_path: Path) -> None:
    assert site(TEMPLATE, tmp_path) == SiteConfig()
    shown = "\n".join(line.removeprefix("# ") for line in TEMPLATE.splitlines()[1:])
    assert site(shown, tmp_path).folder == "/path/to/keep"
    both = shown.replace("runtime: torch", "runtime: device\npackage: p")
    as_gateway = "\n".join(line.removeprefix("# ") for line in both.splitlines() if not line.startswith("model"))
    rows = as_gateway.index("data:"), as_gateway.index("runtime:")
    seats = site(as_gateway[: rows[0]] + as_gateway[rows[1] :], tmp_path).devices
    assert seats is not None
    assert seats.seats == 100


def recipe(**changes: Any) -> RunConfig:
    return small.images("ho_sfl", **changes)


def test_a_site_that_keeps_its_labels_takes_no_part_where_they_travel() -> None:
    keeps = SiteConfig(keep_labels=True)
    with pytest.raises(UserError, match=r"keeps its labels .*ho_sfl with model.head=null.*; use model.head=0"):
        at_client(recipe(), keeps)
    assert at_client(recipe(model__head=0), keeps).model.head == 0
    assert at_client(small.images("fedavg"), keeps).algorithm.name == "fedavg"
    with pytest.raises(UserError, match="this site keeps its labels"):
        at_client(small.images("cse_fsl"), keeps)


def test_a_client_holds_no_rows_back_and_a_server_needs_none_to_train_on() -> None:
    theirs = at_client(recipe(task__holdout=0.2), data(train="rows.csv"))
    assert (theirs.task.train, theirs.task.validation, theirs.task.holdout) == ("rows.csv", "rows.csv", 0.0)
    assert theirs.task.train_rows is None
    servers = at_server(recipe(), data(validation="held.csv"))
    assert (servers.task.train, servers.task.validation) == ("held.csv", "held.csv")


def test_a_site_may_have_the_model_elsewhere() -> None:
    moved = at_client(recipe(), SiteConfig(model="/srv/model", device="cpu"))
    assert (moved.model.name, moved.device) == ("/srv/model", "cpu")
    assert at_client(recipe(), SiteConfig()) == recipe()
