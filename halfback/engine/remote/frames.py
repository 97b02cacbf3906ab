"""What an engine says to a client's site beside the algorithm's own bytes: questions and replies, checked on arrival.

A frame is a header (JSON of one of these) and a body: the bytes of a packed message, or none. A question names the
lineage, the round and the exchange that it belongs to, so that whatever comes twice, late or out of turn is recognised.

A lineage is a stretch of a run without a step back: a server that starts again from a checkpoint begins a new one, and
says in `ancestry` which lineages led to it and after which round each was left.
"""

from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from halfback.errors import PeerError, one_line

MAX_HEADER = 1 << 22  # characters; the largest holds a configuration
MAX_ROWS = 10**9  # training rows that a client can say it has
MOST_MEMORY = 1 << 44  # bytes, 16 TiB: more than any machine that trains has
_LARGEST = 3.4028235e38  # of float32, in which a device takes its losses: their sum over any cohort is finite

_Token = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
_Count = Annotated[int, Field(ge=0, lt=1 << 62)]
_Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Bytes = Annotated[int, Field(ge=0, le=MOST_MEMORY)]
_Loss = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Ancestor(_Header):
    """An earlier lineage, and how many rounds of it count."""

    lineage: _Token
    rounds: _Count


class Evaluation(_Header):
    """How well the model did on the server's validation rows after so many steps: what a device may show its owner.

    `loss`: the mean. `accuracy`: in percent; None where the run has another metric.
    """

    step: _Count
    loss: _Loss
    accuracy: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None


class Prepare(_Header):
    """Question, first of all: build your part of this run; in the body, weights to begin with, or none."""

    kind: Literal["prepare"] = "prepare"
    run: _Token
    client: _Count
    config: dict[str, Any]
    label_names: tuple[str, ...]
    weights: str
    """Digest of the weights to begin with, without which nobody's bits agree."""


class Open(_Header):
    """Question: begin a round; the reply has the first message."""

    kind: Literal["open"] = "open"
    lineage: _Token
    ancestry: tuple[Ancestor, ...]
    round: _Count
    first: _Count
    steps: _Count
    cursor: _Count
    measure: bool
    evaluation: Evaluation | None = None
    """The last one, for whoever looks; nothing is computed from it. The field is left out where there is none."""


class Say(_Header):
    """Question: here is the answer to your last message; what do you say next?"""

    kind: Literal["say"] = "say"
    lineage: _Token
    round: _Count
    exchange: _Count


class Save(_Header):
    """Question: write down what you need to go on from here, after so many rounds."""

    kind: Literal["save"] = "save"
    lineage: _Token
    rounds: _Count
    evaluation: Evaluation | None = None
    """As in `Open`: behind a run's last round nothing else comes."""


class Ready(_Header):
    """Reply to `Prepare`; `fits` is false where the weights to begin with are needed.

    `takes`: bytes of the longest body that the client reads from now on, for what stands before it on its own site.
    `rows`: it trains on so many.
    """

    kind: Literal["ready"] = "ready"
    fits: bool
    takes: _Count
    rows: Annotated[int, Field(ge=1, le=MAX_ROWS)]


class Said(_Header):
    """Reply: a message, in the body, of this exchange."""

    kind: Literal["said"] = "said"
    lineage: _Token
    round: _Count
    exchange: _Count


class Done(_Header):
    """Reply: the client has said all of this round; what the round cost it, and its peaks so far."""

    kind: Literal["done"] = "done"
    lineage: _Token
    round: _Count
    cursor: _Count
    forward_passes: _Count
    client_seconds: _Seconds
    wire_seconds: _Seconds
    peak_bytes: _Bytes
    inference_peak_bytes: _Bytes
    losses: Annotated[tuple[_Loss, ...], Field(max_length=100_000)]
    releases: _Count | None = None
    """The most that any one of its samples had of its activations, with noise, so far; none without `private`."""


class Saved(_Header):
    """Reply to `Save`."""

    kind: Literal["saved"] = "saved"


class Refused(_Header):
    """Reply: no, and why. `stale`: the question belongs to another time; the others are the kinds of error."""

    kind: Literal["refused"] = "refused"
    why: Literal["stale", "peer", "diverged", "user", "failed"]
    error: Annotated[str, Field(max_length=2000), AfterValidator(one_line)]


Question = Prepare | Open | Say | Save
Reply = Ready | Said | Done | Saved | Refused
Read = TypeVar("Read")
_QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")])
_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])


class Longest(NamedTuple):
    """The longest frame that may come: bytes of its body, characters of its header."""

    body: int
    header: int = MAX_HEADER

    def check(self, header: int, body: int) -> None:
        """Refuses a frame of which so many bytes are announced, or have come, before anyone copies them.

        Raises:
            PeerError: says what came and what is allowed.
        """
        if header > 4 * self.header or body > self.body:  # a character takes up to four bytes
            came = f"a header of {header} bytes and a body of {body}"
            raise PeerError("frame", came, f"at most {4 * self.header} and {self.body} are allowed")


def longest_reply(steps: int, body: int) -> Longest:
    """In a round of so many steps: a refusal, or a report with a loss for each."""
    return Longest(body, (1 << 14) + 32 * steps)


class Frame(NamedTuple):
    """A header as JSON text, and a body."""

    header: str
    body: bytes = b""


def frame(header: Question | Reply, body: bytes = b"") -> Frame:
    """The frame to send."""
    untold = {name for name, value in header if value is None}
    return Frame(header.model_dump_json(exclude=untold), body)


def read_question(header: str) -> Question:
    """The question in a header; PeerError names the field that is wrong."""
    return _read(_QUESTION, header)


def read_reply(header: str) -> Reply:
    """The reply in a header; PeerError names the field that is wrong."""
    return _read(_REPLY, header)


def _read(adapter: TypeAdapter[Read], header: str) -> Read:
    if not isinstance(header, str) or len(header) > MAX_HEADER:
        came = f"{len(header)} characters" if isinstance(header, str) else type(header).__name__
        raise PeerError("header", came, f"text of at most {MAX_HEADER} is allowed")
    try:
        return adapter.validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(("header", *map(str, first["loc"])))
        raise PeerError(field[:200], first["msg"][:300]) from None  # both quote what came
