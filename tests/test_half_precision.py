"""Whole runs over weights of half precision: they go as in float32, and say how their slopes were taken."""

from pathlib import Path

import pytest
from command import digits, halfback

from halfback.telemetry.records import read_records, read_summary

STEPS = ["steps=4", "eval_every=4", "bottom.lr=1e-2", "top.lr=1e-2", "top.optimizer=sgd"]


@pytest.mark.parametrize(
    ("algorithm", "estimator"),
    [("ho_sfl", "forward"), ("zo_sfl", "central"), ("decomfl", "forward"), ("spry", "forward_ad")],
)
def test_a_run_in_half_precision(tmp_path: Path, algorithm: str, estimator: str) -> None:
    for dtype in ("float32", "bfloat16"):
        said = halfback(*digits(tmp_path / dtype, *STEPS, f"model.dtype={dtype}", algorithm=algorithm))
        assert said.status == 0, said.err
    fine, half = (read_records(tmp_path / dtype)[-1].train_loss for dtype in ("float32", "bfloat16"))
    assert half == pytest.approx(fine, rel=2**-9)  # what rounds to one value of bfloat16
    assert read_summary(tmp_path / "float32")["slopes"] == estimator
    assert read_summary(tmp_path / "bfloat16")["slopes"] == f"{estimator}, in float32 over half-precision weights"
    assert "in float32 over half-precision weights" in (tmp_path / "bfloat16" / "report.html").read_text()
