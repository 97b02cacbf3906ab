"""The component of the FLARE job on the server's site: runs the run."""

from pathlib import Path
from typing import Any

from nvflare.collab import collab

from halfback.deploy.calm import be_quiet
from halfback.deploy.flare import PROGRESS, FlareCarrier, seats_of
from halfback.deploy.order import opened
from halfback.deploy.serving import Surroundings, serve
from halfback.deploy.site import FILE, folder_of, read_site


class Server:
    """On the server's site: runs the run, begun or continued, and leaves its folder in the job's."""

    def __init__(self, order: str) -> None:
        """`order`: the run's name on this site and the resolved recipe, sealed; or whatever else a job has brought."""
        self.order = order

    @collab.main
    def run(self) -> None:
        """The whole run; how it ended stands in its folder."""
        be_quiet()
        workspace, engine = collab.workspace, collab.fl_ctx.get_engine()
        local = Path(workspace.get_site_config_dir())
        sites = {client.name: client for client in collab.clients}
        job = Path(workspace.get_run_dir(collab.fl_ctx.get_job_id()))
        serve(
            *opened(self.order),
            Surroundings(
                site=lambda: read_site(local / FILE),
                folder=lambda site: folder_of(site, local),
                sites=lambda: seats_of(sites),
                carrier=lambda seats: FlareCarrier(sites, seats),
                job=job,
                listen=lambda reply: engine.register_app_command(PROGRESS, _command, reply),
            ),
        )


def _command(topic: str, data: Any, fl_ctx: Any, reply: Any) -> dict[str, Any]:
    found = reply(data if isinstance(data, dict) else {})
    return found if isinstance(found, dict) else {}
