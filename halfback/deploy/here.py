"""A run's configuration as it is on one site, by what the site's file says."""

from typing import Any

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.deploy.site import SiteConfig, SiteData
from halfback.errors import UserError


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
