"""What a site says of itself, in a file of its own that no server can change: its rows, its model, its rules."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halfback import yaml_reading
from halfback.errors import UserError, offer, shown

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
    if not path.exists():
        raise UserError(f"site file {path} can't be read: No such file or directory; see docs/deploy.md")
    tree = yaml_reading.settled(yaml_reading.read(path, f"site file {path}"), SiteConfig)
    try:
        return SiteConfig.model_validate({} if tree is None else tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, section = ".".join(str(part) for part in first["loc"]), SiteData if len(first["loc"]) > 1 else SiteConfig
        if first["type"] == "extra_forbidden":
            known = offer(str(first["loc"][-1]), section.model_fields)
            raise UserError(f"site file {path}: key {key!r} is unknown; {known}") from None
        raise UserError(f"site file {path}: {key}={shown(first['input'])}: {first['msg']}") from None
