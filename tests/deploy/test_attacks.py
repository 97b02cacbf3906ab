"""What a job may bring: nothing that loosens what a site's file says, and no path. Each of these succeeded once."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.data.options import TaskOptions
from halfback.deploy.folder import copy_run
from halfback.deploy.here import at_client, at_server
from halfback.deploy.order import opened, sealed
from halfback.deploy.site import TRIAL, SiteConfig, SiteData, read_site
from halfback.deploy.worker import Worker
from halfback.engine.remote.frames import Prepare, Refused, frame, read_reply
from halfback.errors import UserError
from halfback.runs import run
from halfback.runs.locks import alone
from halfback.testing import small
from tests.deploy.local import Relays, serve_here

ROWS = "note,mood,name\n" + "".join(f"the film is {word},{word},ann\n" for word in ("great", "dull") * 8)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


def keeping(rows: Path, model: Path | None = None, **columns: str) -> SiteConfig:
    """A site that keeps its labels, which are the column `mood`."""
    own = {"name": "csv", "train": str(rows), "text": "note", "label": "mood"} | columns
    return SiteConfig.model_validate(
        {"data": own, "keep_labels": True, "model": "resnet8" if model is None else str(model)}
    )


def u_shape(model: object = "resnet8", algorithm: str = "ho_sfl", **task: Any) -> RunConfig:
    """A recipe in which labels stay, with a task that a server chose."""
    named = {"name": "csv", "train": "rows.csv"} | task
    tree = {"algorithm": {"name": algorithm}, "task": named, "model": {"name": str(model), "cut": 1, "head": 0}}
    small_run = {"clients": 1, "sampled_clients": 1, "batch_size": 4, "steps": 2, "device": "cpu"}
    return configuration.from_tree(tree | small_run, {})


# 1: a trial is what the site's own start says


class Job:
    """A job's client component as FLARE makes it, in the workspace of a site with this file."""

    def __init__(self, place: Path, file: str) -> None:
        self.local = place / "local"
        self.local.mkdir()
        (self.local / "halfback.yaml").write_text(file)

    def start(self, arguments: dict[str, Any], caller: str = "server") -> Any:
        from nvflare.collab.api.context import set_call_context
        from nvflare.fuel.utils.class_utils import instantiate_class

        workspace = SimpleNamespace(get_site_config_dir=lambda: str(self.local))
        component = instantiate_class("halfback.deploy.client_job.Site", arguments)
        set_call_context(SimpleNamespace(workspace=workspace, caller=caller))  # type: ignore[arg-type]
        component.start()
        return component

    def close(self) -> None:
        from nvflare.collab.api.context import set_call_context

        set_call_context(None)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[[str], Job]]:
    pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
    made: list[Job] = []

    def make(file: str) -> Job:
        made.append(Job(tmp_path, file))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_no_argument_of_a_job_reaches_a_clients_component(job: Callable[[str], Job]) -> None:
    keeps = job("keep_labels: true\n")
    with pytest.raises(Exception, match="trial"):
        keeps.start({"trial": True}).stop()
    for arguments in ({"site": {}}, {"local": "/"}, {"keep_labels": False}):
        with pytest.raises(Exception, match=next(iter(arguments))):
            keeps.start(arguments).stop()


def test_the_job_that_we_write_says_nothing_to_a_client(tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
    from halfback.deploy.job import write_job

    files = list((write_job(tmp_path, "ours", small.images("ho_sfl"))).rglob("*.json"))
    assert len(files) == 3
    client = json.loads(next(file for file in files if file.name == "config_fed_client.json").read_text())
    assert client["components"] == [{"id": "_client", "path": "halfback.deploy.client_job.Site", "args": {}}]
    assert not any("trial" in file.read_text() for file in files)


def test_another_client_of_the_job_can_not_ask_a_site(job: Callable[[str], Job]) -> None:
    """FLARE lets every site of a job call what is published on every other."""
    site = job("").start({}, caller="site-2")
    try:
        header, body, why = site.exchange(frame(Prepare.model_construct()).header, b"", 1.0, 0, [0, 0])
        assert site.present() == [1, [], {}]
    finally:
        site.stop()
    assert (header, body) == ("", b"")
    assert why == "questions come from the server, not from site-2"


def test_what_deploy_writes_for_sites_that_it_makes_is_a_trial_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "halfback.yaml").write_text(TRIAL)
    assert read_site(tmp_path / "halfback.yaml") == SiteConfig(trial=True)
    assert SiteConfig().trial is False


