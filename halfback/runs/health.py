"""What this machine has for halfback, what is not installed, and whether what is there works."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

from halfback.assembly.given import Given
from halfback.config.values import resolve_values
from halfback.data.own import Data
from halfback.data.sources import data_folder
from halfback.engine import checkpoint
from halfback.runs import execution
from halfback.runs.folder import CHECKPOINT
from halfback.runs.opening import Caller
from halfback.runs.told import RunState
from halfback.telemetry.records import read_records
from halfback.zeroth import native

EXTRAS = {
    "quickstart": "the data of `halfback train quickstart`",
    "transformers": "models of Transformers, adapters (LoRA, (IA)³)",
    "hub": "data sets of the Hugging Face hub",
    "metrics": "`evaluate`, and the scores of written texts",
    "plan": "`plan`",
    "minilm": "the model of the recipe sst2-minilm",
    "gguf": "models in the GGUF format",
    "package": "`package`, ONNX files, weights in eight bits",
    "nvflare": "`deploy`, and gateways for devices",
    "rl": "the controller ddpg",
    "optimizers": "the optimiser adamw8bit",
    "secure": "secure sums (secure.sum)",
    "private": "the account of noise (privacy)",
    "tensorboard": "the sink tensorboard",
    "wandb": "the sink wandb",
    "mlflow": "the sink mlflow",
}
"""What each extra is for; those of developers are left out."""

_STEPS = 12


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    Attributes:
        part: "machine", "extras" or "self-test".
        name: of what.
        state: "ok", "missing" of what is optional, "wrong".
        says: in words; what installs it, where it is missing.
    """

    part: Literal["machine", "extras", "self-test"]
    name: str
    state: Literal["ok", "missing", "wrong"]
    says: str


def found_here() -> Iterator[Finding]:
    """What there is, line by line; the self-test, which takes seconds, comes last."""
    yield from _machine()
    yield from _extras()
    with tempfile.TemporaryDirectory(prefix="halfback-doctor-") as folder:
        yield from _self_test(Path(folder))


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "halfback", "ok", version("halfback"))
    yield Finding("machine", "Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    size = "" if memory is None else f", {memory / 2**30:.0f} GiB of memory"
    yield Finding("machine", "processor", "ok", f"{os.cpu_count()} cores{size}")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    yield Finding("machine", "PyTorch", "ok", f"{torch.__version__}, {cuda}")
    if native.serves(torch.device("cpu")):
        yield Finding("machine", "kernel", "ok", "compiled: directions cost no memory and little time")
    else:
        yield Finding("machine", "kernel", "missing", "not compiled, slower: install again where a C compiler is")
    yield Finding("machine", "disk", "ok", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free in the current folder")
    named = os.environ.get("HALFBACK_DATA")
    if named is not None and not Path(named).is_dir():
        yield Finding("machine", "data", "wrong", f"HALFBACK_DATA={named} is no folder")
    else:
        elsewhere = "in ../shared/data" if data_folder(".") else "from the hub, with the extra hub"
        place = f"in {named}" if named else elsewhere
        yield Finding("machine", "data", "ok", f"named data sets are taken {place}")


def _extras() -> Iterator[Finding]:
    for name, what in EXTRAS.items():
        missing = sorted(_missing(name))
        if missing:
            command = f"pip install 'halfback[{name}]'"
            yield Finding("extras", name, "missing", f"{what}: {command}   ({', '.join(missing)})")
        else:
            yield Finding("extras", name, "ok", what)
    try:
        yield Finding("extras", "halfback-device", "ok", f"devices without PyTorch: {version('halfback-device')}")
    except PackageNotFoundError:
        yield Finding("extras", "halfback-device", "missing", "devices without PyTorch: pip install ./device")


def _missing(extra: str) -> set[str]:
    """The packages of an extra that are not installed, or too old."""
    missing = set()
    for line in distribution("halfback").requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or not wanted.marker.evaluate({"extra": extra}):
            continue
        if wanted.marker.evaluate({"extra": ""}):
            continue  # of every installation
        if wanted.name == "halfback":
            missing |= {name for other in wanted.extras for name in _missing(other)}
            continue
        try:
            if not wanted.specifier.contains(version(wanted.name), prereleases=True):
                missing.add(f"{wanted.name}{wanted.specifier}")
        except PackageNotFoundError:
            missing.add(wanted.name)
    return missing


def _self_test(folder: Path) -> Iterator[Finding]:
    """A run that learns, and one that is stopped in its middle and goes on to the same bits."""
    began = time.perf_counter()
    whole = folder / "whole"
    execution.begin(_CONFIG, whole, Caller(given=_given()))
    losses = [record.validation_loss or 0.0 for record in read_records(whole)]
    taken = f"{_STEPS} steps of HO-SFL in {time.perf_counter() - began:.1f} s"
    learned = losses[-1] < losses[0]
    says = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {taken}"
    yield Finding("self-test", "a run learns", "ok" if learned else "wrong", says)

    stopped = folder / "stopped"
    try:
        execution.begin(_CONFIG, stopped, Caller(on_round=_stop_in_the_middle, given=_given()))
    except _Stop:
        execution.resume(stopped, Caller(given=_given()))
    ours, theirs = _tensors(whole), _tensors(stopped)
    same = bool(ours) and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    says = f"stopped at step {_STEPS // 2} and resumed: {len(ours)} tensors, {'equal' if same else 'other'} bits"
    yield Finding("self-test", "a run goes on", "ok" if same else "wrong", says)


class _Stop(Exception):
    pass


def _stop_in_the_middle(state: RunState) -> None:
    if state.step == _STEPS // 2:
        raise _Stop


def _given() -> Given:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(192, 6, generator=draw)
    rows = [(row, int(row.sum() > 0)) for row in numbers]
    layers = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)]
    for parameter in nn.Sequential(*layers).parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return Given(nn.Sequential(*layers), None, Data(rows[:128], rows[128:]), None, None)


def _tensors(folder: Path) -> dict[str, Tensor]:
    found = checkpoint.load(folder / CHECKPOINT)
    return {} if found is None else found[1]


_CONFIG = resolve_values(
    {
        "algorithm": {"name": "ho_sfl"},
        "task": {"name": "given"},
        "model": {"name": "given", "cut": 2},
        "bottom": {"train": "full", "optimizer": "sgd", "normalize": True, "lr": 0.01},
        "top": {"train": "full", "lr": 0.01},
        "clients": 3,
        "steps": _STEPS,
        "checkpoint_every": 4,
    },
    {},
)
