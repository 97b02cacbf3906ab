"""The parts of a cut model as they run: bottom, middle and top.

Each calls the model's own forward pass on its share of the blocks. Texts go in and out without padding, (N, …) for the
N tokens of a batch with the number of tokens of each sample, and are laid out for the blocks as `packing` says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfback.models.families import Family
from halfback.models.packing import Layout, lay_out, one_a_row, parts_of, within


class Bottom(nn.Module):
    """The device's first part: embeddings and the first blocks. `body` has the whole model's parameter names.

    `rows_at_once`: so many rows of a batch go through it at a time where no graph is built, and their activations are
    joined; None for all of them. A device sets it while it runs (`in_rows`), a server that evaluates does not.
    """

    def __init__(self, body: nn.Module, family: Family) -> None:
        super().__init__()
        self.body = body
        self.family = family
        self.rows_at_once: int | None = None

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks before the cut, one or more."""
        backbone = self.body.get_submodule(self.family.backbone)
        return list(cast(nn.ModuleList, backbone.get_submodule(self.family.blocks)))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Activations: (N, H) of the N tokens of B texts, (B, T, H) for ViT, (B, C, H, W) for a ResNet.

        inputs: `input_ids` (N,) and `lengths` (B,), for encoders optionally `token_type_ids` (N,); or `pixel_values`
        (B, C, H, W).
        """
        groups = [inputs] if torch.is_grad_enabled() else self.groups(inputs)
        if len(groups) == 1:
            return self._activations(inputs)
        joined, begin = None, 0
        for group in groups:
            own = self._activations(group)
            if joined is None:
                joined = own.new_empty(rows_of(inputs), *own.shape[1:])
            joined[begin : begin + len(own)] = own
            begin += len(own)
            del own  # before the next ones are computed
        assert joined is not None
        return joined

    def groups(self, inputs: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """The rows of a batch in their order, as many together as go through at a time where no graph is built."""
        lengths, at_once = inputs.get("lengths"), self.rows_at_once
        count = len(inputs["pixel_values"] if lengths is None else lengths)
        if at_once is None or at_once >= count:
            return [inputs]
        if lengths is None:
            return [{"pixel_values": rows} for rows in inputs["pixel_values"].split(at_once)]
        places, groups = parts_of(lengths.tolist()), list[Mapping[str, Tensor]]()
        for first in range(0, count, at_once):
            rows = slice(first, first + at_once)
            tokens = slice(places[first].start, places[rows][-1].stop)
            groups.append({name: each[rows if name == "lengths" else tokens] for name, each in inputs.items()})
        return groups

    def _activations(self, inputs: Mapping[str, Tensor]) -> Tensor:
        backbone = self.body.get_submodule(self.family.backbone)
        if self.family.kind == "image":
            output = backbone(inputs["pixel_values"])
            return output if isinstance(output, Tensor) else output.last_hidden_state
        layout = layout_of(self.body, self.family, inputs["lengths"])
        ids = layout.lay(inputs["input_ids"])
        arguments = {"input_ids": ids}
        if self.family.kind == "encoder" and "token_type_ids" in inputs:
            arguments["token_type_ids"] = layout.lay(inputs["token_type_ids"])
        arguments |= _text_arguments(self.family, layout, next(self.body.parameters()).dtype)
        if self.family.positions_behind_padding:
            arguments["position_ids"] = _positions_behind(cast(Any, self.body.config).pad_token_id, ids, layout)
        return _hidden_of(backbone, arguments, layout)

    def layouts(self, inputs: Mapping[str, Tensor]) -> list[Layout | None]:
        """How the tokens of each group of rows are laid out where the blocks run; None for images."""
        return [
            layout_of(self.body, self.family, group["lengths"]) if "lengths" in group else None
            for group in self.groups(inputs)
        ]


class Middle(nn.Module):
    """The server's part in the U-shape: blocks between two cuts. `body` has the whole model's parameter names."""

    def __init__(self, body: nn.Module, family: Family) -> None:
        super().__init__()
        self.body = body
        self.family = family

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Activations at the second cut, before the final norm, from those at the first and the texts' lengths (B,)."""
        backbone = self.body.get_submodule(self.family.backbone)
        if lengths is None:
            output = backbone(hidden)
            return output if isinstance(output, Tensor) else output.last_hidden_state
        layout = layout_of(self.body, self.family, lengths)
        arguments = _text_arguments(self.family, layout, hidden.dtype)
        return _hidden_of(backbone, {"inputs_embeds": layout.lay(hidden)} | arguments, layout)