# 2: the name of a run, and what is handed out of its folder


def names(keys: Path) -> list[object]:
    return [str(keys), f"../../../{keys.name}", "a/b", "..", ".", "", "a\n", "é", "x" * 65, 5, None, ["a"], {"a": 1}]


@pytest.mark.parametrize("number", range(13))
def test_a_name_that_is_none_makes_the_server_write_and_read_nothing(tmp_path: Path, number: int) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "server.key").write_text("a private key")
    name = names(keys)[number]
    relays = Relays(tmp_path, [])
    ended = serve_here(tmp_path, configuration.to_tree(small.images("ho_sfl")), relays, name=name)
    assert ended["how"] == "failed"
    assert "up to 64 letters, digits, dots, dashes and underscores are allowed" in ended["why"]
    assert "\n" not in ended["why"]
    assert [path.name for path in (tmp_path / "job" / "run").iterdir()] == ["ended.json"]
    assert [path.name for path in keys.iterdir()] == ["server.key"]
    assert not (tmp_path / "server").exists()


def test_a_run_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "config.yaml").write_text("a secret")
    (tmp_path / "server" / "runs").mkdir(parents=True)
    (tmp_path / "server" / "runs" / "linked").symlink_to(tmp_path / "keys")
    tree = configuration.to_tree(small.images("ho_sfl"))
    ended = serve_here(tmp_path, tree, Relays(tmp_path, []), name="linked")
    assert ended["how"] == "failed"
    assert "is a link to elsewhere" in ended["why"]
    assert [path.name for path in (tmp_path / "job" / "run").iterdir()] == ["ended.json"]


def test_nothing_of_the_servers_environment_goes_home_with_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE puts it in place of {$NAME} in any text of a job, and something else in place of a template's {text}."""
    pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
    from nvflare.fuel.utils.json_scanner import JsonScanner
    from nvflare.fuel.utils.wfconf import resolve_var_refs

    from halfback.deploy.job import write_job

    monkeypatch.setenv("SECRET", "c2VjcmV0")
    written = write_job(tmp_path, "ours", u_shape(template="{text}", text="{$SECRET}"))
    tree = json.loads((written / "app" / "config" / "config_fed_server.json").read_text())
    resolve_var_refs(JsonScanner(tree), {})
    name, settings = opened(tree["components"][0]["args"]["order"])
    assert (name, settings["task"]["template"], settings["task"]["text"]) == ("ours", "{text}", "{$SECRET}")
    for order in (
        "{$SECRET}",
        sealed("ours", {}) + "{$SECRET}",
        sealed("ours", {})[:70] + "{$SECRET}",
        {"a": 1},
        5,
        ".",
    ):
        brought = {"order": order}
        resolve_var_refs(JsonScanner(brought), {})
        assert opened(brought["order"]) == (None, None)


def test_a_run_is_not_handed_to_whoever_gives_its_name_to_another(tmp_path: Path) -> None:
    theirs = tmp_path / "server" / "runs" / "theirs"
    theirs.mkdir(parents=True)
    (theirs / "config.yaml").write_text(configuration.dump(small.images("ho_sfl", steps=1)))
    (theirs / "records.jsonl").write_text("")
    tree = configuration.to_tree(small.images("ho_sfl", steps=2))
    ended = serve_here(tmp_path, tree, Relays(tmp_path, []), name="theirs")
    assert ended["how"] == "failed"
    assert "holds another run: steps was 1" in ended["why"]
    assert [path.name for path in (tmp_path / "job" / "run").iterdir()] == ["ended.json"]
    assert configuration.load(theirs / "config.yaml").steps == 1


@pytest.mark.parametrize("tree", [None, [], "config", 5])
def test_a_config_that_is_none_is_one_line(tmp_path: Path, tree: Any) -> None:
    ended = serve_here(tmp_path, tree, Relays(tmp_path, []))
    assert (ended["how"], "the job holds no settings of a run" in ended["why"]) == ("failed", True)


