"""The FLARE job: three small files that name our two components. No code travels: each site has halfback."""

import json
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import AdminCommandNames

from halfback import config as configuration
from halfback.assembly import check
from halfback.config import RunConfig
from halfback.deploy.here import check_apart
from halfback.deploy.order import sealed
from halfback.errors import UserError

CLASSES = (  # what a site must allow for our jobs, and nothing else
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
    "halfback.deploy.server_job.Server",
    "halfback.deploy.client_job.Site",
)


def write_job(folder: Path, name: str, config: RunConfig) -> Path:
    """Writes the job below `folder`; returns its folder."""
    controller = {"server_obj_id": "_server", "sync_task_timeout": 120}
    server = {
        "workflows": [{"id": "controller", "path": CLASSES[0], "args": controller}],
        "components": [
            {"id": "_server", "path": CLASSES[2], "args": {"order": sealed(name, configuration.to_tree(config))}},
        ],
    }
    client = {
        "executors": [{"tasks": ["*"], "executor": {"path": CLASSES[1], "args": {"client_obj_id": "_client"}}}],
        "components": [{"id": "_client", "path": CLASSES[3], "args": {}}],
    }
    filters: dict[str, Any] = {"format_version": 2, "task_data_filters": [], "task_result_filters": []}
    meta = {"name": name, "resource_spec": {}, "min_clients": 1, "deploy_map": {"app": ["@ALL"]}}
    job = folder / name
    (job / "app" / "config").mkdir(parents=True)
    (job / "meta.json").write_text(json.dumps(meta))
    (job / "app" / "config" / "config_fed_server.json").write_text(json.dumps(server | filters))
    (job / "app" / "config" / "config_fed_client.json").write_text(json.dumps(client | filters))
    return job


def deployable(config: RunConfig) -> RunConfig:
    """The configuration to deploy: one algorithm.

    Raises:
        UserError: it has nothing that could be elsewhere, or options that nobody could run with.
    """
    check(config)
    check_apart(config)
    return config.model_copy(update={"beside": ()})


_COMMANDS = {name: right for name, right in vars(AdminCommandNames).items() if name.isupper()}
# Code that comes with a job; `cat` and `grep` of any file of the machine, one by one and as FLARE calls them all.
_CLOSED = ("byoc", "shell_commands", *(right for name, right in _COMMANDS.items() if name.startswith("SHELL_")))


def allow(kit: Path) -> None:
    """Lets a site run our components, and none of FLARE's beside, which may read and send what is on the site.

    Takes from everyone the right to run code that comes with a job, and shell commands on the site; logs stay there.

    `kit`: the site's startup kit. Its `local/resources.json` and `local/authorization.json` are written anew, from the
    defaults where the site has none of its own yet. A class that its own file allows stays allowed.

    Raises:
        UserError: it is no startup kit of a server or a client.
    """
    local = kit / "local"
    has_own = (local / "resources.json").exists()
    resources = _own_or_default(local, "resources.json")
    allowed = resources.get("class_allow_list", []) if has_own else []
    resources["class_allow_list"] = allowed + [name for name in CLASSES if name not in allowed]
    resources["class_list_enforcement_mode"] = "enforce"
    resources["allow_log_streaming"] = False
    (local / "resources.json").write_text(json.dumps(resources, indent=2))
    rights = _own_or_default(local, "authorization.json")
    roles = rights.get("permissions", {})
    known = {right for role in roles.values() if isinstance(role, dict) for right in role} | set(_COMMANDS.values())
    for role, granted in roles.items():  # one word for a role stands for all rights
        spelt_out = dict.fromkeys(sorted(known), granted) if isinstance(granted, str) else granted
        if spelt_out.get("submit_job", "none") != "none":  # who submits a run may see how it goes
            spelt_out.setdefault(AdminCommandNames.APP_COMMAND, "n:submitter")
        roles[role] = spelt_out | dict.fromkeys(_CLOSED, "none")
    (local / "authorization.json").write_text(json.dumps(rights, indent=2))


def _own_or_default(local: Path, name: str) -> dict[str, Any]:
    for path in (local / name, local / f"{name}.default"):
        if path.exists():
            found = json.loads(path.read_text())
            if isinstance(found, dict):
                return found
    raise UserError(
        f"{local.parent} is no startup kit of a FLARE server or client: {local / name}.default is not there"
    )