class Top(nn.Module):
    """The last part: the blocks after the (last) cut, final norm and head layer; the server's half, or a device's head.

    `body` has the whole model's parameter names.
    """

    def __init__(self, body: nn.Module, family: Family, verbaliser: Sequence[int] | None) -> None:
        super().__init__()
        self.body = body
        self.family = family
        self.verbaliser = None if verbaliser is None else tuple(verbaliser)

    @property
    def scores_tokens(self) -> bool:
        """Whether there are logits for every token, as of a language model, and not for every sample."""
        return self.verbaliser is None and hasattr(self.body, "lm_head")

    def forward(self, hidden: Tensor, lengths: Tensor | None, scored: Tensor | None = None) -> Tensor:
        """Logits: (B, classes), or (N, vocabulary) for a causal language model without a verbaliser.

        hidden: the activations at the cut before it. lengths: the tokens of each text, (B,); None for images.
        scored: of a language model, the places (S,) of the tokens whose logits (S, vocabulary) are wanted; None for
        all. A text's answer is read at its first token (encoder) or its last (decoder).
        """
        if lengths is None:
            output = self.body(hidden)
            return output if isinstance(output, Tensor) else output.logits
        layout = layout_of(self.body, self.family, lengths)
        arguments = _text_arguments(self.family, layout, hidden.dtype)
        if self.family.module is not None:
            output = self.body(inputs_embeds=layout.lay(hidden), **arguments)
            logits = output if isinstance(output, Tensor) else output.logits
            logits = layout.take(logits) if logits.ndim == 3 else logits
            return logits if scored is None else logits.index_select(0, scored)
        one_row = self.scores_tokens
        read = scored if one_row else layout.ends(last=self.family.kind == "decoder")
        with _laid_out(self.body, self.family, layout, hidden, partial(_read, read=read, one_row=one_row)):
            output = self.body(inputs_embeds=_read(hidden, read, one_row=one_row), **arguments)
        if self.verbaliser is None:
            return output.logits[0] if one_row else output.logits
        return output.logits[:, -1, list(self.verbaliser)]


class LocalModel(nn.Module):
    """A bottom with a head behind it, auxiliary or the whole top: a device's own way from the inputs to logits."""

    def __init__(self, bottom: Bottom, head: nn.Module) -> None:
        super().__init__()
        self.bottom = bottom
        self.head = head

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks before the cut."""
        return self.bottom.blocks

    def forward(self, inputs: Mapping[str, Tensor], scored: Tensor | None = None) -> Tensor:
        """Logits as of `Top.forward`, from what `Bottom.forward` takes."""
        return self.head(self.bottom(inputs), inputs.get("lengths"), scored)

    def pieces(self, inputs: Mapping[str, Tensor], scored: Tensor | None = None) -> Iterator[Tensor]:
        """The same logits, those of as many rows at a time as go through the bottom; for where no graph is built."""
        hidden, begin = self.bottom(inputs), 0
        for group in self.bottom.groups(inputs):
            part = slice(begin, begin + rows_of(group))
            yield self.head(hidden[part], group.get("lengths"), within(scored, part))
            begin = part.stop


def rows_of(inputs: Mapping[str, Tensor]) -> int:
    """How many rows the activations of a batch have: one for each token of its texts, or for each image."""
    return len(inputs["input_ids" if "lengths" in inputs else "pixel_values"])


@contextmanager
def in_rows(bottom: Bottom, at_once: int | None) -> Iterator[None]:
    """While this context is open, so many rows go through at a time where no graph is built; None for all."""
    before, bottom.rows_at_once = bottom.rows_at_once, at_once
    try:
        yield
    finally:
        bottom.rows_at_once = before


def layout_of(body: nn.Module, family: Family, lengths: Tensor) -> Layout:
    """How a part of a model wants texts of these lengths, (B,)."""
    if family.module is not None:
        return one_a_row(lengths, left=family.kind == "decoder")
    return lay_out(lengths, cast(Any, body.config).hidden_size)


def _text_arguments(family: Family, layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    """What the forward pass of any part takes beside the tokens or the activations, which have this dtype."""
    if family.module is not None:
        return {"attention_mask": (layout.samples >= 0).long()}
    arguments: dict[str, Any] = {"position_ids": layout.positions, "return_dict": True}
    if family.kind == "decoder":
        arguments["use_cache"] = False
    if family.sees_by_positions:
        return arguments
    bias = layout.bias(dtype, causal=family.kind == "decoder")
    # Two dimensions of ones are as good as no mask to an encoder, which warns where it is given none.
    return arguments | {"attention_mask": torch.ones_like(layout.positions) if bias is None else bias}


def _positions_behind(padding: int, ids: Tensor, layout: Layout) -> Tensor:
    """(R, M): how many tokens of its text a token ends that are not the padding's, from behind the padding's number."""
    counted = (ids != padding).long()
    before = nn.functional.pad(counted.cumsum(1), (1, 0))
    firsts = torch.arange(ids.shape[1], device=ids.device) - layout.positions
    return (counted.cumsum(1) - before.gather(1, firsts)) * counted + padding


def _hidden_of(backbone: nn.Module, arguments: Mapping[str, Any], layout: Layout) -> Tensor:
    output = backbone(**arguments)
    return layout.take(output if isinstance(output, Tensor) else output.last_hidden_state)


def _read(tokens: Tensor, read: Tensor | None, *, one_row: bool) -> Tensor:
    """What a head takes of (N, H): the tokens `read`, in one row (1, S, H) or one for each (B, 1, H)."""
    return (tokens if read is None else tokens.index_select(0, read)).unsqueeze(0 if one_row else 1)


@contextmanager
def _laid_out(
    body: nn.Module, family: Family, layout: Layout, hidden: Tensor, read: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """While this context is open, the backbone runs on the layout, and what is around it sees what it reads alone.

    So a head meets a batch as it knows one, and neither it nor a pooler reads the first or last place of a row.
    """
    backbone = body.get_submodule(family.backbone)

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"inputs_embeds": layout.lay(hidden)}

    def pool(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (read(layout.take(args[0])), *args[1:])

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = read(layout.take(output.last_hidden_state))
        return output

    pooled = [backbone._modules.get(name) for name in family.after if family.kind == "encoder"]
    handles = [module.register_forward_pre_hook(pool) for module in pooled if module is not None]
    handles.append(backbone.register_forward_pre_hook(enter, with_kwargs=True))
    handles.append(backbone.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
