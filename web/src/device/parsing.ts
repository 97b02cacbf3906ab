/**
 * CSV and JSON texts to tables, without a guess at any type; errors name the line that an editor shows.
 *
 * A cell of a CSV file is its text. In JSON a text stays as it is, a number as it is spelt, true and false are "True"
 * and "False", null and NaN are missing. These are the native device's rules: a file means the same there.
 */

import { RowError } from "../core/errors";
import { CsvError, type CsvRow, csvRows } from "./csv";
import { shown } from "./facts";
import { JsonError, type Json, objectsOf } from "./spelt";
import { type Cell, ENDS, NoText, Table, isWholeText, lineOf } from "./tables";

/** Delimiters that are looked for in a header. */
const DELIMITERS = [",", ";", "\t", "|"];
const HEAD = 1 << 20; // characters that the header is looked for in
const SAID = /^"?sep=([^\w\s"]|\t)\1*"?[ \t]*(?=[\r\n])/i; // the first line of what Excel writes and reads
const RULE = /^\s*(:?-+:?\s*)?$/; // of a cell in the line below the header of a Markdown table

/** The rows of a CSV file's text, which is not blank. */
export function readCsv(text: string, where: string): Table {
  const said = SAID.exec(text);
  const rest = said === null ? text : text.slice(said[0].length); // a blank line stays, so lines keep their numbers
  return csvTable(rest, where, said?.[1] ?? delimiterOf(rest));
}

/** The comma where the header has one, else what splits it into most. */
function delimiterOf(text: string): string {
  const fields = DELIMITERS.map((each) => header(text, each).length);
  if ((fields[0] as number) > 1) return ",";
  return DELIMITERS[fields.indexOf(Math.max(...fields))] as string;
}

function header(text: string, delimiter: string): string[] {
  try {
    for (const { fields } of csvRows(text.slice(0, HEAD), delimiter, false)) if (isRow(fields)) return fields;
  } catch (error) {
    if (!(error instanceof CsvError)) throw error; // one that isn't the file's may stand between quotes that are none
  }
  return [];
}

/** A line of blanks alone is none. */
function isRow(fields: readonly string[]): boolean {
  return fields.length > 1 || fields.some((cell) => cell.trim());
}

function csvTable(text: string, where: string, delimiter: string): Table {
  const found = header(text, delimiter);
  const afterBlanks = found.length > 1 && found.slice(1).every((name) => name.startsWith(" "));
  const rows = rowsOf(text, where, delimiter, afterBlanks);
  const first = rows.next();
  const names = first.done ? [] : first.value.fields.map((name) => name.trim());
  while (names.length && !names.at(-1)) names.pop(); // of a delimiter at the end of each line
  const named = names.filter((name) => name);
  if (new Set(named).size < named.length) {
    throw new RowError(`${where} names a column twice in its header: ${names.map((name) => shown(name)).join(", ")}`);
  }
  if (!named.length) throw new RowError(`${where} has no names of columns in its header`);
  const kept: string[][] = [];
  const lines: number[] = [];
  for (const { line, fields } of rows) {
    if (delimiter === "|" && !kept.length && fields.every((cell) => RULE.test(cell))) continue;
    const more = fields.slice(names.length);
    if (fields.length < names.length || more.some((cell) => cell.trim())) {
      const came = `${fields.length} field${fields.length === 1 ? "" : "s"}, but the header has ${names.length}`;
      throw new RowError(`${where}, line ${line}: ${came} (split at ${shown(delimiter)})`);
    }
    kept.push(fields);
    lines.push(line);
  }
  checkLongCells(kept, lines, where, delimiter, names.length);
  const columns = new Map(
    names.flatMap((name, place) => (name ? [[name, kept.map((row) => row[place] as string)] as const] : [])),
  );
  return new Table(where, kept.length, columns, (row) => `line ${lines[row]}`);
}

/** Refuses a cell of several lines that are rows themselves: two stray quotes make one that is CSV all the same. */
function checkLongCells(rows: string[][], lines: number[], where: string, delimiter: string, width: number): void {
  const isLong = rows.map((row) => row.some((cell) => /[\r\n]/.test(cell)));
  if (width < 2 || !isLong.includes(true)) return;
  const others = rows.filter((_, number) => !isLong[number]);
  const known = Array.from({ length: width }, (_, place) => new Set(others.map((row) => row[place] as string)));
  const numeric = known.map((values) => values.size > 0 && [...values].every(isWholeText));
  for (const [number, whole] of rows.entries()) {
    if (!isLong[number]) continue;
    const row = whole.slice(0, width);
    const around = [rows[number - 1], rows[number + 1]].filter((each) => each !== undefined);
    for (const [place, cell] of row.entries()) {
      const pieces = cell.split(ENDS).map((piece) => piece.split(delimiter));
      if (!looksLikeRows(pieces, width, [...row.slice(0, place)], row.slice(place + 1))) continue;
      const [begin, end] = [pieces[0] as string[], pieces.at(-1) as string[]];
      const inside = [[...row.slice(0, place), ...begin], ...pieces.slice(1, -1), [...end, ...row.slice(place + 1)]];
      const columns = Array.from({ length: width }, (_, at) => inside.map((each) => each[at] as string));
      // With numbers where the others have nothing else,
      if (numeric.some((must, at) => must && !(columns[at] as string[]).every(isWholeText))) continue;
      // and in one column with values that other rows have, or that this one has, or with an index's numbers.
      const fits = columns.some((values, at) => {
        const isKnown = values.every((value) => known[at]?.has(value) || value === row[at]);
        return (
          isKnown ||
          (numeric[at] &&
            ascends(
              values,
              around.map((each) => each[at] as string),
              number === 0,
            ))
        );
      });
      if (fits) {
        const said = `a quoted cell of ${pieces.length} lines which look like rows themselves`;
        const cure = "a quote is missing or stray (a file of JSON lines can have such a text)";
        throw new RowError(`${where}, line ${lines[number]}: ${said}; ${cure}`);
      }
    }
  }
}

