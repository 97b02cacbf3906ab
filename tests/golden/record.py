"""What runs come to, to the bit: `python tests/golden/record.py [rows|recipes]` writes it anew, or both files.

`rows.json` has every row of the conformance table, `recipes.json` six shipped recipes of 20 steps. Recording is only
for a change whose bits are meant to differ: its commit says which, and why.
"""

import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfback import config as configuration
from halfback.engine import checkpoint
from halfback.runs import run
from halfback.runs.folder import CHECKPOINT
from halfback.testing import small
from halfback.testing.table import Row

HERE = Path(__file__).parent
_OF_RECIPES = ["beside=[]", "device=cpu", "steps=20", "eval_every=1000", "checkpoint_every=1000", "memory_every=1000"]
# The model's size and the rows of an evaluation say nothing about bits that fewer don't say.
RECIPES: dict[str, list[str]] = {
    "quickstart": ["model.pretrain.steps=20"],
    "sst2-minilm": ["task.validation_rows=32"],
    "sst2-minilm-deep": ["task.validation_rows=32"],
    "cifar10-resnet": ["task.validation_rows=100"],
    "cifar10-resnet-deep": ["task.validation_rows=100", "sampled_clients=2"],
    "e2e-smollm2-splitcom": ["task.validation_rows=4", "task.generated_rows=0", "batch_size=2"],
}


def machine() -> dict[str, str]:
    """What the bits of a sum depend on: they are compared where all of this is the same."""
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {_model()}".strip(),
    }


def _model() -> str:
    """Family, model and stepping, where the system tells: two that have AVX-512 still sum in orders of their own."""
    try:
        said = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    except (OSError, ValueError):
        return ""
    found = {key.strip(): value.strip() for key, value in said.items()}
    return "-".join(found.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping"))


def of_row(row: Row, model: Path | None = None, sentences: Path | None = None) -> dict[str, Any]:
    """Three rounds of two steps, on digits or with a model on sentences."""
    torch.set_num_threads(1)
    if model is None or sentences is None:
        config = small.images(row.name, **row.changes())
    else:
        config = small.texts(row.name, model, sentences, **row.changes())
    simulation = small.built(config).federation
    losses = small.run(simulation, 3, steps=2)
    tensors, values = simulation.state()
    return _digests(tensors, values["ledger"], losses)


def of_recipe(name: str, folder: Path) -> dict[str, Any]:
    """A shipped recipe, shortened."""
    torch.set_num_threads(1)
    run.train(configuration.resolve(name, [*_OF_RECIPES, *RECIPES[name]]), folder)
    found = checkpoint.load(folder / CHECKPOINT)
    assert found is not None
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    kept = ("train_loss", "validation_loss", "metric")
    return _digests(found[1], found[2]["ledger"], [record[key] for record in records for key in kept])


def _digests(tensors: Mapping[str, Tensor], ledger: Any, losses: list[float]) -> dict[str, Any]:
    parts = {"theta": "bottom.", "top": "top.", "history": "history"}
    by_part = {part: {n: t for n, t in tensors.items() if n.startswith(how)} for part, how in parts.items()}
    return {
        **{part: _digest(found) for part, found in by_part.items()},
        "ledger": hashlib.sha256(json.dumps(ledger, sort_keys=True).encode()).hexdigest()[:16],
        "losses": losses,
        "norms": [sum(float(t.double().square().sum()) for t in found.values()) ** 0.5 for found in by_part.values()],
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16] if tensors else "none"


def _write(name: str, found: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n")


def _rows() -> dict[str, Any]:
    from _pytest.tmpdir import TempPathFactory

    from halfback.testing import texts
    from halfback.testing.table import ROWS

    with tempfile.TemporaryDirectory() as folder:
        factory = TempPathFactory(Path(folder), 3, "all", trace=lambda *_: None, _ispytest=True)
        model, sentences = (fixture._get_wrapped_function()(factory) for fixture in (texts.tiny_bert, texts.sentences))
        found = {f"images-{key}": of_row(row) for key, row in ROWS.items()}
        return found | {
            f"texts-{key}": of_row(row, model, sentences) for key, row in ROWS.items() if row.texts and not row.brief
        }


def _recipes() -> dict[str, Any]:
    found = {}
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = of_recipe(name, Path(folder) / "run")
        print(name, found[name], flush=True)
    return found


if __name__ == "__main__":
    asked = sys.argv[1:] or ["rows", "recipes"]
    if "rows" in asked:
        _write("rows.json", _rows())
    if "recipes" in asked:
        _write("recipes.json", _recipes())
