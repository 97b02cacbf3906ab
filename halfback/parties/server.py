"""The server as an algorithm sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from halfback.models.adapters import trainable
from halfback.models.normalising import statistics
from halfback.parties.agreed import Agreed
from halfback.parties.cohort import Cohort
from halfback.parties.holdings import Above, Descent, HiddenForm, Round
from halfback.parties.server_step import Averaging
from halfback.zeroth.replay import Replica

Value = TypeVar("Value")


class Memory(Protocol):
    """What one method keeps between two exchanges, or from round to round; an object of the method's own."""

    def forget(self, client: int) -> None:
        """Drops what a client began: it has left in the middle of a round.

        Args:
            client: its number.
        """
        ...


@runtime_checkable
class Lasting(Memory, Protocol):
    """A memory that lasts from round to round, and is in checkpoints; a method's `Needs.lasting` names its class."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the memory.

        Returns:
            All of it, named `CLIENT.NAME`; tensors are replaced, never changed in place.
        """
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint.

        Args:
            tensors: what the method `tensors` gave.
        """
        ...


@dataclass
class ByClient(Generic[Value]):
    """The memory of a method that keeps one thing of each client, until it is done with.

    Attributes:
        of: the thing, by the client's number.
    """

    of: dict[int, Value] = field(default_factory=dict)

    def forget(self, client: int) -> None:
        """Drops what is kept of a client.

        Args:
            client: its number.
        """
        self.of.pop(client, None)


@dataclass
class TensorsByClient:
    """A lasting memory of named tensors of each client.

    Attributes:
        of: the tensors by name, by the client's number.
    """

    of: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def forget(self, client: int) -> None:
        """Keeps all: nothing of it belongs to a round that is under way.

        Args:
            client: the number of the one that has left.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the memory.

        Returns:
            All of it, named `CLIENT.NAME`.
        """
        return {f"{client}.{name}": tensor for client, held in self.of.items() for name, tensor in held.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint.

        Args:
            tensors: what the method `tensors` gave.
        """
        for name, tensor in tensors.items():
            client, of_client = name.split(".", 1)
            self.of.setdefault(int(client), {})[of_client] = tensor


Kind = TypeVar("Kind", bound=Memory)


@dataclass
class Top:
    """The server's part of the model, and what moves it.

    Attributes:
        module: in the U-shape, the middle. With a cut for each client, what is behind the deepest.
        loss: (logits, labels) → mean loss of a batch, a scalar.
        form: what activations must be.
        scores_tokens: whether the labels of texts are those of their tokens, of which some go without a loss.
        above: by client, what is behind a cut that is not the deepest: blocks of θ, moved by replay alone, and the top.
        head: in the U-shape, the trainable tensors of the devices' head, moved with the top; else None.
        descent: how gradients move it; None where they don't.
        replica: its parameters, when they too are moved along seeded directions.
        one_pass: whether the batches of a cohort go through it as one; the engine says so, round by round.
        norms: batch norms of the module that train, while the server answers.
        passes: in the U-shape, by client, what came at the first cut and went at the second, with the graph between.
    """

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    form: HiddenForm
    scores_tokens: bool = False
    above: dict[int, Above] = field(default_factory=dict)
    head: dict[str, nn.Parameter] | None = None
    descent: Descent | None = None
    replica: Replica | None = None
    one_pass: bool = False
    norms: Sequence[nn.BatchNorm2d] = ()
    passes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, client: int) -> Above:
        """Finds what takes a client's activations.

        Args:
            client: its number.

        Returns:
            The model behind this client's cut, and the form that its activations must have.
        """
        return self.above.get(client) or Above(self.module, self.form)

    @property
    def trained(self) -> dict[str, Tensor]:
        """What training moves of the module, by name: its parameters, and running statistics of norms that train."""
        return trainable(self.module) | (statistics(self.module) if self.norms else {})

    @property
    def first_order(self) -> Descent:
        """How gradients move it, in a method that needs them."""
        assert self.descent is not None, "an algorithm whose top is backpropagated gets an optimiser"
        return self.descent

    @property
    def replayed(self) -> Replica:
        """Its parameters as replay moves them, in a method that needs that."""
        assert self.replica is not None, "an algorithm with a replayed top gets a replica of it"
        return self.replica

    def move(self, step: int) -> None:
        """Takes a step on the gradients that its parameters hold, which are then used up.

        Args:
            step: of the run, for the learning rate.
        """
        self.first_order.step(step)
        self.passes = {}  # their graphs belong to the weights of before


@dataclass
class Server:
    """The server as an algorithm sees it.

    Attributes:
        top: its part of the model.
        agreed: the clients' θ, as they have agreed on it.
        cohort: how much each client counts, and what of θ it measures.
        round: the one that runs.
        steps: the run's step that the cohort's next batch belongs to, from which schedules take their factor: where
            the round begins, says the engine (`begin`), and one more for each step that is taken.
        losses: training losses since the engine last took them.
        memory: what the method keeps between two exchanges, or longer: see `recall`.
        averaging: how θ moves where the clients' weights are averaged; None where it becomes their mean.
        auxiliary: the devices' auxiliary head, to be called with those of the agreed parameters that are its own.
    """

    top: Top
    agreed: Agreed
    cohort: Cohort = field(default_factory=Cohort)
    round: Round = Round(0, 0, 0)
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    memory: Memory | None = None
    averaging: Averaging | None = None
    auxiliary: nn.Module | None = None

    def begin(self, round: Round) -> None:
        """A round begins, or where clients take turns, the turn of one of them; the engine says so.

        Args:
            round: which it is.
        """
        self.round, self.steps = round, round.first
        self.agreed.begin(round.first)

    def recall(self, kind: type[Kind]) -> Kind:
        """The method's memory, made when it is first asked for.

        Args:
            kind: its class, which makes an empty one without arguments.

        Returns:
            The memory, the same one until the round or the run is over.
        """
        if not isinstance(self.memory, kind):
            self.memory = kind()
        return self.memory

    def lasting(self) -> dict[str, Tensor]:
        """What the method keeps from round to round.

        Returns:
            Tensors, named `CLIENT.NAME`; none where the method's memory does not last.
        """
        return self.memory.tensors() if isinstance(self.memory, Lasting) else {}

    def forget(self, client: int) -> None:
        """Drops what a client began: it has left in the middle of a round.

        Args:
            client: its number.
        """
        self.top.passes.pop(client, None)
        if self.memory is not None:
            self.memory.forget(client)

    def begin_anew(self) -> None:
        """Forgets all that is under way, before another state is put in its place."""
        self.top.passes, self.memory, self.losses = {}, None, []
