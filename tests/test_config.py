"""From a recipe to a configuration and back."""

import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from halfback import config
from halfback.algorithms import algorithms
from halfback.config import yaml_reading
from halfback.errors import UserError

RECIPE = """
# A claim.
algorithm: {name: ho_sfl, directions: 5, radius: 1e-3}
task: {name: digits, train_rows: 100}
model: {name: resnet8, cut: 1, pretrain: {task: mnist, steps: 3, lr: 1e-2}}
bottom: {train: full, optimizer: sgd, lr: 1e-3, normalize: true, momentum: .9}
per_algorithm:
  split_lora: {bottom.normalize: false, bottom.optimizer: adamw, algorithm.checkpointing: true, steps: 7}
  zo_sfl: {algorithm.directions: 9}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


HO_SFL = {"directions": 5, "radius": None, "estimator": "forward", "clip_samples": None}
HO_SFL |= {"exact_blocks": 0, "aggregation": "uniform"}


@pytest.mark.parametrize("name", config.recipes())
def test_a_shipped_recipe_is_what_it_says(name: str) -> None:
    """It loads, its algorithm takes its options, what is beside it can run, and it survives being written and read."""
    resolved = config.resolve(name)
    config.build_algorithm(resolved)
    for other in resolved.beside:
        config.build_algorithm(config.from_tree(config.to_tree(resolved), {"algorithm.name": other, "beside": []}))
    assert config.from_tree(yaml.safe_load(config.dump(resolved)), {}) == resolved
    assert len(config.recipes()[name].split()) > 5


@pytest.mark.parametrize("name", config.recipes())
@pytest.mark.parametrize("algorithm", list(algorithms()))
def test_every_recipe_resolves_for_every_algorithm(name: str, algorithm: str) -> None:
    changes = [f"algorithm.name={algorithm}"]
    if algorithms()[algorithm]().needs.backpropagates:
        changes.append("bottom.normalize=false")
    if "u_shape" not in algorithms()[algorithm]().needs.fits:
        changes += ["model.head=null", "codecs.activations_down=[]", "codecs.gradient_up=[]"]
    assert config.resolve(name, changes).algorithm.name == algorithm


def test_a_configuration_that_was_written_is_read(tmp_path: Path, recipe: str) -> None:
    resolved = config.resolve(recipe, ["beside=[frozen_bottom]", "lora.targets=[a, b]", "task.verbaliser=[x, y]"])
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(resolved))
    assert config.load(path) == resolved
    assert yaml.safe_load(path.read_text()) == config.to_tree(resolved)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),  # YAML 1.1 reads these two as text
        ("1E-3", 0.001),
        ("1.0e-3", 0.001),
        (".001", 0.001),
        ("2", 2.0),
        ("1e+2", 100.0),
    ],
)
def test_numbers(recipe: str, text: str, value: float) -> None:
    resolved = config.resolve(recipe, [f"top.lr={text}", f"algorithm.radius={text}"])
    assert resolved.top.lr == value
    assert config.build_algorithm(resolved).radius == value  # type: ignore[attr-defined]


def test_a_shipped_recipe_reads_as_it_did_under_yaml_1_1() -> None:
    for name in config.recipes():
        text = (files("halfback") / "recipes" / f"{name}.yaml").read_text()
        assert config.resolve(name) == config.from_tree(yaml.safe_load(text), {}), name


@pytest.mark.parametrize(
    "word", ["on", "no", "y", "true", "1", "-0.50", "007", "1e3", "1_0", "2024-01-01", "12:30", ".5"]
)
def test_a_plain_word_is_text_where_text_is_due(tmp_path: Path, recipe: str, word: str) -> None:
    """Columns have such names, and classes; also where they come from a run's own file again."""
    here = ["task.text={}", "task={{name: csv, text: {}}}", "per_algorithm.zo_sfl={{task.text: {}}}"]
    said = [setting.format(word) for setting in here]
    assert config.resolve(recipe, said[:1]).task.text == word
    assert config.resolve(recipe, said[1:2]).task.text == word
    assert config.resolve(recipe, [*said[2:], "algorithm.name=split_lora"]).task.text is None
    words = config.resolve(recipe, [f"task.verbaliser=[{word}, 'x']", f"lora.targets=[{word}]"])
    assert (words.task.verbaliser, words.lora.targets) == ((word, "x"), (word,))
    path = tmp_path / "own.yaml"
    path.write_text(Path(recipe).read_text().replace("digits,", f"csv, text: {word}, pair: '{word}',"))
    assert (config.resolve(str(path)).task.text, config.resolve(str(path)).task.pair) == (word, word)
    path.write_text(config.dump(words))
    assert config.load(path) == words
    assert config.from_tree(yaml.safe_load(path.read_text()), {}) == words  # other readers of YAML see the same