def nested(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        ("model", {"name": "resnet8", "cut": nested(600)}, "nested deeper than 50 levels"),
        ("model", {"name": "resnet8", "cut": [1] * 100_000}, "more than 20,000 values"),
        ("codecs", {"activations_up": [{"name": nested(300)}]}, "nested deeper than 50 levels"),
        ("codecs", {"activations_up": [{"name": "temporal", "cap_mb": 1e308}]}, "cap_mb=1e+308: a positive number"),
        ("controller", {"name": "ddpg", "seed": nested(300)}, "nested deeper than 50 levels"),
        ("controller", {"name": "ddpg", "a\n\x1b[2J": 1}, "key 'controller.a  [2J' is unknown"),
        ("per_algorithm", {"ho_sfl": {"codecs": {"\ud800": 1}}}, "has a character that no text may have"),
        ("algorithm", {"name": "ho_sfl", "a\n\x1b[2J": 1}, "key 'algorithm.a  [2J' is unknown"),
        ("algorithm", {"name": "ho_sfl", "radius": 10**400}, "a number is out of range"),
        ("algorithm", {"name": "mezo"}, "algorithm.name=mezo runs on one machine"),
        ("algorithm", {"name": "centralised"}, "algorithm.name=centralised runs on one machine"),
    ],
)
def test_settings_that_no_run_could_have_are_one_line(tmp_path: Path, section: str, settings: Any, said: str) -> None:
    """A job is JSON that anyone may have written, not a recipe that the command line has read."""
    tree = configuration.to_tree(small.images("ho_sfl", deployment__patience=0.05)) | {section: settings}
    ended = serve_here(tmp_path, opened(sealed("run", tree))[1], Relays(tmp_path, []))
    assert ended["how"] == "failed"
    assert said in ended["why"]
    assert ended["why"].isprintable()
    assert len(ended["why"]) < 2000


def test_a_job_takes_up_a_run_once_the_process_of_the_last_one_has_left_its_folder(tmp_path: Path) -> None:
    """FLARE may call a job over while its process is still at work."""
    out = tmp_path / "server" / "runs" / "run"
    out.mkdir(parents=True)
    held = threading.Event()

    def earlier() -> None:
        with alone(out):
            held.set()
            time.sleep(1.0)

    thread = threading.Thread(target=earlier)
    thread.start()
    held.wait()
    tree = configuration.to_tree(small.images("ho_sfl", deployment__patience=0.05))
    ended = serve_here(tmp_path, tree, Relays(tmp_path, []))
    thread.join()
    assert "not connected" in ended["why"]


