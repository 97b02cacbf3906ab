"""The sections of a configuration: their settings, with kinds and bounds of each by itself."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from halfback.data.options import TaskOptions
from halfback.masking.settings import Secure
from halfback.models.adapters import BottomTrained, Lora
from halfback.parties.attack import Attack
from halfback.parties.cohort import Robust
from halfback.parties.server_step import ServerStep
from halfback.privacy.settings import Privacy
from halfback.zeroth.replay import Shape

Tree = dict[str, Any]

_MANY = 1_000_000_000  # of whatever is counted
_CLIENTS = 1_000_000  # each has a place in lists


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AlgorithmConfig(BaseModel):
    """Which algorithm; the other keys are the options that it declares."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str
    """Which algorithm trains; see `halfback algorithms`."""

    def options(self) -> Tree:
        """The options alone."""
        return dict(self.model_extra or {})


class PretrainConfig(_Section):
    """The server's own training of the whole model before it is cut and handed out."""

    task: str
    """The images that it trains on, as `task.name` names them."""
    steps: int = Field(ge=1, le=_MANY)
    """Optimiser steps."""
    batch_size: int = Field(default=64, ge=1, le=_MANY)
    """Rows of a batch."""
    lr: float = Field(default=1e-3, gt=0, le=1e4)
    """Learning rate of AdamW."""


class ModelConfig(_Section):
    """The model and where it is cut."""

    name: str
    """A packaged model, a ResNet, a local folder or file, or a Hugging Face name; see `halfback models`."""
    cut: int | list[int]
    """How many of the model's blocks run on the device; a list gives client i the entry i modulo its length."""
    head: int | None = None
    """U-shape: how many of the last blocks run on the device too, with the final norm and the head layer, so that
    labels are not sent (the gradients that are tell them: docs/privacy.md). Null: all after the cut is the server's."""
    auxiliary: Literal["linear"] | int = "linear"
    """What gives a device a loss of its own, for methods that need one (CSE-FSL, FSL-SAGE, HERON-SFL): a linear layer
    on pooled activations, or a copy of that many of the top's first blocks with its norm and head layer."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights; adapters are float32 always, and slopes are taken in float32."""
    pretrain: PretrainConfig | None = None

    def cut_of(self, client: int) -> int:
        """Blocks that run on this client."""
        return self.cut if isinstance(self.cut, int) else self.cut[client % len(self.cut)]

    @field_validator("cut", mode="before")
    @classmethod
    def _one_or_a_list(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) and value else [value]
        if not all(type(entry) is int for entry in entries):
            raise PydanticCustomError(
                "cut", "a number of blocks, or a list of them for the clients in turn, is allowed"
            )
        return value

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _linear_or_blocks(cls, value: Any) -> Any:
        if value != "linear" and type(value) is not int:
            # A union would answer with one line for each of its kinds.
            raise PydanticCustomError("auxiliary", "'linear' or a number of blocks is allowed")
        return value


Gradients = Literal[
    "sgd",
    "momentum",
    "adamw",
    "adamw8bit",
    "adafactor",
    "adalomo",
    "apollo",
    "apollo_mini",
    "foam",
    "galore",
    "muon",
]


class OptimizerOptions(_Section):
    """What some optimisers have beside a rate; null for their papers' own choice. See docs/optimizers.md."""

    rank: int | None = Field(default=None, ge=1, le=1 << 16)
    """Of the projection (galore, apollo); null for a quarter of a matrix' shorter side."""
    level: int | None = Field(default=None, ge=0, le=16)
    """Neighbours share moments in blocks of 2^level (foam)."""
    scale: float | None = Field(default=None, gt=0, le=1e6)
    """Of the update (foam, galore), or the square of it (apollo, apollo_mini)."""
    gap: int | None = Field(default=None, ge=1, le=_MANY)
    """Steps from one projection to the next (galore, apollo, apollo_mini)."""

    def chosen(self) -> Tree:
        """Those that were set."""
        return {name: value for name, value in self if value is not None}


