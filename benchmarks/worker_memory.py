"""Peak memory of a client's worker process, from its start to the end of its first step, against its own part's bytes.

    python benchmarks/worker_memory.py [--blocks 60] [--cut 6] [--hidden 512] [--from disk|server]

A random Llama is written to disk as safetensors in float32; by default its bottom is a tenth of it. A server and one
worker, a process of its own, then take one step of HO-SFL with LoRA on it. Printed, in MB: the worker's peak of
resident memory, that of a process that has imported the same and does nothing, and the difference as a multiple of the
bottom's bytes; all of it, and without the pages of files (anonymous memory alone), since a page of a file that is
mapped can be dropped at any time. `--from server`: the site has no file of the weights, and is sent them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from halfback import config as configuration
from halfback.deploy.relay import Relay
from halfback.deploy.serving import ENDED, RUN, Surroundings, serve
from halfback.deploy.site import SiteConfig

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(996))]


class Watched:
    """The highest of a process's figures of memory in /proc, in bytes, looked at all the time."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peaks = {"VmHWM": 0, "RssAnon": 0}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            except OSError:
                return
            figures = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Vm", "Rss"))}
            for name in self.peaks:
                self.peaks[name] = max(self.peaks[name], int(figures.get(name, 0)) * 1024)
            time.sleep(0.002)


class OneSite:
    """Carries questions to one worker."""

    def __init__(self, folder: Path, site: SiteConfig) -> None:
        self.relay = Relay(site, folder)

    def reachable(self) -> set[int]:
        return {0}

    def is_there(self, client: int) -> bool:
        return client == 0

    def silent(self) -> set[str]:
        return set()

    def ask(
        self, questions: Mapping[int, Any], seconds: Mapping[int, float], longest: Any
    ) -> Generator[tuple[int, Any], None, None]:
        for number, question in questions.items():
            yield number, self.relay.exchange(question, seconds[number])


def write_model(folder: Path, *, blocks: int, hidden: int) -> None:
    """A random Llama of so many blocks, with a tokenizer of a thousand words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=2,
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    own = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **special).save_pretrained(folder)


def bytes_of(folder: Path, cut: int) -> tuple[int, int]:
    """Of the bottom, and of the whole model."""
    from safetensors import safe_open

    bottom = whole = 0
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            size = 4
            for length in file.get_slice(name).get_shape():
                size *= length
            whole += size
            parts = name.split(".")
            below = "embed_tokens" in name or ("layers" in parts and int(parts[parts.index("layers") + 1]) < cut)
            bottom += size * below
    return bottom, whole


def bare(module: str) -> Watched:
    """A process that has imported what a worker imports, and then waits to be told to end."""
    program = f"import sys, {module}; print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    watched = Watched(process.pid)
    process.stdout.readline()
    time.sleep(0.2)
    process.stdin.close()
    process.wait()
    return watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--cut", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--from", dest="source", choices=["disk", "server"], default="disk")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run(
            [sys.executable, __file__, "--write", str(folder / "model"), str(chosen.blocks), str(chosen.hidden)],
            check=True,
        )
        bottom, whole = bytes_of(folder / "model", chosen.cut)
        rows = [f"w{n} w{n * 7 % 990} w{n * 3 % 990},{'good' if n % 2 else 'bad'}" for n in range(64)]
        (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        overrides = [
            *("task.name=csv", f"task.train={folder / 'rows.csv'}", "task.text=text", "task.label=label"),
            *(f"model.name={folder / 'model'}", f"model.cut={chosen.cut}", "algorithm.name=ho_sfl", "device=cpu"),
            *("clients=1", "sampled_clients=1", "steps=1", "batch_size=4", "bottom.train=lora", "top.train=lora"),
        ]
        tree = configuration.to_tree(configuration.resolve(None, overrides))
        trial = SiteConfig(trial=True)
        if chosen.source == "server":
            (folder / "bare").mkdir()
            for file in (folder / "model").iterdir():
                if file.suffix != ".safetensors":
                    (folder / "bare" / file.name).write_bytes(file.read_bytes())
            trial = SiteConfig(trial=True, model=str(folder / "bare"))
        idle = bare("halfback.deploy.worker")
        site = OneSite(folder / "site", trial)
        worker = Watched(site.relay.pid)
        serve(
            "run",
            tree,
            Surroundings(
                site=lambda: SiteConfig(trial=True),
                folder=lambda _: folder / "server",
                sites=lambda: {"site-0": 1},
                carrier=lambda _: site,
                job=folder / "job",
                listen=lambda _: None,
            ),
        )
        ended = json.loads((folder / "job" / RUN / ENDED).read_text())
        if ended["how"] != "finished":
            raise SystemExit(f"the run ended so: {ended}")
        time.sleep(0.1)
        site.relay.close()
    mega = 1e6
    sizes = f"model {whole / mega:.0f} MB, bottom {bottom / mega:.0f} MB ({bottom / whole:.0%})"
    print(f"{sizes}, weights from {chosen.source}")
    print("| memory | bare process, MB | worker's peak, MB | over it, MB | ÷ bottom |\n| --- | --- | --- | --- | --- |")
    for name, what in (("VmHWM", "resident"), ("RssAnon", "anonymous")):
        more = worker.peaks[name] - idle.peaks[name]
        figures = (idle.peaks[name] / mega, worker.peaks[name] / mega, more / mega)
        print(f"| {what} | " + " | ".join(f"{figure:.0f}" for figure in figures) + f" | {more / bottom:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_model(Path(sys.argv[2]), blocks=int(sys.argv[3]), hidden=int(sys.argv[4]))
    else:
        main()
