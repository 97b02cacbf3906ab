"""The head of the U-shape as one graph: what it makes of one sample's hidden states, the loss, and its gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from halfback.models.adapters import trainable
from halfback.models.packing import Layout
from halfback.models.running import Top, _laid_out, _read
from halfback.packaging.calls import plain_attention
from halfback.packaging.tracing import Argument, Graph, differentiated, free_sizes, written


@dataclass(frozen=True)
class HeadPiece:
    """A head: its graph, the names of its frozen tensors in the package's file, and what it reads of a text.

    read: of a text, the "first" or the "last" of its tokens, or those that are "scored"; "all" of an image.
    """

    graph: Graph
    weights: tuple[str, ...]
    read: str


class _Scores(nn.Module):
    """The head on one text that is one row, or on one image; what a graph has as inputs, it has as arguments."""

    def __init__(self, top: Top) -> None:
        super().__init__()
        self.top = top

    def forward(self, hidden: Tensor, read: Tensor | None) -> Tensor:
        """Logits, (1, classes) or (S, vocabulary)."""
        top, family = self.top, self.top.family
        if read is None:
            output = top.body(hidden)
            return output if isinstance(output, Tensor) else output.logits
        places = torch.arange(hidden.shape[0])  # no len(), which would settle it
        layout = Layout((), None, places.unsqueeze(0), torch.zeros_like(places).unsqueeze(0))
        arguments: dict[str, Any] = {
            "position_ids": layout.positions,
            "attention_mask": self._masks(places, hidden),
            "return_dict": True,
        }
        if family.kind == "decoder":
            arguments["use_cache"] = False
        one_row = top.scores_tokens
        with _laid_out(top.body, family, layout, hidden, partial(_read, read=read, one_row=one_row)):
            output = top.body(inputs_embeds=_read(hidden, read, one_row=one_row), **arguments)
        if top.verbaliser is None:
            return output.logits[0] if one_row else output.logits  # type: ignore[no-any-return]
        return output.logits[:, -1, list(top.verbaliser)]  # type: ignore[no-any-return]

    def _masks(self, places: Tensor, hidden: Tensor) -> Any:
        """What is added to the scores of attention; where blocks differ in what they see, by the name of their kind."""
        config = cast(Any, self.top.body).config
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        ahead = places.unsqueeze(0) - places.unsqueeze(1)

        def mask(within: int | None) -> Tensor:
            hides = torch.zeros_like(ahead, dtype=torch.bool)
            if self.top.family.kind == "decoder":
                hides = ahead > 0
                if within is not None:
                    hides = hides | (ahead <= -within)
            least = torch.full_like(ahead, torch.finfo(hidden.dtype).min, dtype=hidden.dtype)
            return torch.where(hides, least, torch.zeros_like(least))[None, None]

        if kinds is None:
            return mask(window)
        return {kind: mask(window if kind == "sliding_attention" else None) for kind in set(kinds)}


def head_piece(top: Top, names: Mapping[int, str], hidden: Tensor) -> HeadPiece:
    """The graph of a head.

    It takes `hidden` (M, H) of a text or (1, …) of an image, the places `read` of a text, their `labels`, and `scale`,
    what each label counts in the batch's mean loss; it gives the sum of their losses, each times `scale`, and its
    gradients by `hidden` and by the head's trained tensors in order, which are inputs as its frozen ones are.

    Args:
        top: what is behind the middle.
        names: of each of its tensors in the package's file, by identity.
        hidden: of an image, such activations; of a text, any (M, H).

    Raises:
        UserError: an operator of it can't be exported.
    """
    scores, texts = _Scores(top), top.family.kind != "image"
    trained = {f"top.{name}": tensor for name, tensor in trainable(top).items()}
    frozen = {
        name: tensor
        for name, tensor in (*scores.named_parameters(), *scores.named_buffers())
        if name not in trained and id(tensor) in names
    }
    places, count, *_ = free_sizes(top)
    tokens = texts and top.scores_tokens
    arguments = {"hidden": Argument(hidden)}
    if texts:
        arguments["hidden"] = Argument(torch.randn(places, hidden.shape[-1]), (0,))
        arguments["read"] = Argument(torch.arange(count if tokens else 1), (0,) if tokens else ())
    arguments["labels"] = Argument(torch.zeros(count if tokens else 1, dtype=torch.int64), (0,) if tokens else ())
    arguments["scale"] = Argument(torch.ones(()))
    arguments |= {f"w{place}": Argument(tensor.detach()) for place, tensor in enumerate(frozen.values())}
    arguments |= {f"t{place}": Argument(tensor.detach()) for place, tensor in enumerate(trained.values())}

    def gradients(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        held = {name: given[f"w{place}"] for place, name in enumerate(frozen)}

        def logits(states: Tensor, *moved: Tensor) -> Tensor:
            tensors = held | dict(zip(trained, moved, strict=True))
            return cast(Tensor, functional_call(scores, tensors, (states, given.get("read"))))

        made: Any = vjp(logits, given["hidden"], *(given[f"t{place}"] for place in range(len(trained))))
        found, pull = made
        # ∂ of the cross-entropy by logits is the classes' probabilities but for 1 at the label.
        logarithms = torch.log_softmax(found, -1)
        labels = given["labels"].unsqueeze(-1)
        is_label = (labels == torch.arange(found.shape[-1])).to(found.dtype)
        loss = -(logarithms * is_label).sum() * given["scale"]
        return (loss, *pull((logarithms.exp() - is_label) * given["scale"]))

    with plain_attention([top]):
        program = differentiated(gradients, arguments, "the head")
        graph = written(program, list(arguments), "the head")
    read = "all" if not texts else "scored" if tokens else "last" if top.family.kind == "decoder" else "first"
    return HeadPiece(graph, tuple(names[id(tensor)] for tensor in frozen.values()), read)