def test_a_setting_of_another_algorithm_is_text_where_text_is_due(recipe: str) -> None:
    chosen = config.resolve(recipe, ["per_algorithm={zo_sfl: {task.text: 1, steps: 2}}", "algorithm.name=ho_sfl"])
    other = config.from_tree(config.to_tree(chosen), {"algorithm.name": "zo_sfl"})
    assert (other.task.text, other.steps) == ("1", 2)


@pytest.mark.parametrize(
    "bad", ["{f: [*{b}, *{b}, *{b}, *{b}, *{b}, *{b}, *{b}, *{b}]}", "{<<: [*{b}, *{b}, *{b}, *{b}]}"]
)
def test_aliases_that_multiply_end_at_a_bound(bad: str) -> None:
    chain = ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {bad.replace('{b}', f'a{i - 1}')}" for i in range(1, 40))]
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"^it, line \d+: more than 20,000 values, with what aliases stand for$"):
        yaml_reading.parse("\n".join(chain), "it")
    assert time.monotonic() - begun < 5


def test_aliases_that_nest_end_at_a_bound() -> None:
    deep = [f"a0: &a0 {'[' * 30}{']' * 30}", *(f"a{i}: &a{i} {'[' * 30}*a{i - 1}{']' * 30}" for i in range(1, 100))]
    with pytest.raises(UserError, match=r"^it, line 2: nested deeper than 50 levels$"):
        yaml_reading.parse("\n".join(deep), "it")


def test_merged_keys_are_those_of_yaml() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], z: 5}\n"
    assert yaml_reading.settled(yaml_reading.parse(text, "it"), None) == yaml.safe_load(text)


def test_numbers_in_a_file(recipe: str) -> None:
    resolved = config.resolve(recipe)
    assert resolved.bottom.lr == 0.001
    assert resolved.model.pretrain is not None
    assert resolved.model.pretrain.lr == 0.01
    assert config.build_algorithm(resolved).radius == 0.001  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("steps=12", ("steps",), 12),
        (" steps =12", ("steps",), 12),
        ("steps=1e2", ("steps",), 100),
        ("sinks=[tensorboard]", ("sinks",), ("tensorboard",)),
        ("model.pretrain=null", ("model", "pretrain"), None),
        ("model.name=a=b", ("model", "name"), "a=b"),
        ("task.template={text} It was", ("task", "template"), None),
        ("task.template='{text}: it was'", ("task", "template"), "{text}: it was"),
        ("lora.targets=[q_proj, v_proj]", ("lora", "targets"), ("q_proj", "v_proj")),
        ("bottom={train: full, lr: 0.5}", ("bottom", "lr"), 0.5),
    ],
)
def test_overrides(recipe: str, override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = config.resolve(recipe, [override])
    for key in path:
        found = getattr(found, key)
    assert found == ("{text} It was" if override.startswith("task.template={") else value)


def test_the_last_override_of_a_key_counts(recipe: str) -> None:
    assert config.resolve(recipe, ["steps=1", "steps=2"]).steps == 2


def test_an_override_leaves_the_other_keys_of_its_section(recipe: str) -> None:
    bottom = config.resolve(recipe, ["bottom.lr=0.5"]).bottom
    assert (bottom.lr, bottom.train, bottom.normalize) == (0.5, "full", True)


def test_another_algorithm_takes_its_own_settings(recipe: str) -> None:
    resolved = config.resolve(recipe, ["algorithm.name=split_lora"])
    assert resolved.algorithm.options() == {"checkpointing": True, "aggregation": "uniform"}  # none of ho_sfl's
    assert (resolved.bottom.normalize, resolved.bottom.optimizer, resolved.steps) == (False, "adamw", 7)
    assert resolved.bottom.lr == 0.001


def test_an_override_comes_after_the_settings_of_another_algorithm(recipe: str) -> None:
    resolved = config.resolve(recipe, ["steps=3", "algorithm.name=split_lora", "algorithm.checkpointing=false"])
    assert resolved.steps == 3
    assert resolved.algorithm.options() == {"checkpointing": False, "aggregation": "uniform"}


def test_the_algorithm_of_the_recipe_keeps_its_options(recipe: str) -> None:
    for changes in ([], ["algorithm.name=ho_sfl"]):
        resolved = config.resolve(recipe, changes)
        assert resolved.algorithm.options()["directions"] == 5
        assert resolved.steps == 300


def test_an_algorithm_without_settings_of_its_own(recipe: str) -> None:
    resolved = config.resolve(recipe, ["algorithm.name=frozen_bottom"])
    assert resolved.algorithm.options() == {"aggregation": "uniform"}
    assert resolved.bottom.normalize


def test_settings_of_another_algorithm_survive_a_run_folder(tmp_path: Path, recipe: str) -> None:
    """`beside` reads them from the folder's own file, not from the recipe."""
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(config.resolve(recipe)))
    tree = config.to_tree(config.load(path))
    other = config.from_tree(tree, {"algorithm.name": "zo_sfl"})
    assert other.algorithm.options() == {"directions": 9, "radius": None, "aggregation": "uniform"}
    assert config.load(path) == config.resolve(recipe)  # and the tree was not changed on the way


