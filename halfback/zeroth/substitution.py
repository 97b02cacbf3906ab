"""Other weights for a module while it runs, and only then: its own parameters are never changed."""

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from halfback.zeroth.widening import is_wide, paused

Substitute = Callable[[str, Tensor, Tensor | None], Tensor]
_Own = list[tuple[nn.Module, str, str, nn.Parameter]]  # holder, attribute, name, parameter
_HOLDERS = (nn.ParameterDict, nn.ParameterList)  # never run: the module around them uses their parameters


_IN_FORCE: ContextVar[tuple[Hashable, ...]] = ContextVar("in_force", default=())


def in_force() -> tuple[Hashable, ...]:
    """What stands in for parameters while a module runs now, and in what precision: equal where the same does."""
    return is_wide(), *_IN_FORCE.get()


@contextmanager
def substituted(
    module: nn.Module, parameters: Mapping[str, Tensor], substitute: Substitute, known_as: Hashable
) -> Iterator[None]:
    """While this context is open, each submodule's `forward` sees `substitute(name, parameter, rows)` for its weights.

    Hooks before and behind a `forward` see the live ones.

    Args:
        module: the tree whose submodules run.
        parameters: name → parameter (by identity) to be replaced; others are left alone.
        substitute: gives the replacement; `rows` is None for the whole parameter or, for an embedding table, the (n,)
            distinct rows that this call uses: the replacement then has only these rows.
        known_as: what `in_force` says meanwhile; another for whatever gives other replacements.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    before: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    known = _IN_FORCE.set((*_IN_FORCE.get(), known_as))
    try:
        for child in module.modules():
            if isinstance(child, _HOLDERS):
                continue
            holders = [child, *(part for part in child._modules.values() if isinstance(part, _HOLDERS))]
            own = [
                (h, attribute, names[id(p)], p)
                for h in holders
                for attribute, p in h._parameters.items()
                if p is not None and id(p) in names
            ]
            if own:
                # In place of `forward` itself: hooks before and behind it would cost a small module as much again.
                before.append((child, child.__dict__.get("forward")))
                child.__dict__["forward"] = _with_substitutes(child, own, substitute)
        yield
    finally:
        _IN_FORCE.reset(known)
        for child, forward in before:
            if forward is None:
                child.__dict__.pop("forward", None)
            else:
                child.__dict__["forward"] = forward


def _with_substitutes(module: nn.Module, own: _Own, substitute: Substitute) -> Callable[..., Any]:
    """The module's `forward`, during which it has substitutes for its own parameters."""
    forward = module.forward
    table = module if isinstance(module, nn.Embedding) and _looks_up_ids(module) else None
    padding = None if table is None else table.padding_idx

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            if table is not None and len(args) == 1:
                holder, attribute, name, parameter = own[0]
                table.padding_idx = None  # meant for row numbers of the whole table, and only for its gradient
                with paused():
                    rows, ids = torch.unique(args[0], return_inverse=True)
                    holder._parameters[attribute] = substitute(name, parameter, rows)  # type: ignore[assignment]
                return forward(ids, **kwargs)
            with paused():
                for holder, attribute, name, parameter in own:
                    holder._parameters[attribute] = substitute(name, parameter, None)  # type: ignore[assignment]
            return forward(*args, **kwargs)
        finally:
            for holder, attribute, _, parameter in own:
                holder._parameters[attribute] = parameter
            if table is not None:
                table.padding_idx = padding

    return run


def _looks_up_ids(module: nn.Embedding) -> bool:
    """Whether a call's one argument is the row numbers (learned positions compute theirs from other arguments)."""
    return list(inspect.signature(type(module).forward).parameters)[1] in ("input", "input_ids")