class BottomConfig(_Section):
    """How the device's part is trained."""

    train: BottomTrained = "lora"
    """LoRA adapters (`lora_b`: their B alone), (IA)³ factors, biases, norms, all weights, or nothing."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """`train`: a pass that devices backpropagate takes its batch's own mean and variance, and the running ones, which
    evaluation takes, follow and are averaged with the weights; for methods whose devices backpropagate."""
    weights: Literal["float32", "int8"] = "float32"
    """`int8`: its frozen matrices in eight bits with a scale for each output channel, for every party; see
    docs/devices.md."""
    optimizer: Gradients | Literal["sign"] = "adamw"
    """Slopes are replayed by sgd, momentum, adamw or sign (of the estimate); gradients move it by all but sign."""
    options: OptimizerOptions = OptimizerOptions()
    lr: float = Field(default=1e-3, gt=0, le=1e4)
    """Learning rate of the device's part."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """How much of the last update goes on in the next one (momentum)."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e4)
    """Share of a weight that a step takes away, times the learning rate (AdamW and its relatives)."""
    schedule: Shape = "constant"
    """How the learning rate goes on behind the warm-up: constant, to nothing at the last step in a line or a half
    cosine, or in falls at `milestones`."""
    milestones: tuple[int, ...] = ()
    """Steps at which a multistep schedule multiplies the learning rate by `gamma`, in rising order."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """What the learning rate is multiplied by at each milestone."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient or of its slopes; null for no bound."""
    normalize: bool = False
    """Divide each update by the norm of its own slopes; for algorithms that replay slopes."""
    law: Literal["rademacher", "gaussian"] = "rademacher"
    """Law of the directions, for algorithms that replay slopes."""


class TopConfig(_Section):
    """How the server's part is trained."""

    train: Literal["lora", "full"] = "lora"
    """Adapters, or all weights."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """As `bottom.batch_norm`, where the server backpropagates each client's batch once, or a device holds the top."""
    optimizer: Gradients = "adamw"
    """What it holds beside the weights: docs/optimizers.md. A top that replays slopes takes sgd, momentum or adamw."""
    options: OptimizerOptions = OptimizerOptions()
    lr: float = Field(default=1e-3, gt=0, le=1e4)
    """Learning rate of the server's part."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """How much of the last update goes on in the next one (momentum)."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e4)
    """Share of a weight that a step takes away, times the learning rate (AdamW and its relatives)."""
    schedule: Shape = "constant"
    """As `bottom.schedule`."""
    milestones: tuple[int, ...] = ()
    """As `bottom.milestones`."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """As `bottom.gamma`."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient; null for no bound."""


class PartitionConfig(_Section):
    """Which client holds which training rows."""

    name: Literal["iid", "dirichlet", "shards"] = "iid"
    """`iid`: at random; `dirichlet`: other shares of the classes for each client; `shards`: few classes each."""
    alpha: float = Field(default=0.5, gt=0)
    """Of `dirichlet`: the smaller, the fewer classes a client has."""


class CodecsConfig(_Section):
    """What each link does to its values: names of codecs, or mappings of a name and options, applied in this order."""

    activations_up: tuple[str | Tree, ...] = ()
    """The device's activations at the cut."""
    activations_down: tuple[str | Tree, ...] = ()
    """In the U-shape, the middle's output."""
    gradient_up: tuple[str | Tree, ...] = ()
    """In the U-shape, the gradient at the second cut."""
    gradient_down: tuple[str | Tree, ...] = ()
    """The cut gradient."""
    slopes_up: tuple[str | Tree, ...] = ()
    """Of the exact gradients alone (`algorithm.exact_blocks`), as `slopes_down`."""
    slopes_down: tuple[str | Tree, ...] = ()
    """The mean of the exact gradients."""


class ControllerConfig(BaseModel):
    """What sets the thresholds of temporal reuse; the other keys are the options that it declares."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = "fixed"
    """The rule: `fixed`, `bang_bang` or `ddpg`."""

    def options(self) -> Tree:
        """The options alone."""
        return dict(self.model_extra or {})


class ClientConfig(_Section):
    """What a client has room for, of a method whose devices run forward only; see docs/quick_start.md."""

    rows_at_once: int | None = Field(default=None, ge=1, le=_MANY)
    """Rows of a batch that go through the device's part at a time; null for all of them."""
    memory: float | None = Field(default=None, gt=0, le=1e9)
    """Megabytes (10^6 bytes) that a client's tensors may take at most, from which `rows_at_once` is chosen for each
    client; null for any number."""
    runtime: Literal["torch", "device"] = "torch"
    """In a simulation, what clients run on: PyTorch, or a device package in `halfback-device`; see docs/devices.md."""


