"""What a site says of itself, in a file of its own that no server can change: its rows, its model, its rules."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.errors import UserError

FILE = "halfback.yaml"  # in the folder `local` of the site's startup kit


TEMPLATE = """\
# What this site says of itself; no server can change it. See docs/deploy.md.
# data:                  # a client trains on all rows of `train`, the server validates on those of `validation`
#   name: csv
#   train: /path/to/rows.csv
#   text: sentence
#   label: mood
# model: /path/to/model  # where the recipe's model is on this machine
# device: auto           # auto, cpu or cuda
# keep_labels: false     # true: take part only where no label leaves this machine
# folder: /path/to/keep  # what is needed to go on after a restart; by default beside the startup kit
"""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class SiteData(_Section):
    """Where the rows are, as in a recipe's `task`; what is not said here is the recipe's."""

    name: str | None = None
    train: str | None = None
    validation: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    target: str | None = None


class SiteConfig(_Section):
    """A site's file."""

    data: SiteData | None = None
    """This site's rows. A client trains on all of them; a server validates on its `validation`. Null: the rows that
    the recipe names, of which a client takes its share: for trials, where all have the same data."""
    model: str | None = None
    """Folder of the model on this machine, in place of the recipe's `model.name`; the weights must be the same."""
    device: str | None = Field(default=None, pattern="^(auto|cpu|cuda)$")
    keep_labels: bool = False
    """Take part only in runs in which no label leaves this machine (U-shape, or no cut at all)."""
    folder: str | None = None
    """Where the site keeps what it needs to go on after a restart; by default beside its startup kit."""


def read_site(path: Path) -> SiteConfig:
    """A site's file.

    Raises:
        UserError: it is missing, or not what a site says; names the key and what is allowed.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"site file {path} can't be read: {error.strerror}; see docs/deploy.md") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"site file {path} is no YAML") from None
    try:
        return SiteConfig.model_validate({} if tree is None else tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"site file {path}: {key}={first['input']!r}: {first['msg']}") from None


def at_client(config: RunConfig, site: SiteConfig) -> RunConfig:
    """The run's configuration as it is on a client's site; UserError where the site takes no part in such a run."""
    if site.keep_labels and config.model.head is None and _labels_travel(config):
        raise UserError(
            f"this site keeps its labels (keep_labels), and {config.algorithm.name} with model.head=null sends them; "
            "use model.head=0"
        )
    changes = _machine(site)
    if site.data is not None:
        changes |= _rows(site.data)
        # Only training rows count here, and all of them: none is held back to validate on.
        changes["task.validation"] = site.data.validation or changes.get("task.train", config.task.train)
        changes |= {"task.train_rows": None, "task.validation_rows": None, "task.holdout": 0.0}
        changes |= {"task.generated_rows": 0}
    return configuration.from_tree(configuration.to_tree(config), changes)


def at_server(config: RunConfig, site: SiteConfig) -> RunConfig:
    """The run's configuration as it is on the server's site, which may have rows to validate on and no others."""
    changes = _machine(site)
    if site.data is not None:
        changes |= _rows(site.data)
        if site.data.train is None:
            changes |= {"task.train": site.data.validation, "task.train_rows": None}
    return configuration.from_tree(configuration.to_tree(config), changes)


def _labels_travel(config: RunConfig) -> bool:
    traits = configuration.algorithms()[config.algorithm.name].traits
    return traits.device == "bottom" or traits.device == "auxiliary"


def _machine(site: SiteConfig) -> dict[str, Any]:
    given = {"model.name": site.model, "device": site.device}
    return {key: value for key, value in given.items() if value is not None}


def _rows(data: SiteData) -> dict[str, Any]:
    return {f"task.{key}": value for key, value in data.model_dump().items() if value is not None}
