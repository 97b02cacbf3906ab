"""`package`: from a recipe or a run to a folder that a device works from."""

from pathlib import Path
from typing import Any, Literal

from halfback.assembly import Built, build
from halfback.config import RunConfig
from halfback.config.values import Config, resolve_values
from halfback.packaging import check_installed
from halfback.packaging.holding import held_against_reference
from halfback.packaging.writing import Source, check_client, check_recipe, new_folder, write
from halfback.runs.folder import CONFIG, PRETRAINED, config_of


def package(
    config: Config,
    out: str | Path,
    *,
    weights: Literal["float32", "int8"] | None = None,
    client: int | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Makes a device package: what a client of this run begins with, for a device without PyTorch.

    Args:
        config: a recipe's name, a YAML file, settings, or the folder of a run; of a run its configuration counts, not
            where it stands, since a device replays what it missed.
        out: the package's new folder.
        weights: of the frozen matrices before the cut, in the place of the recipe's `bottom.weights`.
        client: where clients have other cuts, the one that the package is for; None where it is for all of them.
        **settings: of the recipe, by section or by path, that are others here.

    Returns:
        What was held against the reference on rows of the recipe, each with its largest error, relative to its largest
        value.

    Raises:
        UserError: what makes packages is not installed, a setting is none for such a device, or a block has an operator
            that can't be exported.
    """
    pretrained = None
    if isinstance(config, str | Path) and (Path(config) / CONFIG).is_file():
        pretrained = Path(config) / PRETRAINED
        config = config_of(Path(config))
    if weights is not None:
        settings["bottom.weights"] = weights
    resolved = resolve_values(config, settings).model_copy(update={"device": "cpu"})
    check(resolved, "a package")
    check_client(resolved, client)
    with new_folder(Path(out)) as folder:
        built = build(resolved, pretrained=pretrained if pretrained is not None and pretrained.is_file() else None)
        return packaged(built, folder, client)


def check(config: RunConfig, wanted_by: str) -> None:
    """Refuses what no package can be made of, as far as the recipe alone says it.

    Raises:
        UserError: names the setting, or begins with `wanted_by` and names what is to be installed.
    """
    check_installed(wanted_by)
    check_recipe(config)


def packaged(built: Built, folder: Path, client: int | None) -> dict[str, float]:
    """Writes a package into a folder, holds it against the reference, and returns how far they are apart."""
    source = Source(built, built.clients.side(client or 0), client)
    write(source, folder)
    return held_against_reference(source, folder)
