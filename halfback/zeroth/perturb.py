"""Weights that are perturbed where they are used: live parameters never change.

While a module runs, and only then, its own parameters are replaced by scratch tensors; so one layer's copy is alive at
a time, nothing has to be restored by arithmetic, and the parameters are bit-exact in every dtype, also when the probe
raises. Adding and subtracting in place drifts instead: 12 % in bfloat16 after 1,000 probes.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from halfback.errors import UserError
from halfback.zeroth.directions import Law, Pack, Segment, direction_rows, directions_of, layout_of, packs

Substitute = Callable[[str, Tensor, Tensor | None], Tensor]
_Own = list[tuple[nn.Module, str, nn.Parameter]]  # holder, attribute, parameter
_HOLDERS = (nn.ParameterDict, nn.ParameterList)  # never run: the module around them uses their parameters


@contextmanager
def substituted(module: nn.Module, parameters: Mapping[str, Tensor], substitute: Substitute) -> Iterator[None]:
    """While this context is open, every submodule that runs sees `substitute(name, parameter, rows)` for its weights.

    Args:
        module: the tree whose submodules run.
        parameters: name → parameter (by identity) to be replaced; others are left alone.
        substitute: gives the replacement; `rows` is None for the whole parameter or, for an embedding table, the (n,)
            distinct rows that this call uses: the replacement then has only these rows.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    handles = []
    swapped: dict[nn.Module, Callable[[], None]] = {}
    for child, own in _owners(module, names):
        handles.append(child.register_forward_pre_hook(_enter(own, names, substitute, swapped)))
        handles.append(child.register_forward_hook(_leave(swapped), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for restore in list(swapped.values()):  # an interrupt passes by the forward hooks
            restore()


def _owners(module: nn.Module, names: Mapping[int, str]) -> Iterator[tuple[nn.Module, _Own]]:
    """Each submodule that uses some of the parameters `names` (by identity), with those."""
    for child in module.modules():
        if isinstance(child, _HOLDERS):
            continue
        holders = [child, *(part for part in child.children() if isinstance(part, _HOLDERS))]
        own = [(h, attribute, p) for h in holders for attribute, p in h._parameters.items() if p is not None]
        own = [entry for entry in own if id(entry[2]) in names]
        if own:
            yield child, own


def _enter(
    own: _Own,
    names: dict[int, str],
    substitute: Substitute,
    swapped: dict[nn.Module, Callable[[], None]],
) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if isinstance(module, nn.Embedding) and len(args) == 1 and _looks_up_ids(module):
            (_, attribute, table), padding = own[0], module.padding_idx
            rows, ids = torch.unique(args[0], return_inverse=True)
            swapped[module] = lambda: _restore(own, module, padding)
            module.padding_idx = None  # meant for row numbers of the whole table, and only for its gradient
            module._parameters[attribute] = substitute(names[id(table)], table, rows)  # type: ignore[assignment]
            return (ids,)
        swapped[module] = lambda: _restore(own)
        for holder, attribute, parameter in own:
            holder._parameters[attribute] = substitute(names[id(parameter)], parameter, None)  # type: ignore[assignment]
        return None

    return hook


def _leave(swapped: dict[nn.Module, Callable[[], None]]) -> Callable[..., None]:
    def hook(module: nn.Module, _args: Any, _output: Any) -> None:
        restore = swapped.pop(module, None)
        if restore is not None:
            restore()

    return hook


def _restore(own: _Own, embedding: nn.Embedding | None = None, padding: int | None = None) -> None:
    for holder, attribute, parameter in own:
        holder._parameters[attribute] = parameter
    if embedding is not None:
        embedding.padding_idx = padding


def _looks_up_ids(module: nn.Embedding) -> bool:
    """Whether the call's one argument is the row numbers (learned positions compute theirs from other arguments)."""
    return list(inspect.signature(type(module).forward).parameters)[1] in ("input", "input_ids")


def perturbed(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    seed: int,
    radius: float,
    *,
    law: Law = "rademacher",
) -> AbstractContextManager[None]:
    """A context in which `module` runs with θ + `radius`·u; a negative radius probes the other side.

    Bit-equal to adding ``radius * u`` to the parameters in place, for every dtype.
    """
    pieces: dict[str, list[tuple[Pack, Segment]]] = {name: [] for name in parameters}
    for pack in packs(layout_of(parameters)):
        for segment in pack.segments:
            pieces[segment.name].append((pack, segment))
    made: dict[Pack, Tensor] = {}  # the last pack only: modules run about in the order of their parameters
    # Scaling in float32 gives the bits of scaling in the parameters' dtype only where that is float32.
    scales = [radius] if all(p.dtype == torch.float32 for p in parameters.values()) else None

    def add_direction(name: str, parameter: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            direction = direction_rows(seed, name, rows, parameter.shape[1], law=law)
            return parameter.detach().index_select(0, rows).add_(direction.to(parameter.dtype).mul_(radius))
        scratch = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        flat, old = scratch.view(-1), parameter.detach().reshape(-1)
        for pack, segment in pieces[name]:
            if pack not in made:
                made.clear()
                made[pack] = pack.directions([seed], law=law, device=flat.device, scales=scales)[0]
            step = made[pack][segment.place : segment.place + segment.stop - segment.start]
            if scales is None:
                step = step.to(flat.dtype) * radius
            torch.add(old[segment.start : segment.stop], step, out=flat[segment.start : segment.stop])
        return scratch

    return substituted(module, parameters, add_direction)


@contextmanager
def perturbed_rows(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    seeds: Sequence[int],
    radius: float,
    *,
    law: Law = "rademacher",
) -> Iterator[None]:
    """A context in which row i of a batch sees θ + `radius`·u of seed i, in one pass of the whole batch.

    Each submodule with such parameters is mapped over the rows (`torch.vmap`), so one submodule's weights are there
    `len(seeds)` times at once: meant for adapters.
    `check_rows` says whether that can be had.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    wrapped = []
    for child, own in _owners(module, names):
        child.forward = partial(_row_by_row, child.forward, own, names, tuple(seeds), radius, law)
        wrapped.append(child)
    try:
        yield
    finally:
        for child in wrapped:
            del child.forward


def check_rows(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Refuses parameters that can't differ from row to row.

    Raises:
        UserError: one is an embedding table, which is too large to be there for each row, or is used by a module around
            others that are moved too (a ViT's class token).
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    owners = dict(_owners(module, names))
    for child, own in owners.items():
        name = names[id(own[0][2])]
        if isinstance(child, nn.Embedding) or any(inner in owners for inner in child.modules() if inner is not child):
            raise UserError(
                f"algorithm.directions_per=sample: {name} is trained, and can't differ from row to row; "
                "adapters can (bottom.train=lora, say)"
            )


def _row_by_row(
    forward: Callable[..., Any],
    own: _Own,
    names: Mapping[int, str],
    seeds: tuple[int, ...],
    radius: float,
    law: Law,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A module's forward pass, with weights of its own for each row of the batch."""
    moved = [p.detach() + radius * directions_of(seeds, names[id(p)], p, law=law) for *_, p in own]
    leaves, structure = tree_flatten((args, kwargs))
    # Some models make (B · T, H) of (B, T, H) before a layer: then a row of the batch is T rows of that.
    batched = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) % len(seeds) == 0 for leaf in leaves]
    split = [leaf.unflatten(0, (len(seeds), -1)) if cut else leaf for leaf, cut in zip(leaves, batched, strict=True)]

    def run(weights: list[Tensor], *given: Any) -> Any:
        for (holder, attribute, _), weight in zip(own, weights, strict=True):
            holder._parameters[attribute] = weight  # type: ignore[assignment]
        args, kwargs = tree_unflatten(list(given), structure)
        return forward(*args, **kwargs)

    try:
        out = torch.vmap(run, in_dims=(0, *(0 if cut else None for cut in batched)))(moved, *split)
    finally:
        _restore(own)
    return tree_map(lambda part: part.flatten(0, 1) if isinstance(part, Tensor) else part, out)
