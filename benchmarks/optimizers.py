"""A small Llama trained from scratch on WebNLG's sentences, by each optimiser: what each holds and comes to.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py DATA OUT [NAME …]

DATA is the folder of data sets (HALFBACK_DATA). 1.3 million parameters (4 blocks, 128 wide, 2,048 tokens); the device
has the embeddings and the first block, the server the rest, and both are moved by the same optimiser at the same rate:
`split_lora` with one client, all weights trained. 150 steps of 8 sentences (32 tokens at most), 40 of warm-up, then
half a cosine. A rate is chosen on seed 10, by the perplexity of a tenth of the training rows that is held back, among
c/2, c and 2c, and on by factors of 2 until the best is inside; c differs by optimiser, and `adamw8bit` takes AdamW's
rate. Then seeds 0, 1 and 2 at that rate, and the perplexity of validation rows. Peaks are the meter's, of a step behind
the first. A step's time is against AdamW's in turns: the median of what each turn took.

Each run is a line of OUT/runs.jsonl, and a line that is there is not run again.
"""

import csv
import gzip
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.assembly.given import Given
from halfback.engine.tensors import optimizer_tensors
from halfback.parties.holdings import Round

CENTRES = {
    "adamw": 4e-3,
    "adalomo": 0.2,
    "apollo": 8e-3,
    "foam": 8e-3,
    "adafactor": 0.2,
    "apollo_mini": 8e-3,
    "galore": 8e-3,
    "muon": 4e-3,
}
STEPS, ROUND, SEEDS, TURNS = 150, 10, (0, 1, 2), 5


def prepare(data: Path, out: Path) -> None:
    """Sentences as CSV files, and a tokenizer made of them."""
    out.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {}
    for split, most in (("train", None), ("validation", 400)):
        with gzip.open(data / "webnlg" / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            texts[split] = list(dict.fromkeys(row["target"] for row in csv.DictReader(file)))[:most]
        with (out / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text",), *([text] for text in texts[split])])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<pad>", "</s>"]
    tokenizer.train_from_iterator(
        texts["train"],
        trainers.BpeTrainer(
            vocab_size=2048,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(out / "tokenizer")


def untrained(seed: int) -> LlamaForCausalLM:
    """The model, as it is drawn from a seed."""
    shape = LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)


def made(out: Path, name: str, lr: float, seed: int, **changes: Any) -> Built:
    """The run."""
    part = {"optimizer": name, "lr": lr, "schedule": "cosine", "warmup": 40}
    task = {"name": "csv", "train": str(out / "train.csv"), "validation": str(out / "validation.csv")}
    tree: dict[str, Any] = {
        "algorithm": {"name": "split_lora"},
        "task": task | {"objective": "causal_lm", "max_length": 32, "train_rows": 4000},
        "model": {"name": "given", "cut": 1},
        "bottom": {"train": "full"} | part,
        "top": {"train": "full"} | part,
        "clients": 1,
        "sampled_clients": 1,
        "batch_size": 8,
        "steps": STEPS,
        "seed": seed,
        "device": "cpu",
    }
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    return build(configuration.from_tree(tree, changes), given=Given(model=untrained(seed), tokenizer=tokenizer))


def go(run: Built, first: int, rounds: int, *, steps: int = ROUND, measure: bool = False) -> None:
    """So many rounds, of which the first begins at this step."""
    for number in range(rounds):
        run.federation.run_round(Round(first + number, steps, first + number * steps), measure_memory=measure)


def perplexity(out: Path, name: str, lr: float, seed: int, **changes: Any) -> float:
    """Of the validation rows behind the last step; infinite where the run diverged."""
    run = made(out, name, lr, seed, **changes)
    try:
        go(run, 0, STEPS // ROUND)
        found = run.evaluate().metric
    except ArithmeticError:
        return math.inf
    return found if math.isfinite(found) else math.inf


class Lines:
    """The runs that are done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def once(self, what: dict[str, Any], run: Any) -> Any:
        """What a run came to, which is run where that isn't known."""
        for line in self.all:
            if all(line.get(key) == value for key, value in what.items()):
                return line["found"]
        begun = time.process_time()
        line = what | {"found": run()} | {"seconds": round(time.process_time() - begun, 1)}
        self.all.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line["found"]


def tuned(lines: Lines, out: Path, name: str) -> float:
    """The rate that does best on rows that are held back, with worse ones on both sides."""
    found: dict[int, float] = {}
    wanted = [0, -1, 1]
    while wanted:
        power = wanted.pop(0)
        lr = CENTRES[name] * 2.0**power
        found[power] = lines.once(
            {"what": "tuning", "name": name, "lr": lr},
            lambda lr=lr: perplexity(out, name, lr, 10, **{"task.holdout": 0.1, "task.validation_rows": 400}),
        )
        best = min(found, key=lambda power: found[power])
        if not wanted:
            wanted = [power for power in (best - 1, best + 1) if power not in found]
    return CENTRES[name] * 2.0**best


def costs(out: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Bytes of state and peak, and the time of a step over AdamW's."""
    found: dict[str, dict[str, Any]] = {}
    runs = {}
    for name in names:
        run = runs[name] = made(out, name, 1e-3, 0)
        go(run, 0, 2, steps=1)
        go(run, 2, 1, steps=1, measure=True)
        server, client = run.federation.server, run.federation.client(0).party
        state = optimizer_tensors("", server.party.top.first_order.optimizer) | {
            f"bottom{key}": tensor for key, tensor in optimizer_tensors("", client.first_order.optimizer).items()
        }
        state_bytes = sum(tensor.nbytes for tensor in state.values())
        found[name] = {"state": state_bytes, "peak": server.meters.server_peak_bytes}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS):
        taken = {}
        for name, run in runs.items():
            begun = time.process_time()
            go(run, 3 + turn * 3, 1, steps=3)
            taken[name] = time.process_time() - begun
        for name in runs:
            ratios[name].append(taken[name] / taken["adamw"])
    for name in runs:
        found[name] |= {"time": statistics.median(ratios[name])}
    return found


def main(data: Path, out: Path, names: list[str]) -> None:
    if not (out / "tokenizer").exists():
        prepare(data, out)
    lines = Lines(out / "runs.jsonl")
    rates = {}
    for name in names:
        lr = rates[name] = tuned(lines, out, "adamw" if name == "adamw8bit" else name)
        for seed in SEEDS:
            what = {"what": "run", "name": name, "lr": lr, "seed": seed}
            lines.once(what, lambda name=name, lr=lr, seed=seed: perplexity(out, name, lr, seed))
    found = lines.once({"what": "costs", "names": names}, lambda: costs(out, names))
    print("| optimiser | rate | perplexity, ± standard error | bytes of state | server peak | a step over AdamW's |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, lr in rates.items():
        seeds = [line["found"] for line in lines.all if (line["what"], line.get("name")) == ("run", name)]
        error = statistics.stdev(seeds) / math.sqrt(len(seeds))
        own = found[name]
        print(
            f"| `{name}` | {lr:.3g} | {statistics.mean(seeds):.2f} ± {error:.2f} | {own['state']:,} | "
            f"{own['peak']:,} | {own['time']:.2f} |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or [*CENTRES, "adamw8bit"])
