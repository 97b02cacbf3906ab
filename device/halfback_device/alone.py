"""A client's part of a model with its rows, without a run: for inference alone, and to measure this device."""

from pathlib import Path

from halfback_device.batches import Feed
from halfback_device.data import Rows, check_all_read, own_split
from halfback_device.package import Package
from halfback_device.plan import check_client, check_cut, plan_of
from halfback_device.runtime import Bottom
from halfback_device.seeds import seed_for


def alone(folder: Path, rows: Rows, client: int | None) -> tuple[Package, Bottom, Feed]:
    """Opens a package with a client's batches.

    Args:
        folder: of the package.
        rows: what the client has; nothing may be named of them that the package's run doesn't read.
        client: its number; None for the package's own, or the first.

    Returns:
        The package, its graphs, and the batches in the run's order.

    Raises:
        DeviceError: of the package, of the rows, or of a number that is none.
    """
    package = Package.open(folder)
    plan, bottom, manifest = plan_of(package.manifest), Bottom(package), package.manifest
    if client is None:
        client = manifest["client"] or 0
    check_client(manifest["config"], client)
    check_cut(manifest["config"], client, manifest["model"]["cut"])
    check_all_read(rows, manifest)
    split = own_split(rows, manifest, package.folder, client)
    return package, bottom, Feed(split, size=plan.batch_size, seed=seed_for(plan.seed, "order", client))
