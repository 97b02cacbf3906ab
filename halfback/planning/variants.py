"""What a plan looks at: each cut with each method, number of directions, codec and precision that a recipe allows."""

import dataclasses
from collections.abc import Iterator
from itertools import product
from typing import Any

from halfback.algorithms import algorithms
from halfback.config import RunConfig, build_algorithm, from_tree, to_tree
from halfback.config.facts import Chosen
from halfback.config.rules import check
from halfback.config.schema import CodecsConfig
from halfback.errors import UserError

METHODS = ("ho_sfl", "ho_sfl_pipelined", "zo_sfl", "frozen_bottom", "split_lora")
"""Looked at beside the recipe's own."""
_DIRECTIONS = (1, 2, 4, 8)
_EXACT: tuple[int | str, ...] = (0, 1, "all")
NOTHING = "–"
_SENT = ("activations_up", "activations_down", "gradient_up", "gradient_down")  # links that every step pays for


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration that might be run instead of a recipe.

    Attributes:
        config: of the run.
        method: the algorithm, with the options in which variants differ, for people.
        cut: blocks on the device.
        codecs: of activations and cut gradients, for people.
        weights: how a device holds the frozen matrices before the cut.
    """

    config: RunConfig
    method: str
    cut: int
    codecs: str
    weights: str


def variants(recipe: RunConfig, blocks: int) -> Iterator[Variant]:
    """All that a recipe could be run as, by the rules between settings.

    Args:
        recipe: what it is about, and what is left as it is there.
        blocks: of the whole model.
    """
    for config, method in _methods(recipe):
        for cut, codecs, weights in product(range(1, blocks + 1), _codecs(config), ("float32", "int8")):
            if weights == "int8" and config.bottom.train == "full":
                continue
            model = config.model.model_copy(update={"cut": cut})
            bottom = config.bottom.model_copy(update={"weights": weights})
            changed = config.model_copy(update={"model": model, "bottom": bottom, "codecs": codecs})
            try:
                check(Chosen(changed, build_algorithm(changed)))
            except UserError:
                continue
            up, down = _chain(codecs.activations_up), _chain(codecs.gradient_down)
            held = weights if weights == "int8" else config.model.dtype
            yield Variant(changed, method, cut, up if up == down else f"{up} up, {down} down", held)


def _methods(recipe: RunConfig) -> Iterator[tuple[RunConfig, str]]:
    """Each method with each number of directions and of exact blocks that it can have."""
    for name in dict.fromkeys((recipe.algorithm.name, *METHODS)):
        kind: Any = algorithms()[name]
        declared = {option.name for option in dataclasses.fields(kind)}
        exact: tuple[int | str, ...] = _EXACT if "exact_blocks" in declared else (0,)
        directions: tuple[int, ...] = _DIRECTIONS if "directions" in declared else (0,)
        if name == recipe.algorithm.name:
            own_exact, own_directions = _own(recipe)
            exact, directions = (*exact, own_exact), (*directions, own_directions)
        counts = (0, *directions) if "exact_blocks" in declared else directions
        for blocks, count in dict.fromkeys(product(exact, counts)):
            is_own = name == recipe.algorithm.name and (blocks, count) == _own(recipe)
            if (count == 0) != (blocks == "all") and "directions" in declared and not is_own:
                continue  # slopes beside exact gradients of everything, or nothing at all, say nothing new
            options: dict[str, Any] = {"algorithm.directions": count} if "directions" in declared else {}
            if "exact_blocks" in declared:
                options["algorithm.exact_blocks"] = blocks
                options |= _of_gradients(recipe, blocks)
            try:
                config = from_tree(to_tree(recipe), {"algorithm.name": name, "beside": []} | options)
            except UserError:
                continue
            told = [f"P = {count}"] if count else []
            told += [f"exact {blocks}{_sent(config)}"] if blocks else []
            yield config, ", ".join([name, *told])


def _own(recipe: RunConfig) -> tuple[int | str, int]:
    """Exact blocks and directions of the recipe's own method, 0 where it has none."""
    options = recipe.algorithm.options()
    return options.get("exact_blocks", 0), options.get("directions", 0)


def _of_gradients(recipe: RunConfig, exact: int | str) -> dict[str, Any]:
    """Codecs of exact gradients: the recipe's own, else one bit a value where all of them are sent."""
    own = {link: getattr(recipe.codecs, link) for link in ("slopes_up", "slopes_down")}
    if not exact:
        own = dict.fromkeys(own, ())
    elif exact == "all" and not any(own.values()):
        own = dict.fromkeys(own, ("sign",))
    return {f"codecs.{link}": list(chain) for link, chain in own.items()}


def _sent(config: RunConfig) -> str:
    up, down = _chain(config.codecs.slopes_up), _chain(config.codecs.slopes_down)
    if up == down:
        return "" if up == NOTHING else f" as {up}"
    return f" as {up} up and {down} down"


def _codecs(config: RunConfig) -> Iterator[CodecsConfig]:
    """The recipe's own chains, none, and int8 on every link that carries activations or their gradients."""
    own = config.codecs
    links = _SENT if config.model.head is not None else ("activations_up", "gradient_down")
    seen: list[CodecsConfig] = []
    for chain in (None, (), ("int8",)):
        changed = own if chain is None else own.model_copy(update=dict.fromkeys(links, chain))
        if changed not in seen:
            seen.append(changed)
            yield changed


def _chain(codecs: tuple[Any, ...]) -> str:
    return " → ".join(each if isinstance(each, str) else str(each.get("name")) for each in codecs) or NOTHING
