/** Rows of a CSV text: a field may be in quotes, and nothing stands behind a closing quote but the field's end. */

/** Quotes that are no CSV. */
export class CsvError extends Error {
  /** `isOpen`: a quote opens that nothing closes; `line`: the last that was read. */
  constructor(
    readonly isOpen: boolean,
    readonly line: number,
  ) {
    super(isOpen ? "a quote opens that nothing closes" : "text behind a closing quote");
  }
}

/** A row: the line that it begins in, from 1, and its fields. */
export interface CsvRow {
  readonly line: number;
  readonly fields: string[];
}

/**
 * The rows of a text, blank lines among them.
 *
 * @param delimiter one character between two fields.
 * @param afterBlanks blanks at the beginning of a field don't count.
 * @throws CsvError with the line.
 */
export function* csvRows(text: string, delimiter: string, afterBlanks: boolean): Generator<CsvRow> {
  let at = 0;
  let line = 1;
  while (at < text.length) {
    const row: CsvRow = { line, fields: [] };
    for (let ended = false; !ended;) {
      while (afterBlanks && text[at] === " ") at += 1;
      let field = "";
      if (text[at] === '"') {
        [field, at, line] = quoted(text, at + 1, line);
        if (at < text.length && text[at] !== delimiter && !isEnd(text[at])) throw new CsvError(false, line);
      } else {
        const start = at;
        while (at < text.length && text[at] !== delimiter && !isEnd(text[at])) at += 1;
        field = text.slice(start, at);
      }
      ended = text[at] !== delimiter;
      if (!ended || field || row.fields.length) row.fields.push(field);
      at += 1;
      if (ended && text[at - 1] === "\r" && text[at] === "\n") at += 1;
    }
    yield row;
    line += 1;
  }
}

/** The text of a quoted field from behind its quote on, where it ends, and the line there. */
function quoted(text: string, begin: number, first: number): [string, number, number] {
  let [field, at, line] = ["", begin, first];
  for (;;) {
    const close = text.indexOf('"', at);
    if (close < 0) throw new CsvError(true, line);
    const piece = text.slice(at, close);
    line += (piece.match(/\r\n|\r|\n/g) ?? []).length;
    field += piece;
    if (text[close + 1] !== '"') return [field, close + 1, line];
    field += '"';
    at = close + 2;
  }
}

function isEnd(character: string | undefined): boolean {
  return character === "\n" || character === "\r";
}
