"""A run's configuration as it is on one site: what the site's file says, and of the recipe what that leaves open."""

import re
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.data.options import TaskOptions
from halfback.data.prompts import check_template
from halfback.data.tasks import fields_of, objective_of
from halfback.deploy.site import SiteConfig, SiteData
from halfback.errors import UserError

# What a recipe says of rows that are a site's own: how they are read as texts or images, never which they are.
_HOW = ("objective", "template", "verbaliser", "max_length", "image_size", "beams", "max_new_tokens")
_READ = ("text", "pair", "target")  # columns that are fed to the model
_HOW_MANY = ("train_rows", "validation_rows", "holdout", "generated_rows")  # at the server, which none are taken from
# A packaged model, a ResNet, or OWNER/NAME on the hub.
_NO_PATH = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)


def check_apart(config: RunConfig) -> None:
    """Refuses what one process alone can do.

    Raises:
        UserError: an algorithm that has nothing which could be elsewhere (no server would hear of what it trains), or
            clients that would run as one.
    """
    if config.client.runtime != "torch":
        raise UserError(
            f"client.runtime={config.client.runtime}: on other machines each site's file says what its client runs on "
            "(runtime); leave it torch"
        )
    if config.fleet is not None:
        raise UserError(f"fleet={config.fleet}: a deployment has devices and links of its own; use fleet=null")
    if config.attack.name != "none":
        raise UserError(f"attack.name={config.attack.name}: clients lie in a simulation alone; use attack.name=none")
    if config.one_pass:
        raise UserError("one_pass=true: clients on other machines run alone; use one_pass=null or one_pass=false")
    if configuration.build_algorithm(config).needs.agreement.pools:
        raise UserError(f"algorithm.name={config.algorithm.name} runs on one machine: use `halfback train`")


def at_client(config: RunConfig, site: SiteConfig) -> RunConfig:
    """The run's configuration as it is on a client's site.

    Raises:
        UserError: the site takes no part in such a run, or its file doesn't name what the run needs.
    """
    check_apart(config)
    if site.keep_labels:
        _check_labels_stay(config, site)
    changes = _machine(config, site)
    if site.data is None:
        _check_named_data(config.task, site)
    else:
        # Only training rows count here, and all of them: none is held back to validate on.
        own = _rows(config.task, site.data, ("train",), _HOW)
        validation = site.data.validation or ("train" if site.data.name == "hub" else site.data.train)
        changes |= own | {"task.validation": validation}
    return configuration.from_tree(configuration.to_tree(config), changes)


def at_gateway(config: RunConfig, site: SiteConfig) -> None:
    """Refuses a run that the devices of a gateway's site may take no part in, as far as the site's file says it.

    Which rows and columns a device reads is said on the device.

    Raises:
        UserError: a label would be sent, and the site keeps them.
    """
    check_apart(config)
    if site.keep_labels:
        _check_none_is_sent(config, objective_of(config.task))


def at_server(config: RunConfig, site: SiteConfig) -> RunConfig:
    """The run's configuration as it is on the server's site, which may have rows to validate on and no others.

    Raises:
        UserError: the site's file doesn't name what the run needs.
    """
    check_apart(config)
    changes = _machine(config, site)
    if site.data is None:
        _check_named_data(config.task, site)
    else:
        named = site.data.train is not None or site.data.name == "hub"
        changes |= _rows(config.task, site.data, ("train",) if named else ("validation",), _HOW + _HOW_MANY)
        if site.data.train is None:
            changes |= {"task.train": site.data.validation, "task.train_rows": None}
    return configuration.from_tree(configuration.to_tree(config), changes)


def _check_labels_stay(config: RunConfig, site: SiteConfig) -> None:
    """Of a site that keeps its labels: none is sent, and none is fed to the model, under whatever name."""
    data = site.data
    task = config.task if data is None else replace(config.task, name=data.name)
    _check_none_is_sent(config, objective_of(task))
    if data is None and fields_of(task.name):
        raise UserError(
            f"this site keeps its labels (keep_labels): its file's `data` must say which they are, for task.name="
            f"{task.name}"
        )
    columns = {} if data is None else {key: (getattr(data, key) or "").strip() for key in (*_READ, "label")}
    for column in _READ:
        if columns.get(column) and columns[column] == columns["label"]:
            raise UserError(
                f"this site keeps its labels (keep_labels), and its file has their column as data.{column} too"
            )


def _check_none_is_sent(config: RunConfig, objective: str) -> None:
    name, is_whole = config.algorithm.name, configuration.build_algorithm(config).needs.holds == "whole"
    if is_whole:  # nothing of a batch is sent
        return
    if config.model.head is None:
        raise UserError(
            f"this site keeps its labels (keep_labels), and {name} with model.head=null sends them; use model.head=0"
        )
    if objective == "generation":
        raise UserError(
            "this site keeps its labels (keep_labels): with task.objective=generation the model reads the targets, and "
            f"{name} sends what it makes of them"
        )


def _check_named_data(task: TaskOptions, site: SiteConfig) -> None:
    if fields_of(task.name) and not site.trial:
        raise UserError(
            f"task.name={task.name}: a recipe may not name rows of this site; its file's `data` says where they are "
            "(see docs/deploy.md)"
        )


def _machine(config: RunConfig, site: SiteConfig) -> dict[str, Any]:
    given = {"model.name": site.model, "device": site.device}
    name = config.model.name
    # A name on the hub may be that of a folder here, relative to wherever this process was started.
    if site.model is None and not site.trial and (not _NO_PATH.fullmatch(name) or Path(name).exists()):
        raise UserError(
            f"model.name={name!r}: a recipe may not name a file or folder of this site; its file's `model` says where "
            "the model is (see docs/deploy.md)"
        )
    return {key: value for key, value in given.items() if value is not None}


def _rows(task: TaskOptions, data: SiteData, parts: tuple[str, ...], recipes: tuple[str, ...]) -> dict[str, Any]:
    """All options of the task: those in `recipes` as the recipe has them, else as the site's file, else the default.

    `parts`: the rows that are needed. UserError where the site's file doesn't name what the recipe needs.
    """
    known, objective = fields_of(data.name), objective_of(replace(task, name=data.name))
    needed = [part for part in parts if part in known]
    if "text" in known:
        needed += ["text"] + ([] if task.pair is None else ["pair"])
        needed += {"classification": ["label"], "generation": ["target"]}.get(objective, [])
    if missing := [field for field in needed if getattr(data, field) is None]:
        raise UserError(
            f"the run needs task.{missing[0]}, and the site's file names no data.{missing[0]}; what it doesn't name "
            "isn't read (see docs/deploy.md)"
        )
    if "text" in known and task.template is not None:
        check_template(task.template, has_pairs=data.pair is not None)
    unused = {"classification": ["target"], "causal_lm": ["label", "target"], "generation": ["label"]}[objective]
    own = {key: value for key, value in data.model_dump().items() if value is not None and key not in unused}
    default = {field.name: field.default for field in fields(task) if field.default is not MISSING}
    kept = {key: getattr(task, key) for key in recipes}
    return {f"task.{key}": value for key, value in (default | kept | own).items()}
