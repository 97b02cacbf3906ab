"""A run's configuration: its sections, the recipes that it comes from, and what its settings may not say together."""

from halfback.config.recipes import (
    build_algorithm,
    dump,
    from_tree,
    load,
    parse_override,
    read_recipe,
    recipes,
    resolve,
    to_tree,
)
from halfback.config.schema import BottomConfig, ModelConfig, RunConfig, TopConfig, Tree

__all__ = [
    "BottomConfig",
    "ModelConfig",
    "RunConfig",
    "TopConfig",
    "Tree",
    "build_algorithm",
    "dump",
    "from_tree",
    "load",
    "parse_override",
    "read_recipe",
    "recipes",
    "resolve",
    "to_tree",
]
