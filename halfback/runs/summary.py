"""What a finished run came to, in plain values."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from halfback.assembly import Built
from halfback.models.adapters import trainable
from halfback.models.objectives import better
from halfback.runs import generation
from halfback.telemetry.records import read_records


def summary_of(built: Built, out: Path) -> dict[str, Any]:
    """The summary of a run that has just ended in the folder `out`, which holds its records."""
    config, server, model = built.config, built.federation.server, built.model
    records = read_records(out)
    metrics = [record.metric for record in records if record.metric is not None]
    best = metrics[0]
    for metric in metrics:
        best = metric if better(built.task.objective, metric, best) else best
    last, meters = records[-1], server.meters
    frozen = not server.algorithm.needs.agreement.moves
    server.agreed_bottom()  # which `model.whole` shares
    return {
        "algorithm": config.algorithm.name,
        "task": config.task.name,
        "skipped_rows": built.skipped_rows,
        "model": config.model.name,
        "cut": config.model.cut,
        "head": config.model.head,
        "clients": config.clients,
        "sampled_clients": config.sampled_clients,
        "steps": config.steps,
        "seed": config.seed,
        "metric": {"name": built.task.metric, "initial": metrics[0], "final": metrics[-1], "best": best},
        "train_loss": last.train_loss,
        "up_bytes": last.up_bytes,
        "down_bytes": last.down_bytes,
        "bytes_by_kind": server.ledger.bytes_by_kind,
        "client_peak_bytes": meters.client_peak_bytes,
        "client_inference_peak_bytes": meters.client_inference_peak_bytes,
        "server_peak_bytes": meters.server_peak_bytes,
        "client_seconds": last.client_seconds,
        "server_seconds": last.server_seconds,
        "wire_seconds": last.wire_seconds,
        "wall_seconds": last.wall_seconds,
        "forward_passes": last.forward_passes,
        "generation": generation.score(
            model.whole, built.tokenizer, built.task.prompts, config.task, config.eval_batch_size
        ),
        "trainable_parameters": {
            "bottom": 0 if frozen else sum(p.numel() for p in trainable(model.bottom).values()),
            "top": sum(p.numel() for part in (model.top, model.head) if part for p in trainable(part).values()),
        },
        "versions": {name: version(name) for name in ("halfback", "torch", "transformers", "peft")},
    }
