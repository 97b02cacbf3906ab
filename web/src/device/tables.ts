/** A table as all readers see it: texts under named columns, each row with the place that it stands in. */

import { RowError } from "../core/errors";
import { shown } from "./facts";

/** Ends of lines, as editors have them. */
export const ENDS = /\r\n|\r|\n/g;

/** A cell that no text stands in; `kind` says what does, with its article. */
export class NoText {
  constructor(readonly kind: string) {}
}

/** The text as it is written, null where it is missing. */
export type Cell = string | NoText | null;

/** Rows under named columns; `where` names the table in messages, `place` a row (from 0) within it. */
export class Table {
  constructor(
    readonly where: string,
    readonly size: number,
    readonly columns: ReadonlyMap<string, readonly Cell[]>,
    readonly place: (row: number) => string,
  ) {}

  /** The cells of a column; blanks around its name don't count. RowError where there is none of the name. */
  column(name: string): readonly Cell[] {
    const found = this.columns.get(name.trim());
    if (found === undefined) {
      const names = [...this.columns.keys()].map((each) => shown(each)).join(", ");
      throw new RowError(`${this.where} has no column ${shown(name)}; it has ${names}`);
    }
    return found;
  }
}

/** The line, from 1, that the character at `position` stands in. */
export function lineOf(text: string, position: number): number {
  return 1 + (text.slice(0, position).match(ENDS) ?? []).length;
}

/** Whether a text is a whole number. */
export function isWholeText(text: string): boolean {
  return /^[+-]?\d{1,999}$/.test(text);
}
