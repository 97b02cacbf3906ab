/**
 * A device's own rows: a file of texts, images in files, or an array of them, read, named and encoded.
 *
 * Which file, and which of its columns are read, is said on the page, never by a package or a server. What is wrong
 * with a row is a `RowError`: it may quote the row, so it stays on this machine.
 */

import { type Rows as Encoded, Split } from "../core/batches";
import { RowError } from "../core/errors";
import { tensor } from "../core/tensor";
import type { Rows } from "./events";
import { TOKENIZER, at, shown } from "./facts";
import { readTable } from "./files";
import { readNpz, textsOf } from "./npz";
import type { Package } from "./package";
import { decoded, type PictureForm } from "./pictures";
import { type Cell, NoText, type Table, isWholeText } from "./tables";
import { Encoder, type How } from "./tokens";

// What a spreadsheet or pandas writes for "no value"; a class that is really called so has to be renamed.
const MISSING = new Set(["", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "None", "null", "NULL"]);
// Only what has a point: 1e5 and 1_2 are codes.
const FRACTION = /^[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$/;
const ARRAYS = "a .npz of `images` and `labels`";

type Objective = "classification" | "causal_lm" | "generation";

/**
 * A client's rows, encoded for its model.
 *
 * @throws RowError: what is wrong with the file or a row; PackageError: with how rows are to be encoded.
 */
export async function ownSplit(rows: Rows, from: Package): Promise<Split> {
  const names = at(from.manifest, "task.label_names") as string[];
  if (at(from.manifest, "task.inputs") === "texts") {
    if (rows.kind !== "table") throw new RowError("the model reads texts, so a .csv, .json or .jsonl file is needed");
    return texts(rows, from, names);
  }
  const how = at(from.manifest, "task.images") as PictureForm & { channels: number };
  if (rows.kind === "arrays") return arrays(rows.file, [how.channels, ...how.size], names);
  if (how.channels !== 3) {
    throw new RowError(`the model takes images of ${how.channels} channel(s), so ${ARRAYS} is needed`);
  }
  if (rows.kind !== "images")
    throw new RowError(`the model takes images, so images by class, or ${ARRAYS}, are needed`);
  if (!rows.files.length) throw new RowError("no images were chosen");
  const files = [...rows.files].sort((one, other) => (pathOf(one) < pathOf(other) ? -1 : 1));
  const labels = numbers(
    files.map((each) => each.label),
    names,
    "the images",
    (row) => shown(files[row]?.file.name),
  );
  const images = await decoded(
    files.map((each) => each.file),
    how,
  );
  const shape = [files.length, ...how.size, 3];
  return new Split({ ...numbered(labels), images: tensor("uint8", shape, images), imageForm: imageForm(how) });
}

function pathOf(row: { label: string; file: File }): string {
  return `${row.label}/${row.file.name}`;
}

async function texts(rows: Rows & { kind: "table" }, from: Package, names: string[]): Promise<Split> {
  const how = at(from.manifest, "task.texts") as How;
  const objective = at(from.manifest, "task.objective") as Objective;
  if (objective === "generation")
    throw new RowError("this run generates texts, of which a page can't name the targets");
  const wanted = new Map([["text", rows.text]]);
  if (how.pair) wanted.set("pair", rows.pair ?? "");
  if (objective === "classification") wanted.set("label", rows.label);
  for (const [name, column] of wanted)
    if (!column) throw new RowError(`the run needs each row's ${name}: name its column`);
  if (new Set([...wanted.values()].map((column) => column.trim())).size < wanted.size) {
    throw new RowError(`a column is named for two things: ${[...wanted].map((each) => each.join(" ")).join(", ")}`);
  }
  const table = await readTable(rows.file);
  const own = textsIn(table, rows.text, false);
  const pairs = how.pair ? textsIn(table, rows.pair ?? "", true) : null;
  const labels =
    objective === "classification"
      ? numbers(labelsIn(table, rows.label), names, table.where, table.place)
      : own.map(() => 0n);
  const encoder = new Encoder(await from.files.read(TOKENIZER), how);
  const [tokens, tokenTypes] = encoder.rows(own, pairs);
  if (objective === "classification") return new Split({ ...numbered(labels), tokens, tokenTypes });
  if (!tokens.lengths.some((length) => length > 1)) {
    throw new RowError("no text has a second token, so there is nothing to predict");
  }
  return new Split({ ...numbered(labels), tokens, tokenTypes, unscored: labels.map(() => 1) });
}

/** Images as the model takes them, in a file of NumPy's. */
async function arrays(file: File, form: readonly number[], names: string[]): Promise<Split> {
  const where = `file ${shown(file.name, 200)}`;
  const found = await readNpz(file).catch((error: unknown) => {
    throw new RowError(`${where} cannot be read: ${(error as Error).message}; ${ARRAYS} is needed`);
  });
  const [images, labels] = [found.get("images"), found.get("labels")];
  if (images === undefined || labels === undefined) {
    throw new RowError(`${where} has no array ${images === undefined ? "images" : "labels"}; ${ARRAYS} is needed`);
  }
  const [count] = labels.shape;
  const shape = [count ?? 0, ...form];
  if (images.kind !== "f4" || labels.shape.length !== 1 || !count || images.shape.join() !== shape.join()) {
    const came = `images ${images.kind} (${images.shape.join(", ")}) with labels (${labels.shape.join(", ")})`;
    throw new RowError(`${where} has ${came}; float32 (N, ${form.join(", ")}) with (N,) are needed`);
  }
  const values = new Float32Array(images.data.buffer, images.data.byteOffset, images.data.length / 4);
  if (!values.every(Number.isFinite)) throw new RowError(`${where} has a value that is not finite`);
  const said = textsOf(labels);
  if (said === undefined) throw new RowError(`${where} has labels that are neither whole numbers nor texts`);
  const own = numbers(said, names, where, (row) => `row ${row + 1}`);
  return new Split({ ...numbered(own), images: tensor("float32", shape, values) });
}

function imageForm(how: object): { scale: number | null; mean: number[]; std: number[] } {
  return {
    scale: at(how, "scale") as number | null,
    mean: at(how, "mean") as number[],
    std: at(how, "std") as number[],
  };
}

/** Labels, and the numbers of the rows among all that this device trains on. */
function numbered(labels: readonly bigint[]): Pick<Encoded, "labels" | "ids"> {
  return { labels: BigInt64Array.from(labels), ids: BigInt64Array.from(labels, (_, row) => BigInt(row)) };
}

/** Class numbers of labels; where no class is a whole number, a whole number is that of a class. */
function numbers(labels: string[], names: string[], where: string, place: (row: number) => string): bigint[] {
  const known = new Map(names.map((name, index) => [name, BigInt(index)]));
  if (!names.some(isWholeText)) names.forEach((_, index) => known.set(String(index), BigInt(index)));
  return labels.map((label, row) => {
    const found = known.get(label);
    if (found === undefined) {
      throw new RowError(
        `label ${shown(label)} in ${place(row)} of ${where} is no class of the run: ${names.join(", ")}`,
      );
    }
    return found;
  });
}

function textsIn(table: Table, column: string, mayBeBlank: boolean): string[] {
  return table.column(column).map((cell, row) => {
    if (typeof cell === "string" && (mayBeBlank || cell.trim())) return cell;
    const problem = cell instanceof NoText ? `${cell.kind} where a text belongs` : "no text";
    throw new RowError(`${table.place(row)}, column ${shown(column)} of ${table.where} has ${problem}`);
  });
}

/** Labels without the blanks around them; RowError at the first that is missing, a fraction or no text. */
function labelsIn(table: Table, column: string): string[] {
  return table.column(column).map((cell, row) => {
    const problem = problemOf(cell);
    if (problem === null) return (cell as string).trim();
    throw new RowError(`${table.place(row)}, column ${shown(column)} of ${table.where} has ${problem}`);
  });
}

function problemOf(cell: Cell): string | null {
  if (cell instanceof NoText) return `${cell.kind} where a label belongs`;
  if (cell === null || !cell.trim()) return "no label";
  if (MISSING.has(cell.trim())) {
    return `${shown(cell)}, which stands for no label; a class that is called so needs another name`;
  }
  return FRACTION.test(cell.trim()) ? `the label ${shown(cell)}, which is no whole number or text` : null;
}
