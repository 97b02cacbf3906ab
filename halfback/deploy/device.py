"""What a site says to the device worker that does its client's work: its own words alone, and nothing of a job's.

The worker has neither PyTorch nor our configuration. What a site's file allows is therefore held here against the
recipe that its package was made of, by the rules that hold for a worker with PyTorch; the worker takes part in no run
with another recipe.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from halfback import config as configuration
from halfback import json_reading
from halfback.config.yaml_reading import check_plain
from halfback.deploy.here import at_client, at_gateway
from halfback.deploy.site import SiteConfig
from halfback.errors import UserError

_NOT_FROM_HERE = "-P"  # of Python: no module is loaded because it lies in the folder that a process was started in
_COLUMNS = ("text", "pair", "label", "target")


def command_of(site: SiteConfig) -> list[str]:
    """What starts the worker, before its arguments; UserError where it can't be started."""
    return [_interpreter(site), _NOT_FROM_HERE, "-m", "halfback_device", "worker"]


def arguments_of(site: SiteConfig) -> dict[str, Any]:
    """What the worker is told: the package, and which rows and columns are this site's.

    Raises:
        UserError: the site takes no part in runs of its package's recipe, its file doesn't name what they need, or
            there is no package.
    """
    data = site.data
    assert data is not None
    package = check_package(site)
    read = {"path": data.train, "delimiter": data.delimiter, "encoding": data.encoding}
    columns = {name: getattr(data, name) for name in _COLUMNS}
    rows = read | columns | {"skip_bad_rows": bool(data.skip_bad_rows)}
    return {"package": str(package), "rows": rows, "keep_labels": site.keep_labels}


def check_package(site: SiteConfig) -> Path:
    """The folder of a site's package, whose runs it takes part in; UserError where there is none, or it doesn't."""
    assert site.package is not None
    package = Path(site.package).expanduser()
    if not (package / "manifest.json").is_file():
        raise UserError(f"package {package}: there is no manifest.json in it; `halfback package` makes one")
    manifest = json_reading.read(package / "manifest.json")
    tree = manifest.get("config") if isinstance(manifest, dict) else None
    if not isinstance(tree, dict):
        raise UserError(f"package {package}: its manifest has no recipe")
    check_plain(tree, f"package {package}: the recipe")
    config = configuration.from_tree(tree, {"client.runtime": "torch"})  # as the runs are that it is for
    if site.devices is not None:
        at_gateway(config, site)
    else:
        # Whatever its recipe calls the model: it is in the package.
        at_client(config, site.model_copy(update={"model": str(package)}))
    return package


def _interpreter(site: SiteConfig) -> str:
    chosen = sys.executable if site.interpreter is None else site.interpreter
    looks = "import importlib.util, sys; sys.exit(importlib.util.find_spec('halfback_device') is None)"
    try:
        missing = subprocess.run([chosen, _NOT_FROM_HERE, "-c", looks], capture_output=True).returncode
    except OSError as error:
        raise UserError(f"interpreter {chosen} can't be started: {error.strerror}") from None
    if missing:
        raise UserError(f"interpreter {chosen}: its environment has no halfback-device; see docs/devices.md")
    return chosen