class DeploymentConfig(_Section):
    """What the server does about clients on other machines that are late or gone; see docs/deploy.md."""

    deadline: float = Field(default=120, gt=0, le=1e6)
    """Seconds that a client has for a reply in a round; one that needs longer is dropped from the round."""
    min_cohort: int | None = Field(default=None, ge=1)
    """Clients of a cohort that are enough to go on with; null for all of them, and then a run has the bits that it
    would have in one process, whatever dies and comes back."""
    patience: float = Field(default=600, gt=0, le=1e6)
    """Seconds that a round waits for enough clients until the run stops."""
    spare: int = Field(default=0, ge=0, le=_CLIENTS)
    """Clients that are asked beside `sampled_clients`, so that the slowest needn't be waited for; with `min_cohort`."""
    pace: float | None = Field(default=None, gt=1, le=1e6)
    """How many times as long as its slowest of late a client may take for a reply, `deadline` at most; null for
    `deadline` alone."""


class EarlyStoppingConfig(_Section):
    """When a run ends before its steps are done, because it gets no better."""

    patience: int | None = Field(default=None, ge=1, le=_MANY)
    """Evaluations in a row without a better metric after which the run ends; null for never."""
    min_delta: float = Field(default=0.0, ge=0, le=1e9)
    """How much better counts as better, in the metric's own unit (percent of accuracy, perplexity)."""


class BudgetConfig(_Section):
    """What a run may cost: it ends behind the round that uses one of these up."""

    bytes: int | None = Field(default=None, ge=1, lt=1 << 63)
    """Bytes that all clients send and receive together; null for any number."""
    seconds: float | None = Field(default=None, gt=0, le=1e9)
    """Seconds of the run, evaluations included, pauses not; null for any number."""


class RunConfig(_Section):
    """One run."""

    algorithm: AlgorithmConfig
    task: TaskOptions
    model: ModelConfig
    bottom: BottomConfig = BottomConfig()
    top: TopConfig = TopConfig()
    lora: Lora = Lora()
    partition: PartitionConfig = PartitionConfig()
    codecs: CodecsConfig = CodecsConfig()
    controller: ControllerConfig = ControllerConfig()
    robust: Robust = Robust()
    attack: Attack = Attack()
    server_step: ServerStep = ServerStep()
    secure: Secure = Secure()
    privacy: Privacy = Privacy()
    client: ClientConfig = ClientConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    clients: int = Field(default=10, ge=1, le=_CLIENTS)
    """Clients of the federation, each with rows of its own."""
    sampled_clients: int = Field(default=3, ge=1, le=_CLIENTS)
    """Clients of a cohort, drawn anew for each round."""
    steps: int = Field(default=300, ge=1, le=_MANY)
    """Optimiser steps: one batch of each sampled client."""
    steps_per_round: int = Field(default=1, ge=1, le=_MANY)
    """Steps that a sampled cohort takes before the next one is sampled."""
    batch_size: int = Field(default=16, ge=1, le=_MANY)
    """Rows of one client's batch."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """All that is random follows from it."""
    eval_every: int = Field(default=50, ge=1, le=_MANY)
    """Rounds between two evaluations."""
    first_eval_rows: int | None = Field(default=512, ge=1, le=_MANY)
    """Validation rows, drawn with the run's seed, that the evaluation before the first step is over; null for all."""
    eval_batch_size: int = Field(default=128, ge=1, le=_MANY)
    """Rows at once in an evaluation."""
    checkpoint_every: int = Field(default=50, ge=1, le=_MANY)
    """Rounds between two checkpoints."""
    checkpoint_seconds: float = Field(default=60, gt=0, le=1e9)
    """Seconds after which there is a checkpoint behind the next round, so that a kill costs no more work than these."""
    keep_best: bool = False
    """Keep the model of the best evaluation over all validation rows too, beside the last checkpoint."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    budget: BudgetConfig = BudgetConfig()
    memory_every: int = Field(default=100, ge=1, le=_MANY)
    """Rounds between two in which memory is measured; measuring slows a round down."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the parties of this process compute on; `auto` is CUDA where it is there."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of one operation, in this process from then on; None leaves them as they are, at first PyTorch's own
    choice. One is the fastest for a small model."""
    one_pass: bool | None = None
    """In a simulation, a cohort's batches go through each part of the model as one, where its clients have the same θ:
    other bits than one by one, by rounding. Null: where the device is CUDA."""
    sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where records go beside the run's own files: TensorBoard, Weights & Biases, MLflow; see docs/report.md."""
    fleet: str | None = None
    """In a simulation, the devices and links on which it is counted how long the run would take: a shipped fleet's
    name, or the path of a YAML file; see docs/planning.md."""
    per_algorithm: dict[str, Tree] = Field(default_factory=dict)
    """Settings that another algorithm takes instead when it is chosen, as `key.path: value`."""
    beside: tuple[str, ...] = ()
    """Algorithms to run after this one on the same work, for the closing table."""