def test_all_that_a_run_is_made_of_is_handed_out_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    config = small.images("ho_sfl", steps=2, sinks=["tensorboard"], model__pretrain={"task": "mnist", "steps": 1})
    run.train(config, tmp_path / "out")
    made = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(made) >= 7
    for name in ("server.key", "lock", "token", "checkpoint/server.key", "checkpoint/round-00000002/server.key"):
        (tmp_path / "out" / name).write_text("a private key")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "values.json").write_text("a secret")
    (tmp_path / "out" / "checkpoint" / "round-00000009").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "events.jsonl").symlink_to(tmp_path / "elsewhere" / "values.json")
    copy_run(tmp_path / "out", tmp_path / "copy")
    assert {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*") if path.is_file()} == made


# 3: what a recipe names of a site


def test_whatever_a_recipe_says_of_rows_a_sites_own_are_read_as_the_site_says(rows: Path) -> None:
    """Every option of a task that there is, and that there will be, but those that say how a row is read."""
    own = keeping(rows)
    kept = {"objective", "template", "verbaliser", "max_length", "image_size", "beams", "max_new_tokens"}
    calm = at_client(u_shape(), own).task
    assert (calm.train, calm.validation, calm.text, calm.pair, calm.label) == (
        str(rows),
        str(rows),
        "note",
        None,
        "mood",
    )
    hostile: dict[str, Any] = {
        "name": "hub",
        "holdout": 0.5,
        "train_rows": 1,
        "validation_rows": 1,
        "generated_rows": 1,
    }
    for field in dataclasses.fields(TaskOptions):
        if field.name in kept | {"pair"}:
            continue
        value = hostile.get(field.name, True if field.default is False else "mood")
        theirs = dataclasses.replace(calm, **{field.name: value})
        assert at_client(u_shape().model_copy(update={"task": theirs}), own).task == calm, field.name
    assert set(SiteData.model_fields) <= {field.name for field in dataclasses.fields(TaskOptions)}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"pair": "mood"}, "the run needs task.pair, and the site's file names no data.pair"),
        ({"pair": "name"}, "names no data.pair"),
        ({"objective": "generation", "target": "name"}, "task.objective=generation"),
        ({"objective": "generation", "target": "mood"}, "task.objective=generation"),
    ],
)
def test_a_column_that_the_sites_file_does_not_name_is_refused(rows: Path, task: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        at_client(u_shape(**task), keeping(rows))
    assert said in str(error.value)


def test_what_a_run_needs_must_be_named_also_where_labels_are_sent(rows: Path) -> None:
    def own(**columns: str) -> SiteConfig:
        return SiteConfig.model_validate({"data": {"name": "csv"} | columns, "model": "/srv/model"})

    for columns, missing in (
        ({"text": "note", "label": "mood"}, "train"),
        ({"train": "rows.csv", "label": "mood"}, "text"),
        ({"train": "rows.csv", "text": "note"}, "label"),
    ):
        with pytest.raises(UserError, match=f"names no data.{missing}"):
            at_client(u_shape(), own(**columns))
    with pytest.raises(UserError, match=r"names no data\.target"):
        at_client(u_shape(objective="generation", target="mood"), own(train="rows.csv", text="note", label="mood"))
    with pytest.raises(UserError, match=r"names no data\.validation"):
        at_server(u_shape(), own(text="note", label="mood"))
    with pytest.raises(UserError, match=r"names no data\.pair"):
        at_server(u_shape(pair="mood"), own(validation="rows.csv", text="note", label="mood"))


@pytest.mark.parametrize("column", ["text", "pair", "target"])
def test_where_labels_are_kept_none_is_fed_to_the_model_under_another_name(rows: Path, column: str) -> None:
    with pytest.raises(UserError, match=rf"has their column as data\.{column} too"):
        at_client(u_shape(), keeping(rows, **{column: "mood"}))
    with pytest.raises(UserError, match=rf"has their column as data\.{column} too"):
        at_client(u_shape(), keeping(rows, **{column: " mood "}))


def test_where_labels_are_kept_no_target_is_what_the_model_reads_and_sends(rows: Path) -> None:
    own = keeping(rows, target="name")
    with pytest.raises(UserError, match="the model reads the targets, and split_lora sends what it makes of them"):
        at_client(u_shape(algorithm="split_lora", objective="generation"), own)
    whole = small.images("fedavg").model_copy(update={"task": TaskOptions("csv", train="x", objective="generation")})
    assert at_client(whole, own).task.target == "name"  # all of the model is on the device, and no activation is sent
    assert at_client(u_shape(objective="causal_lm", text="mood"), own).task.text == "note"


def test_where_labels_are_kept_even_in_a_trial_the_sites_file_says_which_they_are(rows: Path) -> None:
    own = SiteConfig(trial=True, keep_labels=True)
    with pytest.raises(UserError, match="its file's `data` must say which they are"):
        at_client(u_shape(train=str(rows), text="mood", label="note"), own)
    assert at_client(small.images("ho_sfl", model__head=0), own).task.name == "digits"


PREPARED = {"run": "0" * 16, "client": 0, "weights": "0"}


def refusal(site: SiteConfig, config: RunConfig, place: Path, classes: tuple[str, ...] = ("dull", "great")) -> str:
    """Why a site's worker takes no part in a run; empty if it does."""
    order = Prepare.model_validate(PREPARED | {"config": configuration.to_tree(config), "label_names": classes})
    reply = read_reply(Worker(site, place).reply(frame(order)).header)
    return reply.error if isinstance(reply, Refused) else ""


@pytest.mark.parametrize("algorithm", ["mezo", "centralised"])
def test_a_site_trains_nothing_that_no_server_hears_of(tmp_path: Path, algorithm: str) -> None:
    assert "runs on one machine" in refusal(SiteConfig(), small.images(algorithm), tmp_path)


def test_a_worker_reads_no_column_that_the_server_chose(tmp_path: Path, rows: Path, tiny_bert: Path) -> None:
    own = keeping(rows, tiny_bert)
    assert refusal(own, u_shape(), tmp_path) == ""
    assert refusal(own, u_shape(text="mood"), tmp_path) == ""  # it trains on its notes all the same
    assert "names no data.pair" in refusal(own, u_shape(pair="mood"), tmp_path)
    for template, field in (("{text} {mood}", "mood"), ("{text} {pair}", "pair"), ("{text.__class__} {text}", "text")):
        assert f"names {{{field}" in refusal(own, u_shape(template=template), tmp_path), template


def test_what_is_wrong_with_a_row_stays_on_a_site_that_keeps_its_labels(
    tmp_path: Path, rows: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server may leave classes out to be told where they are."""
    open_site = SiteConfig.model_validate(keeping(rows, tiny_bert).model_dump() | {"keep_labels": False})
    assert "label 'great' in " in refusal(open_site, u_shape(), tmp_path, ("dull", "x"))
    caplog.clear()
    said = refusal(keeping(rows, tiny_bert), u_shape(), tmp_path, ("dull", "x"))
    assert said == "what is wrong may quote a row or a label of this site; its own log says it"
    assert "label 'great' in " in caplog.text


def test_no_text_of_a_site_is_quoted_to_the_server(tmp_path: Path, rows: Path, tiny_bert: Path) -> None:
    """Which texts have no tokens is for a server to choose, by its tokenizer."""
    rows.write_text(ROWS + "\u200b\u00ad,dull,ann\n" + "\x01secret\x01,dull,ann\n")
    tokenizer = json.loads((tiny_bert / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": ".*secret.*"}, "content": ""}
    tokenizer["post_processor"] = None
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_bert.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    own = SiteConfig.model_validate(keeping(rows, model).model_dump() | {"keep_labels": False})
    said = refusal(own, u_shape(), tmp_path)
    assert "its own log says it" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "held",
    ["ann is ill,sad\nbob is well,glad\n", "ann is ill,ann is ill\nx,y\n"],
    ids=["no header", "no header and a name twice"],
)
def test_the_first_row_of_a_file_without_a_header_is_not_quoted_to_anyone(
    tmp_path: Path, tiny_bert: Path, held: str
) -> None:
    (tmp_path / "rows.csv").write_text(held)
    own = keeping(tmp_path / "rows.csv", tiny_bert, validation=str(tmp_path / "rows.csv"))
    own = own.model_copy(update={"keep_labels": False})
    said = [
        refusal(own, u_shape(), tmp_path),
        serve_here(tmp_path, configuration.to_tree(u_shape()), Relays(tmp_path, []), own)["why"],
    ]
    for why in said:
        assert "its own log says it" in why
        assert "ann" not in why


@pytest.mark.parametrize("at", [at_client, at_server])
def test_a_recipe_names_no_rows_of_a_site(at: Callable[[RunConfig, SiteConfig], RunConfig], rows: Path) -> None:
    for task in ({}, {"name": "images", "train": "/srv"}, {"name": "hub", "train": "owner/name"}):
        with pytest.raises(UserError, match="a recipe may not name rows of this site"):
            at(u_shape(**task), SiteConfig())
        assert at(u_shape(**task), SiteConfig(trial=True)) == u_shape(**task)
    digits = small.images("ho_sfl")
    assert at(digits, SiteConfig()) == digits  # a data set that everybody has


@pytest.mark.parametrize("at", [at_client, at_server])
def test_a_recipe_names_no_folder_of_a_site_as_a_model(
    at: Callable[[RunConfig, SiteConfig], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("local", "owner/name", "resnet8"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "resnet20.safetensors").write_text("")
    paths = ["/srv/model", "./local", "../up", "~/model", "a/b/c", "a/..", "$HALFBACK_DATA/x", "http://host/x", "a\\b"]
    paths.append("x" * 5000)
    for name in [*paths, "local", "owner/name", "resnet8", "resnet20.safetensors", ""]:
        config = small.images("ho_sfl", model__name=name)
        with pytest.raises(UserError, match="a recipe may not name a file or folder of this site"):
            at(config, SiteConfig())
        assert at(config, SiteConfig(model="/srv/theirs")).model.name == "/srv/theirs"
        assert at(config, SiteConfig(trial=True)) == config
    for name in ("resnet20", "smollm2-135m-instruct", "facebook/opt-125m", "gpt2"):
        assert at(small.images("ho_sfl", model__name=name), SiteConfig()).model.name == name
