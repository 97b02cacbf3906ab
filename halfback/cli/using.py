"""Commands that use what was trained: predict, evaluate, generate."""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfback.cli.printing import checkpoint_of, console, parsed, print_table
from halfback.errors import UserError
from halfback.runs.heartbeat import working

if TYPE_CHECKING:
    from halfback.data.reading import Rows
    from halfback.runs.evaluating import Scores
    from halfback.runs.opening import Which as Checkpoint
    from halfback.runs.subject import Subject

_SHOWN = 20  # rows of a table on a terminal
_LIKE_A_FILE = re.compile(r"\S*[\w-]\.[A-Za-z][A-Za-z0-9]{1,4}|\S*/\S*")
_FILES = (".csv", ".json", ".jsonl", ".csv.gz", ".json.gz", ".jsonl.gz")

Which = Annotated[
    str, typer.Option(metavar="last|best", help="Which of a run's checkpoints; best where it ran with keep_best=true.")
]
Reading = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="How the file is read, where it is not like the run's: text, pair, label or target (names of columns), "
        "delimiter, encoding, skip_bad_rows=true. Can be given several times.",
    ),
]


def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, or of an exported model.")],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|TEXT...", help="A CSV, JSON or JSONL file, an image or folder of images, or texts."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="CSV file for all rows; without it a table of the first ones is printed.")
    ] = None,
    checkpoint: Which = "last",
    reading: Reading = None,
) -> None:
    """Say what a trained model makes of rows: classes with probabilities, perplexities, or texts (see docs/use.md)."""
    which = _quietly(checkpoint)
    if out is not None and out.suffix.lower() != ".csv":
        raise UserError(f"--out {out}: the name of a .csv file is allowed")
    if out is not None and any(out.resolve() == Path(each).resolve() for each in data):
        raise UserError(f"--out {out}: that is the file which is read; name another")
    changes = parsed(reading or [])
    with working("predicting") as told:
        from halfback.runs import predicting
        from halfback.runs.subject import subject

        own = subject(folder, which=which, changes=changes)
        rows = _rows(own, data)
        if out is not None:
            count = predicting.write(own, rows, out, told)
        else:
            shown = predicting.first(rows, _SHOWN)
            found = list(predicting.predictions(own, shown, told))
    if out is not None:
        print(f"{count} rows: {out}")
        return
    header, body = predicting.table(own, shown, found)
    print_table(header, [[_cell(value) for value in row] for row in body])
    if len(rows) > len(shown):
        print(f"{len(shown)} of {len(rows)} rows; --out predictions.csv is for all of them")


def _quietly(checkpoint: str) -> "Checkpoint":
    """Which checkpoint is meant; what loading a run's files has to tell was told when it was trained."""
    logging.getLogger("halfback").setLevel(logging.ERROR)
    return checkpoint_of(checkpoint)


def _rows(own: "Subject", data: list[str]) -> "Rows":
    from halfback.runs import predicting

    files = [each for each in data if each.lower().endswith(_FILES) or _is_there(each)]
    if files and len(data) > 1:
        raise UserError(f"{files[0]}: one file or folder is allowed, or texts alone")
    if files or own.tokenizer is None:
        if len(data) > 1:
            raise UserError(f"{own.where} takes images: name one file or folder")
        return own.read(data[0], answers=False)
    for each in data:
        if _LIKE_A_FILE.fullmatch(each):
            raise UserError(f"{each}: there is no such file or folder, and a text with a file's name is none")
    return predicting.of_texts(own, data)


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a text is no name of a file
        return False


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, or of an exported model.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="A CSV, JSON or JSONL file with labels or targets, or a folder of images with one subfolder a class; "
            "by default the run's validation rows.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the confusion matrix: a file that ends in .png, .svg or .pdf.")
    ] = None,
    generated: Annotated[
        int | None,
        typer.Option(help="Inputs that a model which writes continues; by default task.generated_rows, of DATA all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    checkpoint: Which = "last",
    reading: Reading = None,
) -> None:
    """Say how good a trained model is: accuracy, F1 and classes; perplexity; BLEU and chrF (see docs/use.md)."""
    which, changes = _quietly(checkpoint), parsed(reading or [])
    if picture is not None and picture.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--picture {picture}: a file that ends in .png, .svg or .pdf is allowed")
    with working("evaluating") as told:
        from halfback.runs.evaluating import scored
        from halfback.runs.subject import subject

        own = subject(folder, which=which, changes=changes)
        rows = None if data is None else own.read(data, answers=True)
        scores = scored(own, rows, generated=generated, told=told)
    if picture is not None:
        _draw(scores, picture)
    if as_json:
        print(json.dumps(scores.to_dict(), indent=2))
    else:
        _print(scores)
        if picture is not None:
            console.print(f"confusion matrix: {picture}", soft_wrap=True, markup=False)


def _draw(scores: "Scores", picture: Path) -> None:
    if not scores.confusion:
        raise UserError(f"--picture {picture}: there are no classes to be confused")
    from halfback.errors import of_extra

    with of_extra("metrics"):
        from halfback.report.confusion import draw
    draw([each.name for each in scores.classes], scores.confusion, picture)


def _print(scores: "Scores") -> None:
    said = {"rows": f"{scores.rows:,}", scores.metric_name: f"{scores.metric:.6g}", "loss": f"{scores.loss:.6g}"}
    if scores.accuracy is not None:
        said |= {"accuracy": f"{scores.accuracy:.6g}", "macro F1": f"{scores.macro_f1:.6g}"}
    if (written := scores.generation) is not None:
        said |= {"BLEU": f"{written.bleu:.4g}", "chrF": f"{written.chrf:.4g}"}
        said |= {"inputs continued": f"{written.rows:,}", "decoding": written.decoding}
    width = max(map(len, said))
    for name, value in said.items():
        print(f"{name:<{width}}  {value}")
    if scores.classes:
        rows = [
            [each.name, f"{each.precision:.1f}", f"{each.recall:.1f}", f"{each.f1:.1f}", f"{each.support:,}"]
            for each in scores.classes
        ]
        print_table(["class", "precision", "recall", "F1", "support"], rows)


def generate(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL", help="Folder of a run with task.objective generation or causal_lm, or model."
        ),
    ],
    texts: Annotated[list[str], typer.Argument(help="What to continue; the task's template is put around it.")],
    beams: Annotated[int | None, typer.Option(min=1, help="1 is greedy; by default the run's task.beams.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="By default the run's task.max_new_tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Draw tokens at random: above 1 likelier to surprise, below 1 less so.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likeliest tokens alone.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that have this probability together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn; by default 0.")] = None,
    samples: Annotated[int | None, typer.Option(help="Continuations of each text, drawn at random.")] = None,
    checkpoint: Which = "last",
) -> None:
    """Print what the fine-tuned model writes behind each text."""
    which = _quietly(checkpoint)
    wanted = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "samples": samples}
    with working("writing") as told:
        from halfback.runs.subject import subject
        from halfback.runs.writing import asked, written

        how = asked(beams, max_new_tokens, {key: value for key, value in wanted.items() if value is not None})
        found = written(subject(folder, which=which), texts, how, told)
    for number, text in enumerate(found):
        if samples is not None and samples > 1:
            print(f"— {number % samples + 1} of {samples} —")  # a text may have several lines
        print(text)
