"""A fine-tune as one small file: what it began from, the agreed slopes of every step, and how they moved θ.

The file is in the safetensors format, which has no code in it: `history` are the agreed slopes (steps, slopes of a row)
float32, and what no slope tells of the model is a tensor each, `top.NAME` or `exact.NAME`. The rest is JSON in the
file's metadata, with a SHA-256 of all of it. Whoever reads one trusts nothing of it before it is checked.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from halfback import config as configuration
from halfback import json_reading
from halfback.assembly import Built
from halfback.assembly.again import Wanted
from halfback.config import RunConfig
from halfback.data.options import GIVEN
from halfback.engine.kept import checked
from halfback.engine.tensors import feed, trained_above
from halfback.errors import UserError, first_line, shown
from halfback.models.loading import HeadKind
from halfback.runs.naming import shown_name
from halfback.runs.tokens import Tokens, tokens_of

FILE = "history.safetensors"
_FORMAT: Final = 1
_TOLD, _SUM, _ROWS = "halfback", "sha256", "history"
_MOST_BYTES = 1 << 34  # of a file
_MOST_TOLD = 1 << 24  # of its header: a class's name each, and little else
# What of a configuration moves θ. The rest is about rows, links and machines, and stays at home.
_SECTIONS = ("algorithm", "model", "bottom", "top", "lora", "clients", "sampled_clients", "steps", "seed")
_OF_TASK = ("objective", "template", "verbaliser", "max_length")

Left = Literal["nothing", "top", "left out"]


class Told(BaseModel):
    """What a history says beside its tensors.

    Attributes:
        format: of the file.
        halfback: the version that wrote it.
        base: the name of the model that the run began from, without a folder of the machine that it lay on.
        digest: of that model's weights and settings, with the head that the run gave it.
        head, labels, channels: as `ModelRequest` has them.
        config: those settings that say how θ moves.
        turns: as `Agreed.turns`.
        beside: what is moved by gradients, of which there are no slopes, and whether its tensors are in the file.
        tokens: how the tokenizer is set; None where there is none.
        processor: what a file `preprocessor_config.json` says of images; None where nothing does.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    halfback: Annotated[str, Field(max_length=100)]
    base: Annotated[str, Field(max_length=1000)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    head: Literal["classifier", "verbaliser", "causal_lm", "image"]
    labels: list[Annotated[str, Field(strict=True)]]
    channels: Annotated[int, Field(strict=True, ge=1, le=4096)]
    config: dict[str, Any]
    turns: list[tuple[Annotated[int, Field(strict=True, ge=0)], Annotated[int, Field(strict=True, ge=0, lt=1 << 62)]]]
    beside: Left
    tokens: Tokens | None
    processor: dict[str, Any] | None


@dataclass(frozen=True)
class History:
    """A history that was read and checked as far as that needs no model.

    Attributes:
        told: what it says.
        config: the settings of `told`, as a run's.
        rows: the agreed slopes (steps, slopes of a row) float32, finite.
        beside: tensors by name, `top.NAME` and `exact.NAME`, finite; not yet held against a model.
    """

    told: Told
    config: RunConfig
    rows: Tensor
    beside: dict[str, Tensor]


def write(built: Built, path: Path, *, with_top: bool = True) -> Told:
    """Writes the history of a run that was reloaded; `with_top`: with what is moved by gradients, if anything is.

    Raises:
        UserError: the run has none.
    """
    config, server = built.config, built.federation.server
    needs, agreed = server.algorithm.needs, server.party.agreed
    if not needs.agreement.keeps_history:
        agreement = needs.agreement
        why = f"its clients agree by {agreement.name}" if agreement.moves else "its devices train nothing"
        why = "one machine trains alone" if agreement.pools else why
        raise UserError(
            f"--history: algorithm.name={config.algorithm.name} keeps no history of slopes ({why}); "
            "use --adapter, or --merged"
        )
    if config.model.pretrain is not None and "/" in config.model.name:
        raise UserError(
            "--history: a run that pretrained a model of a folder can't say what it began from; use --merged"
        )
    agreed.settle()
    rows = torch.stack([row.cpu() for row in agreed.rows]) if agreed.rows else torch.zeros(0, 0)
    tensors = {_ROWS: rows.float()}
    tensors |= {f"exact.{name}": agreed.replica.parameters[name].detach() for name in agreed.replica.exact}
    trained = {f"top.{name}": tensor.detach() for name, tensor in trained_above(server.party).items()}
    left: Left = "nothing" if not trained else "top" if with_top else "left out"
    wanted = wanted_of(built)
    told = Told(
        format=_FORMAT,
        halfback=version("halfback"),
        base=shown_name(built.ground.config.model.name),
        digest=wanted.digest,
        head=wanted.head,
        labels=list(wanted.labels),
        channels=wanted.channels,
        config=_settings(built.ground.config),
        turns=agreed.turns,
        beside=left,
        tokens=None if built.tokenizer is None else tokens_of(built),
        processor=None if built.processor is None else json.loads(built.processor.to_json_string()),
    )
    path.write_bytes(packed(told.model_dump(mode="json"), tensors | (trained if with_top else {})))
    return told


def packed(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a history."""
    text = json.dumps(told, sort_keys=True)
    kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    return save(kept, metadata={_TOLD: text, _SUM: _sum(text, kept)})


def read(path: Path) -> History:
    """Reads a history, which anybody may have written.

    Raises:
        UserError: in one line, what is wrong with it.
    """
    path = path / FILE if path.is_dir() else path
    try:
        if not path.is_file():  # a pipe would never end
            raise UserError("there is no such file")
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"it is larger than {_MOST_BYTES:,} bytes")
        return parsed(path.read_bytes())
    except OSError as error:
        raise UserError(f"history {shown(str(path))} can't be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"history {shown(str(path))} can't be used: {error}") from None


def parsed(data: bytes) -> History:
    """What the bytes of a history say; raises as `read` does."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MOST_TOLD, len(data) - 8):
        raise UserError("it is no history of halfback")
    try:
        header = json_reading.parse(data[8 : 8 + size])
        metadata = header["__metadata__"]
        text, kept_sum = metadata[_TOLD], metadata[_SUM]
        told = json_reading.parse(text)
        tensors = load(data)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, OverflowError) as error:
        raise UserError(f"it is no history of halfback ({first_line(error)})") from None
    if kept_sum != _sum(text, tensors):
        raise UserError("it is damaged: its SHA-256 is another")
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        came = shown(told.get("format")) if isinstance(told, dict) else "none"
        raise UserError(f"its format is {came}; this version of halfback reads {_FORMAT}")
    return _checked(told, tensors)


def _checked(told: dict[str, Any], tensors: dict[str, Tensor]) -> History:
    said: Told = checked(Told, told)
    config = configuration.from_tree(said.config, {})
    rows = tensors.pop(_ROWS, None)
    if rows is None or rows.ndim != 2 or rows.dtype != torch.float32:
        raise UserError("its slopes are not (steps, slopes) of float32")
    if len(rows) > config.steps * config.sampled_clients:
        raise UserError(f"it has {len(rows)} steps, {config.steps * config.sampled_clients} are allowed")
    if config.model.pretrain is not None and "/" in config.model.name:
        raise UserError("model.name: a name without a folder is allowed")  # it is loaded, and nobody here named it
    numbers = [row for row, _ in said.turns]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= len(rows)):
        raise UserError("turns: rows of it in their order are allowed")
    for name, tensor in (("its slopes", rows), *tensors.items()):
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or not torch.isfinite(tensor).all():
            raise UserError(f"{shown(name)}: finite numbers are allowed")
    return History(said, config, rows, tensors)


def _sum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        feed(digest, name, tensors[name])
    return digest.hexdigest()


def wanted_of(built: Built) -> Wanted:
    """What the run asked of its model."""
    if built.tokenizer is not None:
        head: HeadKind = "classifier" if built.config.task.verbaliser is None else "verbaliser"
        head, channels = head if built.task.objective == "classification" else "causal_lm", 3
    elif built.config.model.name == GIVEN:
        head, channels = "image", 3  # it is as it was given
    else:
        head, channels = "image", built.task.train.batch([0]).inputs["pixel_values"].shape[1]
    return Wanted(head, tuple(built.task.label_names), channels, built.fingerprint["model.name"])


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings that say how θ moves, and nothing of rows or machines."""
    whole = configuration.to_tree(config)
    kept = {key: whole[key] for key in _SECTIONS}
    kept["model"] = kept["model"] | {"name": shown_name(config.model.name)}
    return kept | {"task": {"name": config.task.name} | {key: whole["task"][key] for key in _OF_TASK}}
