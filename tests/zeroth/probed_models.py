"""Tiny random models to probe, each with a forward pass that takes nothing."""

import copy
from collections.abc import Callable

import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "opt": transformers.OPTConfig(**_SIZES, ffn_dim=24, word_embed_proj_dim=16),  # embedding with padding, tied
    "gpt2": transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    ),  # tied; transposed weights
    "llama": transformers.LlamaConfig(**_SIZES, intermediate_size=24),  # not tied
    "bert": transformers.BertConfig(**_SIZES, intermediate_size=24),  # tied weight and bias
    "vit": transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    ),  # parameters of a module that has children
}
_CLASSES = {
    "opt": transformers.AutoModelForCausalLM,
    "gpt2": transformers.AutoModelForCausalLM,
    "llama": transformers.AutoModelForCausalLM,
    "bert": transformers.AutoModelForMaskedLM,
    "vit": transformers.AutoModelForImageClassification,
}
Run = Callable[[], Tensor]
IDS = torch.tensor([[5, 9, 5, 31, 0, 39, 1], [0, 0, 7, 8, 9, 9, 2]])


def transformer(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Run]:
    torch.manual_seed(0)
    model = _CLASSES[name].from_config(copy.deepcopy(CONFIGS[name])).eval()
    _stir(model)
    model.to(dtype)
    if name == "vit":
        pixels = torch.randn(2, 3, 8, 8).to(dtype)
        return model, lambda: model(pixel_values=pixels).logits
    mask = (IDS != 0).long()
    mask[0] = 1  # a padding id that is used as a word
    return model, lambda: model(input_ids=IDS, attention_mask=mask).logits


def with_lora(model: nn.Module, targets: list[str]) -> dict[str, nn.Parameter]:
    """Adds adapters in place; the adapters' parameters, none of them zero."""
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, fan_in_fan_out="c_attn" in targets), model)
    adapters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapters)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return adapters


class ConvNet(nn.Module):
    """Convolutions, batch norms, and a head that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, bias=False)
        self.head = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.empty(0, 4))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(torch.relu(self.norm(self.first(images)))).mean((-1, -2))
        return self.head(torch.tanh(self.head(hidden))) * self.scale


def conv_net(dtype: torch.dtype = torch.float32) -> tuple[ConvNet, Run]:
    torch.manual_seed(0)
    model = ConvNet().eval()
    _stir(model)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    model.to(dtype)
    images = torch.randn(2, 3, 8, 8).to(dtype)
    return model, lambda: model(images)


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Run]:
    return conv_net(dtype) if name == "conv" else transformer(name, dtype)


NAMES = [*CONFIGS, "conv"]


def _stir(model: nn.Module) -> None:
    """Biases and norms of a new model are all alike, and its padding row is zero: that hides mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
