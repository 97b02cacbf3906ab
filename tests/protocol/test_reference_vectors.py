"""The reference makes of the protocol's vectors what was recorded: a bit that moves is another protocol."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

WRITER = Path(__file__).resolve().parents[2] / "protocol" / "write_vectors.py"
spec = importlib.util.spec_from_file_location("write_vectors", WRITER)
assert spec is not None
assert spec.loader is not None
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)


def compare(made: Any, kept: Any, where: str) -> None:
    """Equal in all but similarities, which are sums of floats in an order that a processor chooses."""
    if where.endswith(".similarity"):
        assert made == pytest.approx(kept, abs=1e-5), where  # float32 sums of a dozen values
    elif isinstance(kept, dict):
        assert made.keys() == kept.keys(), where
        for key, value in kept.items():
            compare(made[key], value, f"{where}.{key}")
    elif isinstance(kept, list) and any(isinstance(each, dict) for each in kept):
        assert len(made) == len(kept), where
        for place, value in enumerate(kept):
            compare(made[place], value, f"{where}.{place}")
    else:
        assert made == kept, where


@pytest.mark.parametrize("name", writer.MAKERS)
def test_the_reference_has_the_recorded_bits(name: str) -> None:
    kept = json.loads((writer.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    compare(json.loads(json.dumps(writer.MAKERS[name]())), kept, name)


def test_every_file_is_one_that_is_written() -> None:
    assert {file.stem for file in writer.FOLDER.iterdir()} == {*writer.MAKERS}
    assert sum(file.stat().st_size for file in writer.FOLDER.iterdir()) < 300_000
