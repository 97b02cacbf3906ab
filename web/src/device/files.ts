/** Files of rows: unpacked, decoded, and read as a table. */

import { RowError } from "../core/errors";
import { shown } from "./facts";
import { readCsv, readJson } from "./parsing";
import { type Table, lineOf } from "./tables";

const CSV = /\.csv(\.gz)?$/i;
const LINES = /\.jsonl(\.gz)?$/i;
const JSON_ENDS = /\.jsonl?(\.gz)?$/i;
// No text begins so: PK, gzip once more, bzip2, xz, zstd, Parquet.
const PACKED = [
  [0x50, 0x4b, 3, 4],
  [0x1f, 0x8b],
  [0x42, 0x5a, 0x68],
  [0xfd, 0x37, 0x7a, 0x58, 0x5a],
  [0x28, 0xb5, 0x2f, 0xfd],
  [0x50, 0x41, 0x52, 0x31],
];

/**
 * The rows of a .csv, .json or .jsonl file, or of one compressed with gzip.
 *
 * A file is in what its byte order mark says, UTF-8 or UTF-16, and one without is in UTF-8.
 *
 * @throws RowError where it is unreadable or without rows; names the line where there is one.
 */
export async function readTable(file: File): Promise<Table> {
  const where = `file ${shown(file.name, 200)}`;
  if (!CSV.test(file.name) && !JSON_ENDS.test(file.name)) {
    throw new RowError(`${where} has an unknown ending; allowed: .csv, .json, .jsonl, and .gz behind these`);
  }
  const text = decoded(await bytesOfFile(file, where), where);
  if (!text.trim()) throw new RowError(`${where} is empty`);
  const table = CSV.test(file.name) ? readCsv(text, where) : readJson(text, where, LINES.test(file.name));
  if (!table.size) throw new RowError(`${where} is empty: it has no rows`);
  return table;
}

async function bytesOfFile(file: File, where: string): Promise<Uint8Array> {
  let found: Uint8Array;
  try {
    found = new Uint8Array(await file.arrayBuffer());
    if (found.length && (/\.gz$/i.test(file.name) || begins(found, [0x1f, 0x8b]))) {
      const unpacked = new Blob([found as BlobPart]).stream().pipeThrough(new DecompressionStream("gzip"));
      found = new Uint8Array(await new Response(unpacked).arrayBuffer());
    }
  } catch (error) {
    throw new RowError(`${where} cannot be read: ${(error as Error).message || (error as Error).name}`);
  }
  if (PACKED.some((mark) => begins(found, mark))) {
    throw new RowError(`${where} is packed; unpack it or save it as CSV or JSON`);
  }
  return found;
}

function begins(data: Uint8Array, mark: readonly number[]): boolean {
  return mark.every((byte, place) => data[place] === byte);
}

function decoded(found: Uint8Array, where: string): string {
  const name = begins(found, [0xff, 0xfe]) ? "utf-16le" : begins(found, [0xfe, 0xff]) ? "utf-16be" : "utf-8";
  let text: string;
  try {
    text = new TextDecoder(name, { fatal: true }).decode(found);
  } catch {
    throw new RowError(`${where} cannot be read: it is not ${name}; save it anew as UTF-8`);
  }
  const zero = text.indexOf("\0");
  if (zero >= 0) {
    throw new RowError(`${where} cannot be read: line ${lineOf(text, zero)} has a zero byte, which no text has`);
  }
  return text;
}
