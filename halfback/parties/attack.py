"""Clients that lie, for those who study what it costs and what helps: in a simulation alone.

A liar does its work as the others do. What is changed is what the server hears of it, so that all liars of a cohort can
go by what all of it says, as in the attacks of the literature. Labels alone are changed before the work
(`label_flip`).

A lie is about slopes, about exact gradients, or about how a client has moved its weights since the round began.

`little_is_enough`: Baruch et al. (2019, arXiv 1902.06156): all liars say, coordinate by coordinate, the mean of the
honest less some of their standard deviations, which the others' spread hides. Ours: the honest are the cohort's, whom
the paper's liars know by their own; the number of deviations is a setting, where the paper has the most that hide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from halfback.errors import UserError
from halfback.parties.server import Server
from halfback.wire.messages import Both, Exact, Slopes, Weights
from halfback.zeroth.directions import seed_for

M = TypeVar("M")
_STRENGTH = {"sign_flip": 1.0, "scale": 100.0, "noise": 100.0, "little_is_enough": 1.0}


@dataclass(frozen=True)
class Attack:
    """Which clients of a simulation lie, and how.

    Attributes:
        name: `sign_flip`: what is true times −`strength`; `scale`: times `strength`; `noise`: Gaussian, of `strength`
            times the size (root mean square) of what is true; `little_is_enough`: the mean of the honest less
            `strength` standard deviations; `label_flip`: honest work on class C − 1 − y in the place of y.
        clients: the numbers of those who lie, or how many, from client 0 on.
        strength: how much; null for 1, of `scale` and `noise` for 100.
    """

    name: Literal["none", "sign_flip", "scale", "noise", "little_is_enough", "label_flip"] = "none"
    clients: int | tuple[int, ...] = 1
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and not self.strength > 0:
            raise UserError(f"attack.strength={self.strength:g}: a positive number is allowed")
        if isinstance(self.clients, int) and self.clients < 1:
            raise UserError(f"attack.clients={self.clients}: 1 or more are allowed, or a list of clients' numbers")

    @property
    def liars(self) -> tuple[int, ...]:
        """The numbers of those who lie; none without an attack."""
        if self.name == "none":
            return ()
        return tuple(range(self.clients)) if isinstance(self.clients, int) else self.clients

    @property
    def says(self) -> bool:
        """Whether what liars say is changed, and not what they work on."""
        return self.name in _STRENGTH


@dataclass(frozen=True)
class Liars:
    """What the server of a simulation hears in the place of the truth.

    Attributes:
        attack: who lies, and how.
        seed: of the run.
    """

    attack: Attack
    seed: int

    @torch.no_grad()
    def heard(self, server: Server, messages: Mapping[int, M]) -> dict[int, M]:
        """What all clients of an exchange say, of which the liars' is changed."""
        lying = [client for client in messages if client in self.attack.liars]
        said = {client: _said(server, client, message) for client, message in messages.items()}
        return {
            client: _saying(server, client, message, self._lie(server, client, said))
            if client in lying and said[client]
            else message
            for client, message in messages.items()
        }

    def _lie(self, server: Server, client: int, said: Mapping[int, list[Tensor]]) -> list[Tensor]:
        """In the place of a liar's own; what is not finite is left to be found."""
        mine, name = said[client], self.attack.name
        strength = _STRENGTH[name] if self.attack.strength is None else self.attack.strength
        match name:
            case "sign_flip":
                return [-strength * each for each in mine]
            case "scale":
                return [strength * each for each in mine]
            case "noise":
                seed = seed_for(self.seed, "attack", server.steps, client)
                noise = torch.Generator().manual_seed(seed)
                size = [strength * each.square().mean().sqrt() for each in mine]
                drawn = [torch.randn(each.shape, generator=noise, dtype=each.dtype) for each in mine]
                return [of.to(each.device) * much for of, each, much in zip(drawn, mine, size, strict=True)]
            case _:
                groups, shapes = server.cohort.groups.get(client), [each.shape for each in mine]
                honest = [
                    of
                    for other, of in said.items()
                    if other not in self.attack.liars
                    and server.cohort.groups.get(other) == groups
                    and [each.shape for each in of] == shapes
                ]
                spread = [torch.stack(same) for same in zip(*honest, strict=True)]
                # Who has nobody to hide behind says what is true.
                return [each.mean(dim=0) - strength * each.std(dim=0, correction=0) for each in spread] or mine


def _said(server: Server, client: int, message: Any) -> list[Tensor]:
    """What a lie could be about, float64: slopes, exact gradients, moves of weights; nothing of other messages."""
    match message:
        case Slopes() | Exact():
            return [message.values.double()]
        case Both():
            return [*_said(server, client, message.first), *_said(server, client, message.second)]
        case Weights():
            begun = _begun(server, client)
            if [each.shape for each in message.tensors] != [each.shape for each in begun]:
                return []  # which the server refuses
            return [own.double() - was.double() for own, was in zip(message.tensors, begun, strict=True)]
        case _:
            return []


def _saying(server: Server, client: int, message: Any, lies: list[Tensor]) -> Any:
    """The message with these values in the place of those that `_said` gives."""
    match message:
        case Slopes() | Exact():
            return replace(message, values=lies[0].to(message.values.dtype))
        case Both():
            count = len(_said(server, client, message.first))
            first = _saying(server, client, message.first, lies[:count]) if count else message.first
            second = _saying(server, client, message.second, lies[count:]) if lies[count:] else message.second
            return Both(first, second)
        case _:
            begun = _begun(server, client)
            pairs = zip(begun, lies, message.tensors, strict=True)
            return Weights(tuple((was.double() + moved).to(own.dtype) for was, moved, own in pairs))


def _begun(server: Server, client: int) -> list[Tensor]:
    """The parameters that a client says of its θ, as they were when the round began."""
    below = server.cohort.boundaries[client].below if server.cohort.boundaries else ()
    return [parameter for name, parameter in server.agreed.replica.parameters.items() if name not in below]
