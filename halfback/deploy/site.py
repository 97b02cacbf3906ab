"""What a site says of itself, in a file of its own that no server can change: its rows, its model, its rules."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halfback.config import yaml_reading
from halfback.errors import UserError, offer, shown

FILE = "halfback.yaml"  # in the folder `local` of the site's startup kit
# A folder beside it. FLARE's processes run there and look there for packages: one of our name would hide our package.
OWN = "halfback-site"
MOST_SEATS = 10_000


TEMPLATE = """\
# What this site says of itself; no server, no job and no recipe can change it. See docs/deploy.md.
# data:                  # a client trains on all rows of `train`, the server validates on those of `validation`
#   name: csv
#   train: /path/to/rows.csv
#   text: sentence       # columns: those that stand here (text, pair, label, target) are all that is ever read
#   label: mood
# model: /path/to/model  # where the recipe's model is on this machine; without it no folder of this machine is loaded
# device: auto           # auto, cpu or cuda
# runtime: torch         # device: no PyTorch does a client's work, but halfback-device and a `package`: docs/deploy.md
# # devices:             # a gateway: with runtime: device and a `package`, without `data` and `model`: docs/gateway.md
# #   listen: 0.0.0.0:8443
# #   certificate: /path/to/certificate.pem
# #   key: /path/to/key.pem
# #   seats: 100         # how many devices may be clients
# #   page: false        # true: browsers may be devices too, by a page from this port: docs/browser.md
# keep_labels: false     # true: take part only where no label is sent from this machine
# trial: false           # true: a recipe may name files and folders of this machine; for trying things out
# folder: /path/to/keep  # what is needed to go on after a restart; by default beside the startup kit
"""
TRIAL = """\
# A site for trying things out: a recipe names its rows and its model. `halfback deploy` wrote this with the site.
trial: true
"""


def write_site(local: Path, text: str) -> Path:
    """Writes a site's file into the folder `local` of its kit, unless it has one; the path of it."""
    path = local / FILE
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    return path


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class SiteData(_Section):
    """Where the rows are and which of their columns halfback may read, as in a recipe's `task`.

    A recipe changes nothing of it: what is not said here isn't there. Each field is an option of the task.
    """

    name: str
    train: str | None = None
    validation: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    target: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    skip_bad_rows: bool | None = None


class SiteDevices(_Section):
    """Where devices connect to a site that is their gateway. Their rows and states are theirs."""

    listen: str
    """host:port of this machine."""
    certificate: str
    """PEM file: what devices know this site by, with those that signed it."""
    key: str
    """PEM file: its key, which is nobody else's."""
    seats: int = Field(default=100, ge=1, le=MOST_SEATS)
    """How many devices may take part, each as a client of the run."""
    tokens: str | None = None
    """File of the devices' tokens; by default in the site's `folder`."""
    metrics: int | None = Field(default=None, ge=1, le=65535)
    """Port of loopback that tells Prometheus what was counted; null: none."""
    page: bool = False
    """Hand out the page with which a browser becomes a device, to whoever asks at this port; see docs/browser.md."""


class SiteConfig(_Section):
    """A site's file."""

    data: SiteData | None = None
    """This site's rows. A client trains on all of them; a server validates on its `validation`. Null: those of the
    named data set that the recipe asks for (`digits`, `sst2` …), of which a client takes its share."""
    model: str | None = None
    """Folder of the model on this machine, in place of the recipe's `model.name`; the weights must be the same. Null:
    the recipe's, if that is no path: a packaged model, a ResNet, or a name on the hub."""
    device: str | None = Field(default=None, pattern="^(auto|cpu|cuda)$")
    runtime: Literal["torch", "device"] = "torch"
    """What does a client's work: PyTorch here, or `halfback-device` with the `package`."""
    package: str | None = None
    """Folder of the device package that this site takes part with, and with no other."""
    interpreter: str | None = None
    """The Python of a device's environment, which needs nothing of this one; null: the Python of this process."""
    devices: SiteDevices | None = None
    """Devices that connect to this site take part in its place, each on rows of its own."""
    keep_labels: bool = False
    """Take part only in runs in which no label is sent (U-shape, or no cut at all), and feed none to the model.
    Gradients tell them all the same: see docs/privacy.md."""
    trial: bool = False
    """Let a recipe name files and folders of this machine, where `data` and `model` say nothing."""
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
        site = SiteConfig.model_validate({} if tree is None else tree)
        if wrong := _contradiction(site):
            raise UserError(f"site file {path}: {wrong}")
        return site
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda one: one["type"] == "missing")
        key = ".".join(str(part) for part in first["loc"])
        inside: dict[str, type[BaseModel]] = {"data": SiteData, "devices": SiteDevices}
        section = inside.get(str(first["loc"][0]), SiteConfig) if len(first["loc"]) > 1 else SiteConfig
        if first["type"] == "extra_forbidden":
            known = offer(str(first["loc"][-1]), section.model_fields)
            raise UserError(f"site file {path}: key {key!r} is unknown; {known}") from None
        if first["type"] == "missing":
            raise UserError(f"site file {path}: {key} is missing") from None
        raise UserError(f"site file {path}: {key}={shown(first['input'])}: {first['msg']}") from None


def folder_of(site: SiteConfig, local: Path) -> Path:
    """Where a site keeps what is halfback's; `local`: the folder of its file."""
    return Path(site.folder) if site.folder is not None else local.parent / OWN


def tokens_of(site: SiteConfig, local: Path) -> Path:
    """The file of the tokens of a gateway's devices; UserError where the site is none."""
    if site.devices is None:
        raise UserError(
            f"site file {local / FILE}: there is no `devices` in it, so nothing has a token; docs/gateway.md"
        )
    named = site.devices.tokens
    return folder_of(site, local) / "tokens.json" if named is None else Path(named).expanduser()


def _contradiction(site: SiteConfig) -> str | None:
    """What two keys of a site's file say against each other; None where nothing does."""
    if site.devices is not None and site.runtime != "device":
        return "devices: it is for runtime: device"
    if site.runtime == "torch":
        named = [key for key in ("package", "interpreter") if getattr(site, key) is not None]
        return f"{named[0]}: it is for runtime: device" if named else None
    if site.package is None:
        return "runtime: device needs package, the folder that `halfback package` made"
    if site.devices is not None:
        named = [key for key in ("data", "model", "interpreter", "device") if getattr(site, key) is not None]
        return f"{named[0]}: with devices it is each device's own" if named else None
    if site.data is None:
        return "runtime: device needs data: a device reads rows of its own alone"
    if site.data.name not in ("csv", "images"):
        return f"data.name={site.data.name}: a device reads csv or images"
    if site.model is not None:
        return "model: with runtime: device the package is the model"
    return "device: cuda: with runtime: device it is the CPU" if site.device == "cuda" else None
