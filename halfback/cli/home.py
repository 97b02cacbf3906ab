"""Commands that take a run home: export and apply."""

from pathlib import Path
from typing import Annotated

import typer

from halfback.cli.printing import checkpoint_of
from halfback.errors import UserError


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="The whole model, adapters merged, as model.name takes it; this is the default."),
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="What PEFT puts on the base: one adapter.")] = False,
    parts: Annotated[
        bool, typer.Option("--parts", help="With --adapter: one for the devices' part and one for the server's.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="The whole model as one graph for ONNX Runtime.")] = False,
    history: Annotated[
        bool, typer.Option("--history", help="The slopes of every step in one small file, for `halfback apply`.")
    ] = False,
    without_top: Annotated[
        bool, typer.Option("--without-top", help="With --history: leave out what the server trained by gradients.")
    ] = False,
    checkpoint: Annotated[
        str, typer.Option(metavar="last|best", help="Which of a run's; best where it ran with keep_best=true.")
    ] = "last",
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Upload it to the hub too, as OWNER/NAME.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: a repository that others don't see.")
    ] = False,
) -> None:
    """Write what was trained, with a model card: the model, its adapters, a graph or a history (docs/take_home.md)."""
    from halfback.runs import run
    from halfback.runs.exporting import Form

    asked: dict[Form, bool] = {"merged": merged, "adapter": adapter, "onnx": onnx, "history": history}
    chosen = [form for form, is_asked in asked.items() if is_asked]
    if len(chosen) > 1:
        raise UserError(f"{' '.join(f'--{form}' for form in chosen)}: one of them is allowed")
    if private and push is None:
        raise UserError("--private is for --push")
    if push is not None:
        from halfback.runs import exporting_push

        exporting_push.check_name(push)
    form = chosen[0] if chosen else "merged"
    which = checkpoint_of(checkpoint)
    print(run.load(folder).export(out, form, parts=parts, top=not without_top, checkpoint=which))
    if push is not None:
        print(exporting_push.push(out, push, private=private))


def apply(
    history: Annotated[Path, typer.Argument(help="A history, or the folder that `export --history` wrote.")],
    base: Annotated[str, typer.Option(help="The model that the run began from: its name or folder.")],
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
) -> None:
    """Rebuild a fine-tuned model from a history and its base, to the bit."""
    from halfback.runs.applying import apply as rebuild

    rebuild(history, base, out)
    print(out)
