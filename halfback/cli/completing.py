"""What a shell completes behind a command: recipes, settings with what they allow, and names."""

from collections.abc import Iterator


def recipe_or_setting(incomplete: str) -> list[str]:
    """Recipes, settings as `key=`, and behind that what the setting allows by name."""
    return [found for found in _known(incomplete) if found.startswith(incomplete)]


def _known(incomplete: str) -> Iterator[str]:
    from halfback.algorithms import algorithms
    from halfback.config import recipes
    from halfback.config.keys import keys
    from halfback.data.tasks import TASKS

    path, _, _ = incomplete.partition("=")
    if "=" not in incomplete:
        yield from recipes()
        yield from (f"{key.path}=" for key in keys())
        return
    if path == "algorithm.name":
        yield from (f"{path}={name}" for name in algorithms())
    if path == "task.name":
        yield from (f"{path}={name}" for name in TASKS)
    for key in keys():
        if key.path == path and "," in key.kind:
            words = key.kind.replace(" or ", ", ").split(", ")
            yield from (f"{path}={word}" for word in words if " " not in word and word != "null")
