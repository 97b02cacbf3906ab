"""The example of docs/add_an_algorithm.md in a package of its own, as somebody would install it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import halfback, refusal

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "add_an_algorithm.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    found = re.search(rf"^( *)```{language}\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[2].replace(f"\n{found[1]}", "\n").removeprefix(found[1])


def _install(folder: Path, source: str) -> None:
    """A package and its entry point, as an installer leaves them."""
    package, info = folder / "my_package", folder / "my_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "sign_sfl.py").write_text(source, encoding="utf-8")
    header, entry = _block("toml").splitlines()
    group = re.fullmatch(r'\[project\.entry-points\."(.+)"\]', header)
    assert group is not None
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{entry.replace(chr(34), '')}\n")


def _halfback(folder: Path, *arguments: str, only: str = "") -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")]))
    # Away from this repository and its data: what the checks need is in the package.
    environment = {key: value for key, value in os.environ.items() if key != "HALFBACK_DATA"} | {"PYTHONPATH": path}
    environment["PYTEST_ADDOPTS"] = f"-k '{only}'"
    command = [sys.executable, "-m", "halfback", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_documented_example_shows_and_passes(tmp_path: Path) -> None:
    _install(tmp_path, _block("python"))
    listed = _halfback(tmp_path, "algorithms").stdout
    assert "sign_sfl          Sign-SFL: first-order split learning whose devices move by the sign" in listed
    assert "algorithm.rate=number   (default 0.0001)" in _halfback(tmp_path, "algorithms", "sign_sfl").stdout
    # The rate is the move of every weight: the default is one for a model that learnt something before.
    said = _halfback(tmp_path, "conformance", "sign_sfl", "algorithm.rate=1e-3")
    assert said.returncode == 0, said.stdout + said.stderr
    lines = said.stdout.splitlines()
    for world in ("images", "texts"):
        assert f"passed  the loss falls [{world}-sign_sfl]" in lines
        assert f"passed  a socket carries the same bits [{world}-sign_sfl]" in lines
        assert f"passed  the ledger holds the bytes that arrived [{world}-sign_sfl]" in lines
        skipped = f"skipped the bytes are those of the closed form [{world}-sign_sfl]: nobody said what its bytes are"
        assert any(line.startswith(skipped) for line in lines)
    assert not any("builds no graph" in line for line in lines), "its clients backpropagate"
    assert re.fullmatch(r"sign_sfl: \d+ passed, 2 skipped", lines[-1])


@pytest.mark.parametrize(
    ("right", "wrong", "failed"),
    [
        pytest.param(
            "slope.sign()",
            "slope.sign() * torch.rand_like(slope)",
            "two runs of a seed are equal and another seed differs",
            id="global-generator",
        ),
        pytest.param(
            "yield from self.needs.agreement.close(client)",
            "with torch.no_grad():\n            yield from self.needs.agreement.close(client)",
            "no mode leaks out of a client [sign_sfl]: AssertionError: gradients are off behind a turn",
            id="no-grad",
        ),
    ],
)
def test_a_broken_one_fails(tmp_path: Path, right: str, wrong: str, failed: str) -> None:
    source = _block("python")
    assert source.count(right) == 1
    _install(tmp_path, source.replace(right, wrong))
    said = _halfback(tmp_path, "conformance", "sign_sfl", "algorithm.rate=1e-3", only="two_runs or mode_leaks")
    assert said.returncode == 1
    assert f"failed  {failed}" in said.stdout
    assert re.search(r"^sign_sfl: .*[12] failed", said.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ho_sfi"], "algorithm 'ho_sfi' is unknown; did you mean ho_sfl"),
        (["hosl", "algorithm.rate=1"], "key 'algorithm.rate' is unknown to hosl"),
        (["hosl", "clients"], "'clients' is not of the form key=value"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    assert refusal(halfback("conformance", *arguments)).startswith(message)
