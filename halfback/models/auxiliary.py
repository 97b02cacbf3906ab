"""Auxiliary heads: what turns activations at the cut into logits on a device, so that it has a loss of its own.

CSE-FSL (arXiv 2507.15816), FSL-SAGE (2505.23182) and HERON-SFL (2601.09076) leave open what such a head is. Ours: a
linear layer on pooled activations, or a copy of the top with its first blocks alone.
"""

import copy
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.adapters import Lora, Trained, draw_start, set_trainable_copy, trainable, without_adapters
from halfback.models.cut import CutModel, top_body
from halfback.models.families import Kind
from halfback.models.own import OwnSettings
from halfback.models.resnet import ResNet
from halfback.models.running import Top


@final
class LinearHead(nn.Module):
    """One linear layer, in float32, on the activations of a row pooled to one vector (Ours).

    Pooled how: of images the mean over places, of encoders the mean over a text's tokens (the first one, which a pooler
    reads, says little this early), of decoders the last one, where the top reads too.
    """

    def __init__(self, kind: Kind, width: int, num_labels: int, seed: int) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.utils.skip_init(nn.Linear, width, num_labels)
        # Not zeros: through them no gradient would reach the bottom, and no probe of it would change the loss.
        self.linear.weight.data.copy_(draw_start((num_labels, width), seed, "linear.weight"))
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, lengths: Tensor | None, scored: None = None) -> Tensor:
        """Logits (B, classes), float32, from activations (N, H) of texts of these lengths (B,), or of images (B, …).

        scored: none, since it has no logits of tokens.
        """
        return self.linear(self._pooled(hidden.float(), lengths))

    def _pooled(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return hidden.mean(dim=(2, 3) if hidden.dim() == 4 else 1) if hidden.dim() > 2 else hidden
        counts = lengths.to(hidden.device, torch.int64)
        if self.kind == "decoder":
            return hidden.index_select(0, counts.cumsum(0) - 1)
        numbers = torch.arange(len(counts), device=hidden.device)
        owners = torch.repeat_interleave(numbers, counts, output_size=len(hidden))
        sums = hidden.new_zeros(len(counts), hidden.shape[1]).index_add(0, owners, hidden)
        return sums / counts.to(hidden.dtype).unsqueeze(1)


def auxiliary(
    model: CutModel, kind: Literal["linear"] | int, *, num_labels: int, trained: Trained, lora: Lora, seed: int
) -> LinearHead | Top:
    """A head for the device: `forward(hidden, lengths)` gives the logits that `Top.forward` is defined to give.

    kind: "linear", or how many of the first blocks after the cut are copied (0 or more), with all that follows the
    last block. num_labels: classes, for "linear". trained, lora: as for `set_trainable`; a linear head has no adapters,
    so it is trained whole unless `trained` is "none".

    Called after `set_trainable`, which decides what may be shared, and before training: a copy starts from the
    pretrained weights, without the top's adapters and with its own, which start from (`seed`, name). A tensor that
    nobody trains, on neither side, is the model's own; every other is a copy, so nothing of `model` ever moves with it.
    Raises UserError for a linear head of a language model, a number of blocks that the top has not, or one whose
    output does not fit the head layer, or with which nothing is trained.
    """
    if kind == "linear":
        head: LinearHead | Top = _linear(model, num_labels, seed)
        head.requires_grad_(trained != "none")
    else:
        head = _copied(model, kind, trained)
        set_trainable_copy(head, trained, lora, seed)
        if trained == "lora" and not trainable(head):
            raise UserError(
                f"auxiliary is {kind} and trains 'lora', which has nothing to adapt there; more blocks, or 'full', "
                "are allowed"
            )
    if isinstance(settings := model.whole.config, OwnSettings):
        _check_fit(model, head, settings)
    return head.eval()


def _check_fit(model: CutModel, head: LinearHead | Top, settings: OwnSettings) -> None:
    """Runs a head of somebody's own module once: nobody knows beforehand which blocks' outputs fit what follows."""
    try:
        _example(model, settings, head)
    except RuntimeError:
        raise UserError(
            "model.auxiliary: what these blocks of the given model give doesn't fit what follows its last block; use "
            "another number of blocks, or 'linear'"
        ) from None


@torch.no_grad()
def _example(model: CutModel, settings: OwnSettings, head: nn.Module | None = None) -> Tensor:
    """The activations at the cut of one row, or what `head` makes of them."""
    device = next(model.whole.parameters()).device
    inputs = {name: rows.to(device) for name, rows in settings.example.items()}
    hidden = model.bottom(inputs)
    return hidden if head is None else head(hidden, inputs.get("lengths"))


def _linear(model: CutModel, num_labels: int, seed: int) -> LinearHead:
    if _has_logits_for_every_token(model):
        raise UserError(
            f"auxiliary is 'linear', which gives no logits for every token; 0 to {model.blocks - model.at} blocks are "
            "allowed for language modelling and generation"
        )
    head = LinearHead(model.family.kind, _width(model), num_labels, seed)
    return head.to(next(model.whole.parameters()).device)


def _copied(model: CutModel, blocks: int, trained: Trained) -> Top:
    most, least = model.blocks - model.at, 0
    if isinstance(model.whole, ResNet):
        # Its head layer takes the channels of the last stage, which the first block of that stage makes.
        least = max(sum(model.whole.stages[:-1]) + 1 - model.at, 0)
    if not least <= blocks <= most:
        why = ", as the head layer takes the last stage's channels" if least else ""
        linear = "" if _has_logits_for_every_token(model) else " and 'linear'"
        raise UserError(
            f"auxiliary is {blocks}; with cut {model.at} of {model.blocks} blocks, {least} to {most}{linear} are "
            f"allowed{why}"
        )
    body = top_body(model.whole, model.family, model.at, model.at + blocks)
    own = {id(parameter) for parameter in body.parameters() if parameter.requires_grad or trained == "full"}
    if trained == "lora":
        heads = [getattr(body, name) for name in model.family.head if hasattr(body, name)]
        own |= {id(parameter) for head in heads for parameter in head.parameters()}
    # What `deepcopy` finds in its memo it takes as it is.
    shared = {id(parameter): parameter for parameter in body.parameters() if id(parameter) not in own}
    return Top(without_adapters(copy.deepcopy(body, shared)), model.family, _last(model).verbaliser)


def _last(model: CutModel) -> Top:
    return cast(Top, model.head or model.top)


def _has_logits_for_every_token(model: CutModel) -> bool:
    return _last(model).scores_tokens


def _width(model: CutModel) -> int:
    """Features of the activations at the cut: H, or C of a ResNet."""
    if isinstance(model.whole.config, OwnSettings):
        hidden = _example(model, model.whole.config)
        return hidden.shape[1] if hidden.dim() == 4 else hidden.shape[-1]
    if isinstance(model.whole, ResNet):
        return cast(nn.BatchNorm2d, model.whole.blocks[model.at - 1].bn2).num_features
    return cast(int, model.whole.config.hidden_size)  # type: ignore[union-attr]