def test_shared_parts_of_a_yaml_file_do_not_leak(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "algorithm: {name: ho_sfl}\ntask: {name: digits}\nmodel: {name: resnet8, cut: 1}\n"
        "bottom: &part {optimizer: sgd, lr: 0.1}\ntop: *part\n"
    )
    resolved = config.resolve(str(path), ["bottom.lr=0.5"])
    assert (resolved.bottom.lr, resolved.top.lr) == (0.5, 0.1)


def test_defaults_are_said_in_full(recipe: str) -> None:
    """The file in a run's folder names every setting, so that a later default changes nothing."""
    tree = config.to_tree(config.resolve(recipe))
    assert set(tree) == set(config.RunConfig.model_fields)
    assert tree["top"] == config.TopConfig().model_dump(mode="json")


def test_without_a_recipe() -> None:
    settings = ["algorithm.name=zo_sfl", "task.name=digits", "model.name=resnet8", "model.cut=2"]
    assert config.resolve(None, settings).model.cut == 2
    with pytest.raises(UserError, match=r"model\.cut is missing"):
        config.resolve(None, settings[:-1])


@pytest.mark.parametrize("way", [["split_lora"], ["split_lora", "zo_sfl"], ["zo_sfl", "frozen_bottom", "split_lora"]])
def test_the_way_back_restores_what_an_algorithm_takes(way: list[str]) -> None:
    """Runs beside one another must not inherit each other's settings, whichever was chosen first."""
    own = {name: config.resolve("quickstart", [f"algorithm.name={name}"]) for name in ("ho_sfl", *way)}
    assert own["ho_sfl"].algorithm.options() == HO_SFL
    there = config.resolve("quickstart")
    for name in (*way, "ho_sfl"):
        there = config.from_tree(config.to_tree(there), {"algorithm.name": name})
        for part in ("algorithm", "bottom", "top"):
            assert getattr(there, part) == getattr(own[name], part), (name, part)


def test_a_change_of_the_chosen_algorithm_stays_with_it() -> None:
    chosen = config.resolve("quickstart", ["algorithm.name=split_lora", "bottom.lr=0.5"])
    assert chosen.bottom.lr == 0.5
    beside = config.from_tree(config.to_tree(chosen), {"algorithm.name": "ho_sfl"})
    assert (beside.bottom.lr, beside.bottom.normalize, beside.bottom.optimizer) == (1e-3, True, "sgd")
    assert beside.algorithm.options() == HO_SFL


def test_a_setting_without_a_value_in_the_recipe_goes_back_to_its_default() -> None:
    tree = {
        "algorithm": {"name": "ho_sfl"},
        "task": {"name": "digits"},
        "model": {"name": "resnet8", "cut": 1},
        "per_algorithm": {"split_lora": {"top.clip": 2.0, "bottom.momentum": 0.5}},
    }
    there = config.from_tree(tree, {"algorithm.name": "split_lora"})
    assert (there.top.clip, there.bottom.momentum) == (2.0, 0.5)
    back = config.from_tree(config.to_tree(there), {"algorithm.name": "ho_sfl"})
    assert (back.top.clip, back.bottom.momentum) == (None, 0.9)


def test_an_auxiliary_head_is_linear_or_a_number_of_blocks(recipe: str) -> None:
    for value, wanted in (("linear", "linear"), ("2", 2)):
        assert config.resolve(recipe, [f"model.auxiliary={value}"]).model.auxiliary == wanted
    for value, said in (("mlp", "'mlp'"), ("null", "None"), ("true", "True"), ("1.5", "1.5"), ("[1]", r"\[1\]")):
        with pytest.raises(UserError, match=rf"^model\.auxiliary={said}: 'linear' or a number of blocks is allowed$"):
            config.resolve(recipe, [f"model.auxiliary={value}"])
