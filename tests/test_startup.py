"""What a run doesn't use, it doesn't import: each of these takes a part of a second, or seconds, at every start."""

import subprocess
import sys
from pathlib import Path

UNUSED = [
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "mlflow",
    "mlxtend",
    "nvflare",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
]
UNUSED += ["tensordict", "tokenizers", "torchrl", "transformers", "wandb"]
CODE = """
import sys
import halfback as hb
came = []
changes = {"model.pretrain.steps": 1, "steps": 1, "beside": ["split_lora"], "progress": False}
hb.train("quickstart", sys.argv[1], on_round=lambda _: came.append("jinja2" in sys.modules), **changes)
assert came[0] is False, "what makes pages came before there was one"
print(*sys.modules)
"""


def test_a_run_on_images_imports_nothing_of_what_texts_need(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "run")]
    loaded = subprocess.run(command, timeout=120, check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert {*UNUSED} & {*loaded} == set()
