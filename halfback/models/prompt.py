"""A soft prompt of the device's own: trained vectors before the tokens, which stay below the cut."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halfback.models.families import Family


class SoftPrompt(nn.Module):
    """Vectors before a text's embeddings (prompt tuning, Lester et al., arXiv 2104.08691).

    The blocks of the bottom attend to them, and they are dropped at the cut **(ours)**: what is sent has the size of
    before, and the server's part takes what it took.
    """

    def __init__(self, start: Tensor) -> None:
        """`start`: (n, H)."""
        super().__init__()
        self.weight = nn.Parameter(start)

    def __len__(self) -> int:
        return len(self.weight)

    def forward(self, embedded: Tensor) -> Tensor:
        """(B, n + T, H) from (B, T, H)."""
        own = self.weight.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([own, embedded], dim=1)

    def arguments(self, family: Family, backbone: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the backbone's forward pass takes with the prompt in place of what it takes without.

        All of the prompt's vectors are at the first position, and the text keeps its own ones **(ours)**. They stand
        behind the padding on a text's left, where a sliding window still sees them.
        """
        ids, mask = arguments["input_ids"], arguments["attention_mask"]
        positions, first = _positions(family, backbone, ids, mask)
        before = ids.new_zeros(len(ids), len(self))
        padding, here = _padding(mask), torch.arange(len(self) + ids.shape[1], device=ids.device)
        text = torch.where(here < padding, here + len(self), here)
        places = torch.where((here >= padding) & (here < padding + len(self)), here - padding, text)
        embedded = self(backbone.get_input_embeddings()(ids))
        changed = {
            "inputs_embeds": embedded.gather(1, places.unsqueeze(-1).expand_as(embedded)),
            "attention_mask": torch.cat([before + 1, mask], dim=1).gather(1, places),
            "position_ids": torch.cat([before + first, positions], dim=1).gather(1, places),
        }
        if "token_type_ids" in arguments:
            changed["token_type_ids"] = torch.cat([before, arguments["token_type_ids"]], dim=1).gather(1, places)
        return {name: value for name, value in arguments.items() if name != "input_ids"} | changed

    def without(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, H): the text's part of (B, n + T, H), for its mask (B, T)."""
        here = torch.arange(mask.shape[1], device=hidden.device)
        places = torch.where(here < _padding(mask), here, here + len(self))
        return hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def _padding(mask: Tensor) -> Tensor:
    """(B, 1): the places that each text begins with and does not use."""
    return (mask.cumsum(-1) == 0).sum(-1, keepdim=True)


def _positions(family: Family, backbone: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """The positions that the model itself gives to a text, (B, T), and the number of the first one."""
    if family.kind == "decoder":
        return (mask.cumsum(-1) - 1).clamp(min=0), 0
    if (count := getattr(backbone.embeddings, "create_position_ids_from_input_ids", None)) is not None:
        padding = backbone.embeddings.padding_idx
        return count(ids, padding), padding + 1
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids), 0
