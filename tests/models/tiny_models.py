"""Tiny random models of every model type in the table."""

import copy

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from halfback.models.resnet import ResNet, ResNetConfig

BLOCKS = 3
_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_OPT = {
    **{name: size for name, size in _SIZES.items() if name != "intermediate_size"},
    "ffn_dim": 40,
}
CONFIGS = {
    "opt": transformers.OPTConfig(**_OPT, word_embed_proj_dim=32),
    "opt-projected": transformers.OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt2": transformers.GPT2Config(
        vocab_size=99,
        n_embd=32,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=64,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "llama": transformers.LlamaConfig(**_LLAMA),
    "llama-tied": transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**_LLAMA, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**_LLAMA, use_sliding_window=True, sliding_window=4, layer_types=_MIXED),
    "qwen3": transformers.Qwen3Config(**_LLAMA, use_sliding_window=True, sliding_window=4, layer_types=_MIXED),
    "gemma3_text": transformers.Gemma3TextConfig(**_LLAMA, sliding_window=4, layer_types=_MIXED),
    "bert": transformers.BertConfig(**_SIZES),
    "roberta": transformers.RobertaConfig(**_SIZES),
    "vit": transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        num_labels=3,
    ),
}
DECODERS = [name for name, config in CONFIGS.items() if config.model_type not in ("bert", "roberta", "vit")]
ENCODERS = ["bert", "roberta"]


def classifier(name: str) -> nn.Module:
    return _build(transformers.AutoModelForSequenceClassification, name)


def language_model(name: str) -> nn.Module:
    return _build(transformers.AutoModelForCausalLM, name)


def vit() -> nn.Module:
    return _build(transformers.AutoModelForImageClassification, "vit")


def resnet(name: str, num_labels: int = 3, in_channels: int = 3) -> ResNet:
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(name, num_labels, in_channels)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics of a trained network, not 0 and 1
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def _build(auto_class: type, name: str) -> nn.Module:
    torch.manual_seed(0)
    model = auto_class.from_config(copy.deepcopy(CONFIGS[name])).eval()
    for parameter in model.parameters():  # biases and norms of a new model are all alike, which hides mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def uncut(model: nn.Module, inputs: dict[str, Tensor], **arguments: object) -> Tensor:
    """The whole model's logits, called as any user of Transformers would call it, in padded rows: (B, …), or (N, V)."""
    left = model.config.model_type not in ("bert", "roberta")
    padded = {name: in_rows(inputs, name, left=left) for name in inputs if name != "lengths"}
    mask = padded_mask(inputs, left=left)
    if left and model.config.model_type != "opt":
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(**padded, attention_mask=mask, **arguments).logits
    return logits[mask.bool()] if logits.ndim == 3 and logits.shape[1] == mask.shape[1] else logits


def in_rows(inputs: dict[str, Tensor], name: str, *, left: bool) -> Tensor:
    """(B, T): what the batch has of each token, padded with zeros."""
    rows = inputs[name].split(inputs["lengths"].tolist())
    return pad_sequence(rows, batch_first=True, padding_side="left" if left else "right")


def padded_mask(inputs: dict[str, Tensor], *, left: bool) -> Tensor:
    """(B, T) int64: 1 where a padded row has a token."""
    return in_rows(inputs | {"ones": torch.ones_like(inputs["input_ids"])}, "ones", left=left)


def assert_alike(found: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of sums of another length, which come where padding is left away.

    Products of 32 values, of which float32 keeps 24 bits, through three blocks: a few units of 1e-7 beside logits of 1.
    """
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
