/** A file of weights in the safetensors format, read without a copy and without a belief in its header. */

import { PackageError } from "../core/errors";
import { plain, readJson } from "../core/json";
import type { Tensor } from "../core/tensor";
import { type Tree, at, isTree, isWhole, shown } from "./facts";

export const WEIGHTS = "weights.safetensors";
/** Bytes of a manifest, and of the header of the weights. */
export const MOST_BYTES = 1 << 24;
const MOST_DIMENSIONS = 8;
const MOST_VALUES = 2 ** 40;
const SIZES: Record<string, number> = { F32: 4, I8: 1 };

/** Views of a safetensors file: 8 bytes of the header's length, a header of JSON, and the values. */
export function views(file: Uint8Array<ArrayBuffer>): Map<string, Tensor> {
  const size = file.length;
  const told = size < 8 ? 0n : new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true);
  if (size < 8 || told < 2n || told > BigInt(Math.min(size - 8, MOST_BYTES))) {
    throw new PackageError(`${WEIGHTS}: its header has ${told} bytes, of ${size}`);
  }
  const length = Number(told);
  const entries = json(file.subarray(8, 8 + length), `${WEIGHTS}: its header is not JSON`);
  if (!isTree(entries)) throw new PackageError(`${WEIGHTS}: its header must hold names and values`);
  const placed = Object.entries(entries)
    .filter(([name]) => name !== "__metadata__")
    .map(([name, entry]) => ({ name, entry: entry as Tree, offsets: offsets(name, entry) }))
    .sort((one, other) => one.offsets[0] - other.offsets[0] || one.offsets[1] - other.offsets[1]);
  const room = size - 8 - length;
  const found = new Map<string, Tensor>();
  let behind = 0;
  for (const {
    name,
    entry,
    offsets: [first, stop],
  } of placed) {
    const bytes = SIZES[String(entry["dtype"])];
    const shape = shapeOf(entry["shape"]);
    if (bytes === undefined || shape === undefined) {
      throw new PackageError(`${WEIGHTS}: ${shown(name, 80)}: its type or shape is none that is allowed`);
    }
    if (first !== behind || stop - first !== countOf(shape) * bytes || stop > room) {
      throw new PackageError(`${WEIGHTS}: ${shown(name, 80)}: its place in the file is not where its values are`);
    }
    found.set(name, view(file, 8 + length + first, shape, bytes));
    behind = stop;
  }
  if (behind !== room) {
    throw new PackageError(`${WEIGHTS}: it ends with ${room - behind} bytes that belong to nothing`);
  }
  return found;
}

function view(file: Uint8Array<ArrayBuffer>, first: number, shape: number[], bytes: number): Tensor {
  const count = countOf(shape);
  const begin = file.byteOffset + first;
  if (bytes === 1) return { dtype: "int8", shape, data: new Int8Array(file.buffer, begin, count) };
  const aligned = begin % 4 ? file.buffer.slice(begin, begin + 4 * count) : file.buffer;
  return { dtype: "float32", shape, data: new Float32Array(aligned, begin % 4 ? 0 : begin, count) };
}

function offsets(name: string, entry: unknown): [number, number] {
  const found = at(entry, "data_offsets");
  if (!Array.isArray(found) || found.length !== 2 || !found.every(isSize)) {
    throw new PackageError(`${WEIGHTS}: ${shown(name, 80)}: two offsets are due`);
  }
  return [found[0] as number, found[1] as number];
}

/** JSON of bytes, read as a run's order is: whole numbers keep their digits. PackageError begins as `said`. */
export function json(data: Uint8Array, said: string): unknown {
  try {
    return plain(readJson(new TextDecoder("utf-8", { fatal: true }).decode(data)));
  } catch (error) {
    throw new PackageError(`${said}: ${(error as Error).message}`);
  }
}

/** A number of bytes or values. */
export function isSize(value: unknown): value is number {
  return isWhole(value) && value < MOST_VALUES;
}

/** A shape; undefined for what is none. */
export function shapeOf(value: unknown): number[] | undefined {
  if (!Array.isArray(value) || value.length > MOST_DIMENSIONS || !value.every(isSize)) return undefined;
  return countOf(value) < MOST_VALUES ? [...value] : undefined;
}

/** Values of a shape. */
export function countOf(shape: readonly number[]): number {
  return shape.reduce((count, size) => count * size, 1);
}