/** Whether the lines of a cell, with what stands before and behind it, have all of them the header's fields. */
function looksLikeRows(pieces: string[][], width: number, before: string[], behind: string[]): boolean {
  const [begin, end] = [pieces[0] as string[], pieces.at(-1) as string[]];
  const isProse = pieces.some((piece) => piece.slice(1).some((part) => part.startsWith(" "))); // blanks behind commas
  const isTable = !(begin[0] && end.at(-1)); // that begins or ends with the end of a line
  if (pieces.length === 1 || isProse || isTable) return false;
  const counts = [
    before.length + begin.length,
    ...pieces.slice(1, -1).map((each) => each.length),
    end.length + behind.length,
  ];
  return counts.every((count) => count === width);
}

/** Whether these are an index's next numbers, between those of the rows around them. */
function ascends(values: string[], around: string[], first: boolean): boolean {
  const [before, after] = first ? [[], around] : [around.slice(0, 1), around.slice(1)];
  const numbers = [...before, ...values, ...after];
  return (
    numbers.every(isWholeText) && numbers.every((next, at) => !at || BigInt(numbers[at - 1] as string) < BigInt(next))
  );
}

/** Each row with the line that it begins in, the header first; RowError for quotes that are no CSV. */
function* rowsOf(text: string, where: string, delimiter: string, afterBlanks: boolean): Generator<CsvRow> {
  let begun = 1;
  try {
    for (const row of csvRows(text, delimiter, afterBlanks)) {
      if (isRow(row.fields)) yield row;
      begun = row.line + 1 + (row.fields.join("").match(ENDS) ?? []).length;
    }
  } catch (error) {
    if (!(error instanceof CsvError)) throw error;
    if (error.isOpen) throw new RowError(`${where}, line ${begun}: a quote opens here that nothing closes`);
    const said = begun < error.line ? ` (the row begins in line ${begun})` : "";
    const cure = "a quote in a quoted cell is written twice";
    throw new RowError(`${where}, line ${error.line}: text behind a closing quote${said}; ${cure}`);
  }
}

/**
 * The rows of a JSON file's text, which is not blank: the objects of a list, or one after another.
 *
 * `oneALine`: where it is no list, each line is parsed alone, so that a row which breaks off ends with its line.
 */
export function readJson(text: string, where: string, oneALine: boolean): Table {
  const rows: ReadonlyMap<string, Json>[] = [];
  const starts: number[] = [];
  try {
    for (const { start, value } of objectsOf(text, oneALine)) {
      if (!(value instanceof Map)) {
        throw new RowError(`${where}, line ${lineOf(text, start)}: no object; a file of rows is a list of objects`);
      }
      rows.push(value);
      starts.push(start);
    }
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw new RowError(`${where} cannot be read: line ${lineOf(text, error.at)} is no JSON: ${error.message}`);
  }
  if (rows.length && rows.every((row) => !row.size)) throw new RowError(`${where} has empty objects alone`);
  if (
    rows.length === 1 &&
    [...(rows[0] as Map<string, Json>).values()].every((value) => typeof value === "object" && value !== null)
  ) {
    throw new RowError(`${where} is one object of lists or objects; a file of rows has an object in each line`);
  }
  const columns = new Map<string, Cell[]>();
  for (const name of new Set(rows.flatMap((row) => [...row.keys()]))) {
    if (columns.has(name.trim())) throw new RowError(`${where} names a column twice: ${shown(name.trim())}`);
    columns.set(
      name.trim(),
      rows.map((row) => cellOf(row.get(name))),
    );
  }
  const lines = linesOf(text, starts);
  const apart = new Set(lines).size === lines.length;
  return new Table(where, rows.length, columns, (row) => (apart ? `line ${lines[row]}` : `row ${row + 1}`));
}

/** The lines of ascending positions. */
function linesOf(text: string, starts: readonly number[]): number[] {
  let [line, before] = [1, 0];
  return starts.map((start) => {
    line += (text.slice(before, start).match(ENDS) ?? []).length;
    before = start;
    return line;
  });
}

function cellOf(value: Json | undefined): Cell {
  if (value === undefined || value === null) return null;
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value instanceof Map) return new NoText("an object");
  if (typeof value !== "string") return new NoText("a list");
  return /\p{Surrogate}/u.test(value) ? new NoText("half of a surrogate pair") : value;
}
