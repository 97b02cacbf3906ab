"""Deep deterministic policy gradient (arXiv 1509.02971) with TorchRL's loss, replay buffer and target networks.

Importing this file imports TorchRL, which is an optional package. Networks are the paper's in small: two hidden layers,
uniform initial weights within 1/√inputs, last layers near zero. Every draw comes from one generator of the learner's
own. TorchRL's exploration modules draw from the global generator only, so the noise is added here.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.modules import MLP, TanhModule, ValueOperator
from torchrl.objectives import DDPGLoss, SoftUpdate, ValueEstimators

_WIDTH = 32
_RATE = 2e-3  # of Adam, for both networks
_TARGET_RATE = 0.02  # share of a network that its target takes over in one update
_BATCH = 64
_CAPACITY = 2000  # transitions; a run has one a round
_NEAR_ZERO = 3e-3  # bound of the initial weights of a last layer

logging.getLogger("torchrl").setLevel(logging.WARNING)  # or it announces its storage in the middle of a progress bar


class Learner:
    """A policy from an observation (S,) to an action (A,) within [-1, 1], and what it has learned from.

    Args:
        discount: weight of the next round's reward, in [0, 1).
    """

    def __init__(self, observations: int, actions: int, discount: float, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            policy = self._network(observations, actions)
            value = self._network(observations + actions, 1)
            self._actor = TensorDictSequential(
                TensorDictModule(policy, in_keys=["observation"], out_keys=["action"]), TanhModule(in_keys=["action"])
            )
            critic = ValueOperator(value, in_keys=["observation", "action"])
            self._loss = DDPGLoss(self._actor, critic, delay_actor=True, delay_value=True)
            self._loss.make_value_estimator(ValueEstimators.TD0, gamma=discount)
        self._targets = SoftUpdate(self._loss, tau=_TARGET_RATE)
        self._optimizers = {
            part: torch.optim.Adam([p for n, p in self._loss.named_parameters() if n.startswith(part)], _RATE)
            for part in ("actor", "value")
        }
        self._actions = actions
        self._seen = ReplayBuffer(
            storage=LazyTensorStorage(_CAPACITY), batch_size=_BATCH, generator=self._random, compilable=True
        )

    def _network(self, inputs: int, outputs: int) -> nn.Module:
        network = MLP(inputs, outputs, num_cells=[_WIDTH, _WIDTH], activation_class=nn.ReLU)
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        for layer in layers:
            bound = _NEAR_ZERO if layer is layers[-1] else layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=self._random)
        return network

    def act(self, observation: Tensor, noise: float) -> Tensor:
        """The policy's action (A,) with Gaussian noise of this standard deviation, kept within [-1, 1]."""
        with torch.no_grad(), self._loss.actor_network_params.to_module(self._actor):
            action = self._actor(TensorDict({"observation": observation}))["action"]
        return (action + noise * torch.randn(self._actions, generator=self._random)).clamp(-1, 1)

    def explore(self) -> Tensor:
        """An action (A,) drawn uniformly from [-1, 1]."""
        return torch.rand(self._actions, generator=self._random) * 2 - 1

    def remember(self, observation: Tensor, action: Tensor, reward: float, following: Tensor) -> None:
        """Adds one transition: the action taken on `observation`, its reward, and the observation after it."""
        never = torch.zeros(1, dtype=torch.bool)  # a run has no last state that its rewards lead to
        after = {"observation": following, "reward": torch.tensor([reward]), "done": never, "terminated": never}
        self._seen.add(TensorDict({"observation": observation, "action": action, "next": after}))

    def learn(self, updates: int) -> None:
        """Takes steps on both networks, each on a batch drawn from what was remembered."""
        for _ in range(updates):
            losses = self._loss(self._seen.sample())
            (losses["loss_actor"] + losses["loss_value"]).backward()  # neither reaches the other's network
            for optimizer in self._optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            self._targets.step()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Networks, targets, optimisers, remembered transitions and the generator, as named tensors and JSON values."""
        tensors = {f"networks.{name}": tensor.detach().clone() for name, tensor in self._loss.state_dict().items()}
        for part, optimizer in self._optimizers.items():
            for number, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"{part}_optimizer.{number}.{name}": value.clone() for name, value in entries.items()}
        if len(self._seen):
            seen = self._seen[:].flatten_keys(".")
            tensors |= {f"seen.{name}": tensor.clone() for name, tensor in seen.items()}
        return tensors | {"generator": self._random.get_state()}, {"writer": self._seen.writer.state_dict()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from what `state_dict` gave; ValueError where a tensor is missing or of another form."""
        check_like(_under("networks.", tensors), self._loss.state_dict())  # torchrl passes over what is missing
        self._loss.load_state_dict(_under("networks.", tensors))
        for part, optimizer in self._optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _under(f"{part}_optimizer.", tensors).items():
                number, entry = name.split(".", 1)
                state.setdefault(int(number), {})[entry] = tensor.clone()
            moved = dict(enumerate(optimizer.param_groups[0]["params"]))
            for place, entries in state.items():
                parameter = moved[place]
                check_like(entries, {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter})
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._seen.empty()
        if seen := _under("seen.", tensors):
            rows = len(seen["action"])
            self._seen.extend(TensorDict(seen, batch_size=[rows]).unflatten_keys("."))
        self._seen.writer.load_state_dict(values["writer"])  # where the next transition goes once the buffer is full
        self._random.set_state(tensors["generator"])


def check_like(found: Mapping[str, Tensor], due: Mapping[str, Tensor]) -> None:
    """Refuses tensors with other names, shapes or dtypes than are due; ValueError names the first."""
    for name in sorted({*found, *due}):
        if name not in found or name not in due:
            raise ValueError(f"tensor {name} is {'missing' if name in due else 'there, and nothing has this name'}")
        if found[name].shape != due[name].shape or found[name].dtype != due[name].dtype:
            raise ValueError(f"tensor {name} is {found[name].dtype} {tuple(found[name].shape)}")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
