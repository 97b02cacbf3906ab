"""Rules by name: what there is, and what is refused."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from halfback.controllers import build, controllers, read_options
from halfback.errors import UserError
from halfback.testing import check_controller

LINKS = ("activations_up", "gradient_down")


def test_options_can_be_listed_and_have_defaults() -> None:
    for name, kind in controllers().items():
        options: Any = read_options(name, {})
        defaults = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        assert read_options(name, json.loads(json.dumps(defaults))) == kind()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fixd", {}, r"^controller 'fixd' is unknown; did you mean fixed\?$"),
        ("zzz", {}, r"^controller 'zzz' is unknown; allowed: fixed, bang_bang, ddpg$"),
        (
            "bang_bang",
            {"tolerence": 0},
            r"^key 'controller.tolerence' is unknown to bang_bang; did you mean tolerance\?$",
        ),
        ("fixed", {"threshold": 1.01}, r"^controller.threshold=1.01: a cosine similarity in \[-1, 1\] is allowed$"),
        ("fixed", {"threshold": -1.5}, r"^controller.threshold=-1.5: .*\[-1, 1\]"),
        ("fixed", {"threshold": float("nan")}, r"^controller.threshold=nan: .*\[-1, 1\]"),
        ("fixed", {"threshold": "high"}, r"^controller.threshold='high': .*number"),
        ("fixed", {"per_link": {"gradient_down": 2}}, r"^controller.per_link.gradient_down=2: .*\[-1, 1\]"),
        ("fixed", {"per_link": {"gradient_dwn": 0}}, r"per_link.gradient_dwn: .* did you mean gradient_down\?$"),
        ("fixed", {"per_link": 0.5}, r"^controller.per_link=0.5: "),
        ("bang_bang", {"low": -1.1}, r"^controller.low=-1.1: .*\[-1, 1\]"),
        ("bang_bang", {"high": 1.1}, r"^controller.high=1.1: .*\[-1, 1\]"),
        ("bang_bang", {"low": 0.9, "high": 0.8}, r"^controller.low=0.9: at most controller.high=0.8 is allowed$"),
        ("bang_bang", {"initial": 0.5}, r"^controller.initial=0.5: between controller.low=0.9 and high=1 is allowed$"),
        ("bang_bang", {"step": 0}, r"^controller.step=0: more than 0, at most 2 is allowed$"),
        ("bang_bang", {"tolerance": -0.1}, r"^controller.tolerance=-0.1: 0 or a positive number is allowed$"),
        ("bang_bang", {"tolerance": float("inf")}, r"^controller.tolerance=inf: "),
        ("bang_bang", {"hysteresis": 0.02}, r"^controller.hysteresis=0.02: 0 to 0.01 is allowed$"),
        ("ddpg", {"low": 1.0, "high": 0.9}, r"^controller.low=1: at most controller.high=0.9 is allowed$"),
        ("ddpg", {"loss_weight": -1}, r"^controller.loss_weight=-1: "),
        ("ddpg", {"bytes_weight": float("nan")}, r"^controller.bytes_weight=nan: "),
        ("ddpg", {"noise": -1}, r"^controller.noise=-1: "),
        ("ddpg", {"discount": 1}, r"^controller.discount=1: 0 or more, below 1 is allowed$"),
        ("ddpg", {"warm_up": 0}, r"^controller.warm_up=0: 1 or more are allowed$"),
        ("ddpg", {"noise_rounds": 0}, r"^controller.noise_rounds=0: 1 or more are allowed$"),
        ("ddpg", {"warm_up": 1.5}, r"^controller.warm_up=1.5: .*integer"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, options, LINKS, seed=0)


@pytest.mark.parametrize("name", list(controllers()))
def test_every_rule_keeps_what_controllers_promise(name: str) -> None:
    check_controller(name)


@pytest.mark.parametrize("name", list(controllers()))
def test_a_run_without_links_has_nothing_to_control(name: str) -> None:
    with pytest.raises(UserError, match=f"^controller '{name}': no link of this run has the temporal codec"):
        build(name, {}, (), seed=0)


def test_torchrl_is_asked_of_the_rule_that_needs_it_alone() -> None:
    """In a process of its own, where an import of TorchRL fails as if it were not installed."""
    script = """
import sys
sys.modules["torchrl"] = None
from halfback.controllers import build
build("fixed", {}, ["a"], 0), build("bang_bang", {}, ["a"], 0)
try:
    build("ddpg", {}, ["a"], 0)
except Exception as error:
    print(type(error).__name__, error)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "UserError torchrl is not installed: pip install 'halfback[rl]'\n"
