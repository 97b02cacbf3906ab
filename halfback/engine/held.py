"""What a client holds of a model, as named tensors."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def held(parts: Sequence[nn.Module], theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of what a client holds of a model, by name: its parts' parameters and buffers.

    `theta` are tensors of the first part that may not be in their places now.
    """
    found = {f"{place}.{name}": t for place, part in enumerate(parts) for name, t in part.state_dict().items()}
    own = {name for name, _ in (*parts[0].named_parameters(), *parts[0].named_buffers())}
    return found | {f"0.{name}": parameter.detach() for name, parameter in theta.items() if name in own}
