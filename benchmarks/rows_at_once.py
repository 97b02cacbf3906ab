"""A client's peak in rows of a batch at a time, over plain padded inference of the same batch, on rows of SST-2.

    python benchmarks/rows_at_once.py [--cut 5] [--batch 16] [--batches 8] [--rows 1 4 16]

HO-SFL on MiniLM with LoRA, P = 2 and AdamW: real steps with a server, from the texts to the agreed update. Both peaks
are the meter's, which do not depend on the machine. Plain inference is what Transformers computes of the same texts,
filled up to the longest: of a model with the device's blocks alone, whose weights are those that the device holds, and
of the whole model. Seconds are those of the client's steps over those with whole batches, taken in turns.
"""

import argparse
import statistics
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModel

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.models.packages import packaged_models
from halfback.models.packing import parts_of
from halfback.parties.holdings import Round
from halfback.telemetry.meters import inference_peak_bytes

NAME = "all-minilm-l6-v2"


def built(cut: int, batch: int, rows: int | None) -> Built:
    """A run of one client."""
    settings = [
        *("algorithm.name=ho_sfl", "task.name=sst2", "task.train_rows=512", "task.validation_rows=16", "device=cpu"),
        *(f"model.name={NAME}", f"model.cut={cut}", "bottom.train=lora", "clients=1", "sampled_clients=1"),
        *(f"batch_size={batch}", f"client.rows_at_once={'null' if rows is None else rows}"),
    ]
    return build(configuration.resolve(None, settings))


def padded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts in rows of the longest one's length."""
    texts = [inputs["input_ids"][part] for part in parts_of(inputs["lengths"].tolist())]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return {"input_ids": ids, "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    folder = packaged_models()[NAME].folder()
    part = AutoModel.from_pretrained(folder, num_hidden_layers=chosen.cut, add_pooling_layer=False)
    whole = AutoModel.from_pretrained(folder)
    weights = sum(p.nbytes for p in part.parameters())
    runs = {rows: built(chosen.cut, chosen.batch, rows) for rows in (None, *chosen.rows)}
    peaks: dict[int | None, list[int]] = {rows: [] for rows in runs}
    seconds: dict[int | None, list[float]] = {rows: [] for rows in runs}
    plain: dict[str, list[int]] = {"part": [], "whole": []}
    for number in range(chosen.batches):
        for rows, run in runs.items():
            meters = run.federation.server.meters
            before = meters.client.seconds
            run.federation.run_round(Round(2 * number, 1, 2 * number), measure_memory=False)
            seconds[rows].append(meters.client.seconds - before)
            meters.client_peak_bytes = 0
            feed = run.federation.client(0).party.feed
            inputs = padded(feed.data.batch(feed.cursor).inputs)
            run.federation.run_round(Round(2 * number + 1, 1, 2 * number + 1), measure_memory=True)
            peaks[rows].append(meters.client_peak_bytes)
        for name, model in {"part": part, "whole": whole}.items():
            plain[name].append(inference_peak_bytes(model, partial(model, **inputs), inputs.values()))
    mega = 1e6
    weighs = f"the device's weights: {weights / mega:.1f} MB"
    print(f"{NAME}, cut {chosen.cut}, {chosen.batch} rows of SST-2 a batch; {weighs}")
    print(
        "| rows at once | client peak, MB | ÷ plain, device's blocks | of it beyond weights | ÷ plain, whole | time |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for rows in runs:
        over = [[a / b for a, b in zip(peaks[rows], plain[name], strict=True)] for name in ("part", "whole")]
        beyond = [(a - weights) / (b - weights) for a, b in zip(peaks[rows], plain["part"], strict=True)]
        times = [a / b for a, b in zip(seconds[rows], seconds[None], strict=True)]
        figures = (statistics.median(over[0]), statistics.median(beyond), statistics.median(over[1]))
        shown = " | ".join(f"{figure:.3f}" for figure in figures)
        print(
            f"| {rows or 'all'} | {statistics.median(peaks[rows]) / mega:.1f} | {shown} | "
            f"{statistics.median(times):.2f} |"
        )


if __name__ == "__main__":
    main()
