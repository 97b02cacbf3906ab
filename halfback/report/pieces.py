"""What the pages are made of: the document and its style, tables, keys, figures. No script, nothing fetched."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from halfback.errors import UserError
from halfback.report.lines import Line, colour, marker
from halfback.report.tables import number

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #5b6570; --ground: #ffffff; --rule: #d9dee3; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5b1; --ground: #14171a; --rule: #343b42; --panel: #1c2126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.2rem 0 0.8rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--rule); }
p, li, figcaption { max-width: 62rem; }
figcaption, .note { color: var(--soft); font-size: 0.85rem; }
ul.runs { list-style: none; padding: 0; margin: 0.4rem 0; }
ul.runs li { margin: 0.3rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; }
.key { width: 1.9em; height: 0.9em; vertical-align: -0.05em; margin-right: 0.35em; }
.dot { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; padding: 0.6rem; background: var(--panel); border-radius: 8px; }
figure svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: right; padding: 0.25rem 0.9rem; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th { font-weight: 600; min-width: 5rem; }
th:first-child, .word { text-align: left; padding-left: 0.2rem; }
.bars { display: grid; grid-template-columns: fit-content(38%) 1fr; gap: 0.3rem 0.8rem; align-items: center;
  font-size: 0.9rem; margin: 0.6rem 0 1.2rem; }
.track { display: flex; align-items: center; gap: 0.5rem; }
.bar { display: flex; height: 1.1rem; border-radius: 3px; overflow: hidden; flex: 0 0 auto; }
.length { white-space: nowrap; font-variant-numeric: tabular-nums; }
details { margin: 0.6rem 0; }
summary { cursor: pointer; }
pre { padding: 0.8rem; background: var(--panel); border-radius: 8px; overflow-x: auto; font-size: 0.85rem;
  overflow-wrap: normal; }
.unfinished { color: #c25a10; font-weight: 600; }
@media (prefers-color-scheme: dark) { .unfinished { color: #f0954e; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the browser itself then refuses anything from outside
_LOG_RATIO = 10  # runs whose ends lie further apart than this share an axis only when it is logarithmic


def write_page(title: str, parts: Sequence[str], out: Path) -> Path:
    """Write a self-contained page of `parts` under its title; return its path.

    Raises:
        UserError: `out` cannot be written.
    """
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        "</main>\n</body>\n</html>\n",
    ]
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_file():  # a pipe would never end
            raise UserError(f"{out} cannot be written: it is not a file")
        if out.is_symlink():  # in a folder that came from elsewhere: what it leads to is not ours to overwrite
            out.unlink()
        out.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out


def sign(order: int) -> str:
    """A run's colour and marker, as in the curves; hidden from screen readers, for its label stands beside it."""
    shapes = {
        "o": '<circle cx="14" cy="6" r="4"/>',
        "s": '<rect x="10" y="2" width="8" height="8"/>',
        "^": '<path d="M14 1 L18.5 10 L9.5 10 Z"/>',
        "D": '<path d="M14 1 L19 6 L14 11 L9 6 Z"/>',
        "v": '<path d="M14 11 L18.5 2 L9.5 2 Z"/>',
        "P": '<path d="M12 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
        "X": '<path d="M11 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
        "*": '<path d="M14 0l1.5 4h4.5l-3.5 3 1.5 5-4-3-4 3 1.5-5-3.5-3h4.5z"/>',
    }
    ink = colour(order)
    return (
        f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true" fill="{ink}" stroke="{ink}" stroke-width="0">'
        f'<path d="M0 6H28" stroke-width="2"/>{shapes[marker(order)]}</svg>'
    )


def legend(labels: Sequence[str]) -> str:
    """Every label behind its colour and marker; nothing for one alone."""
    if len(labels) == 1:
        return ""
    keys = "".join(f"<li>{sign(order)}{escape(label)}</li>" for order, label in enumerate(labels))
    return f'<ul class="runs legend">{keys}</ul>'


def table(header: Sequence[str], body: Sequence[Sequence[str]], name: str, note: str, words: int) -> str:
    """The first `words` columns are text, the others numbers; the first names its row."""
    kinds = [' class="word"' if place < words else "" for place in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' if name else "<td></td>"
        for kind, name in zip(kinds, header, strict=True)
    )
    lines = []
    for row in body:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table aria-label="{escape(name)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="note">{escape(note)}</p>'  # not a caption: that would scroll away with a wide table
    )


def curve_figure(
    labels: Sequence[str], lines: Sequence[Line], x_label: str, y_label: str, x_text: Callable[[float], str], key: str
) -> str:
    """Curves with their caption, told in words to those who cannot see them; a line's `order` is its label's place."""
    from halfback.report.figures import curves

    ends = [max(line.x) for line in lines]
    log_x = min(ends) > 0 and max(ends) / min(ends) > _LOG_RATIO
    told = "; ".join(
        f"{labels[line.order]}{', validation' if line.dashed else ''}: "
        + ", ".join(f"{number(line.y[at])} at {x_text(line.x[at])}" for at in sorted({0, len(line.x) - 1}))
        for line in lines
    )
    caption = f"{y_label[:1].upper()}{y_label[1:]} against {x_label}."
    if any(line.dashed for line in lines):
        caption += " Solid: training; dashed: validation."
    if log_x:
        caption += " Logarithmic: what lies at 0 is left out."
    drawn = curves(lines, x_label, y_label, x_text, key, log_x)
    return figure(drawn, f"{y_label} against {x_label}. {told}", caption)


def figure(svg: str, told: str, caption: str) -> str:
    """A drawing, what it says in words, and its caption."""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(told)}"', 1)
    return f"<figure>{labelled}<figcaption>{escape(caption)}</figcaption></figure>"
