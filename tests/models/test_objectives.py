"""Losses and metrics, against Transformers' own loss and counts made by hand."""

import math

import pytest
import torch
from tiny_models import DECODERS, in_rows, language_model, padded_mask
from torch import Tensor

from halfback.models.objectives import better, evaluate, loss, scored


@pytest.mark.parametrize("name", DECODERS)
def test_causal_loss_is_that_of_transformers(name: str, texts: dict[str, Tensor]) -> None:
    model = language_model(name)
    mask = padded_mask(texts, left=True)
    ids = in_rows(texts, "input_ids", left=True)
    labels = ids.masked_fill(mask == 0, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    firsts = texts["lengths"].cumsum(0) - texts["lengths"]
    packed = texts["input_ids"].index_fill(0, firsts, -100)
    # The same terms but for a text's first token, which Transformers has a loss for where padding is before it, summed
    # and divided in another order: a few roundings of float32.
    labels.scatter_(1, mask.argmax(1, keepdim=True), -100)
    wanted = model.loss_function(output.logits, labels, vocab_size=99)
    found = loss("causal_lm", output.logits[mask.bool()][scored(packed)], packed)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_perplexity_counts_each_predicted_token_once() -> None:
    """Batches of unlike lengths: the mean is over tokens, not over batches."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows, length in ((3, 7), (1, 3), (2, 1)):  # nothing follows a row of one token
        logits = torch.randn(rows * length, 5, generator=generator)
        labels = torch.randint(5, (rows * length,), generator=generator)
        labels[::length] = -100
        batches.append((logits, labels))
    terms = [
        -torch.log_softmax(logits[place].double(), dim=0)[labels[place + 1]]
        for logits, labels in batches
        for place in range(len(labels) - 1)
        if labels[place + 1] != -100
    ]
    batches = [(logits[scored(labels)], labels) for logits, labels in batches]
    assert len(terms) == 3 * 6 + 2
    mean = torch.stack(terms).mean().item()
    found = evaluate("causal_lm", batches)
    assert found.loss == pytest.approx(mean, rel=1e-6)
    assert found.metric == pytest.approx(math.exp(mean), rel=1e-5)


def test_rows_of_one_token_have_no_loss_and_no_gradient() -> None:
    hidden, labels = torch.randn(4, 5, requires_grad=True), torch.full((4,), -100)
    assert scored(labels).tolist() == []
    value = loss("causal_lm", hidden[scored(labels)], labels)
    value.backward()
    assert value.item() == 0
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.zeros(4, 5))
    assert math.isfinite(evaluate("causal_lm", [(hidden.detach()[scored(labels)], labels)]).loss)


def test_accuracy() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    found = evaluate("classification", [(logits[:3], torch.tensor([0, 1, 1])), (logits[3:], torch.tensor([1]))])
    assert found.metric == 75.0
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 1])).item()
    assert found.loss == pytest.approx(wanted, rel=1e-6)


def test_better() -> None:
    assert better("classification", 80.0, 79.0)
    assert better("causal_lm", 5.0, 6.0)
    assert not better("classification", 80.0, 80.0)
    assert not better("causal_lm", 6.0, 6.0)
