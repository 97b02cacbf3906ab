"""Seconds of a step without padding, beside plain scripts that pad: client and server in one process, one thread.

    python benchmarks/packed_step.py [--pairs 15]

All-MiniLM-L6-v2 on SST-2, LoRA on both parts, three clients with batches of 16. Ours is a round of the recipe
`sst2-minilm` with all that a run does: messages as bytes, the ledger, seeds, replay. Beside it, in turns on the same
batches, padded to the longest text of each:

- HO-SFL as published code does it: PEFT's adapters, the blocks in a loop, weights moved in place along `torch.randn`
  and back, no bytes.
- First order on the undivided model, one backward pass a client and a step on their mean; and the same on the tokens as
  one row each, which tells our overhead from what padding costs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from house_speed import interval
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.data.batches import Batch
from halfback.models.loading import ModelRequest, load_model
from halfback.parties.holdings import Round

DIRECTIONS, RADIUS, RATE = 2, 1e-4, 1e-4
WARM = 2  # steps that don't count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=15, help="steps of each that count")
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    table = Table("step", "tokens of padded places", "÷ padded", "95 %", "÷ packed", "95 %")
    for cut in (5, 2):
        ours = build(_config("ho_sfl", cut))
        plain = Plain(cut)
        table.add_row(f"ho_sfl, cut {cut}", *compared(ours, pairs, plain.ho_sfl), "", "")
    for cut in (5, 2):
        ours, plain = build(_config("split_lora", cut)), Plain(cut)
        table.add_row(f"split_lora, cut {cut}", *compared(ours, pairs, plain.first_order, Packed().first_order))
    Console().print(table)


def _config(algorithm: str, cut: int) -> configuration.RunConfig:
    optimizer = "sgd" if algorithm == "ho_sfl" else "adamw"  # as the script beside it
    changes = [f"algorithm.name={algorithm}", f"model.cut={cut}", f"bottom.optimizer={optimizer}", f"bottom.lr={RATE}"]
    return configuration.resolve("sst2-minilm", [*changes, "bottom.clip=null", "device=cpu", "task.validation_rows=16"])


def compared(ours: Built, pairs: int, *others: Callable[[list[Batch]], None]) -> list[str]:
    """Share of tokens in padded places, and for each of the others the ratio of a step's seconds with its interval."""
    ratios: list[list[float]] = [[] for _ in others]
    shares, federation = [], ours.federation
    for number in range(WARM + pairs):
        cohort = [federation.client(client).party.feed for client in federation.server.cohort(number)]
        batches = [feed.data.batch(feed.cursor) for feed in cohort]
        mine = _seconds(lambda n=number: federation.run_round(Round(n, 1, n), measure_memory=False))  # type: ignore[misc]
        theirs = [_seconds(lambda step=other, rows=batches: step(rows)) for other in others]  # type: ignore[misc]
        if number >= WARM:
            shares += [float(b.inputs["lengths"].double().mean() / b.inputs["lengths"].max()) for b in batches]
            for of_other, seconds in zip(ratios, theirs, strict=True):
                of_other.append(mine / seconds)
    found = [f"{statistics.mean(shares):.2f}"]
    for of_other in ratios:
        least, most = interval(of_other)
        found += [f"{statistics.median(of_other):.2f}", f"{least:.2f} to {most:.2f}"]
    return found


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


class Plain:
    """Scripts on padded batches."""

    def __init__(self, cut: int) -> None:
        whole = load_model("all-minilm-l6-v2", ModelRequest(head="classifier", num_labels=2, seed=0))[0]
        adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
        self.model: Any = get_peft_model(whole, adapters).eval()  # type: ignore[arg-type]
        self.bert, self.cut = self.model.base_model.model.bert, cut
        self.theta = [p for layer in self.bert.encoder.layer[:cut] for p in layer.parameters() if p.requires_grad]
        own = {id(p) for p in self.theta}
        self.rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        self.of_top = torch.optim.AdamW(self.rest, lr=1e-3)
        self.of_all = torch.optim.AdamW([*self.theta, *self.rest], lr=1e-3)
        self.step = 0

    def ho_sfl(self, batches: list[Batch]) -> None:
        """One step of three clients, who share the weights as in a simulation."""
        self.step += 1
        slopes = torch.zeros(DIRECTIONS)
        self.of_top.zero_grad()
        for batch in batches:
            ids, mask = padded(batch)
            with torch.no_grad():
                hidden = self._bottom(ids, mask)
            at_cut = hidden.clone().requires_grad_()
            self._loss(self._top(at_cut, mask), batch.labels).backward()
            for p in range(DIRECTIONS):
                self._move(p, RADIUS)
                with torch.no_grad():
                    slopes[p] += (at_cut.grad * (self._bottom(ids, mask) - hidden)).sum() / RADIUS / len(batches)  # type: ignore[operator]
                self._move(p, -RADIUS)
        self.of_top.step()
        for p in range(DIRECTIONS):
            self._move(p, -RATE * float(slopes[p]) / DIRECTIONS)

    def first_order(self, batches: list[Batch]) -> None:
        """One step on the mean of the clients' gradients."""
        self.of_all.zero_grad()
        for batch in batches:
            ids, mask = padded(batch)
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            (self._loss(logits, batch.labels) / len(batches)).backward()
        self.of_all.step()

    def _move(self, direction: int, length: float) -> None:
        generator = torch.Generator().manual_seed(1000 * self.step + direction)
        for parameter in self.theta:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=length)

    def _bottom(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._blocks(self.bert.embeddings(input_ids=ids), mask, slice(0, self.cut))

    def _top(self, hidden: Tensor, mask: Tensor) -> Tensor:
        pooled = self.bert.pooler(self._blocks(hidden, mask, slice(self.cut, None)))
        return self.model.base_model.model.classifier(pooled)

    def _blocks(self, hidden: Tensor, mask: Tensor, which: slice) -> Tensor:
        bias = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None]
        for layer in self.bert.encoder.layer[which]:
            out = layer(hidden, attention_mask=bias)
            hidden = out if isinstance(out, Tensor) else out[0]
        return hidden

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)


class Packed:
    """First order on the undivided model, without padding: our parts of it, and nothing else of ours."""

    def __init__(self) -> None:
        self.model = build(_config("split_lora", 5)).model
        self.theta = [p for p in self.model.whole.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.theta, lr=1e-3)

    def first_order(self, batches: list[Batch]) -> None:
        """One step on the mean of the clients' gradients."""
        self.optimizer.zero_grad()
        for batch in batches:
            loss = torch.nn.functional.cross_entropy(self.model.logits(batch.inputs), batch.labels)
            (loss / len(batches)).backward()
        self.optimizer.step()


def padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, T) tokens and mask, filled up on the right."""
    rows = batch.inputs["input_ids"].split(batch.inputs["lengths"].tolist())
    ids = pad_sequence(list(rows), batch_first=True)
    return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)


if __name__ == "__main__":
    main()
