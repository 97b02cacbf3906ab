/** Encoded rows, and batches of them in an order of the client's own. */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";

import { Random } from "./random";
import { type Tensor, bytesOf, described, sizeOf, tensor } from "./tensor";

/** The label of positions that the loss leaves out. */
export const IGNORED = -100n;

/**
 * For texts `input_ids` (N) int64, the N tokens of all rows one behind the other, and `lengths` (B) int64, how many are
 * of each, with `token_type_ids` (N) int64 for sentence pairs of tokenizers that have them; for images `pixel_values`
 * (B, C, H, W) float32.
 */
export type Inputs = Readonly<Record<string, Tensor>>;

/** B rows ready for the bottom. */
export interface Batch {
  readonly inputs: Inputs;
  /** (B) class numbers, or of tokens (N): the tokens, not shifted, -100 on prompts and on each row's first. */
  readonly labels: Tensor<"int64">;
  /** (B) numbers of rows, the same whenever a row comes again. */
  readonly sampleIds: Tensor<"int64">;
  /** Where tokens have labels, the places (S) of those behind which a label other than -100 comes; else null. */
  readonly scored: Tensor<"int64"> | null;
}

/** Lists of whole numbers in one array: as arrays of their own they would take many times the memory. */
export class Ragged {
  readonly values: Int32Array<ArrayBuffer>;
  /** Where each list ends, 0 first. */
  readonly ends: Int32Array<ArrayBuffer>;

  constructor(lists: readonly (readonly number[])[]) {
    this.ends = new Int32Array(lists.length + 1);
    lists.forEach((list, place) => {
      this.ends[place + 1] = (this.ends[place] as number) + list.length;
    });
    this.values = new Int32Array(this.ends.at(-1) as number);
    lists.forEach((list, place) => this.values.set(list, this.ends[place]));
  }

  /** How many lists. */
  get length(): number {
    return this.ends.length - 1;
  }

  /** Numbers of each list. */
  get lengths(): number[] {
    return Array.from({ length: this.length }, (_, place) => this.of(place).length);
  }

  /** One of the lists, as a view. */
  of(place: number): Int32Array {
    return this.values.subarray(this.ends[place], this.ends[place + 1]);
  }

  /** The numbers of some lists, one behind the other, and how many each of these has. */
  joined(places: readonly number[]): [Tensor<"int64">, Tensor<"int64">] {
    const lists = places.map((place) => this.of(place));
    const numbers = BigInt64Array.from(lists.flatMap((list) => Array.from(list, BigInt)));
    return [vector(numbers), vector(BigInt64Array.from(lists, (list) => BigInt(list.length)))];
  }
}

/** How pixels become values: times `scale`, or by 255 in float32 where it is null; `mean` and `std` of each colour. */
export interface ImageForm {
  readonly scale: number | null;
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

/** A client's encoded rows, n of them. */
export interface Rows {
  readonly labels: BigInt64Array<ArrayBuffer>;
  /** Numbers of the rows among all that this device trains on. */
  readonly ids: BigInt64Array<ArrayBuffer>;
  /** Of each row; for images none. */
  readonly tokens?: Ragged | null;
  /** Likewise, where the model has them. */
  readonly tokenTypes?: Ragged | null;
  /** How many tokens at a row's beginning have no loss, 1 or more, where tokens have one at all. */
  readonly unscored?: readonly number[] | null;
  /** (n, C, H, W) float32 as they are, or (n, H, W, 3) uint8, which `imageForm` makes values of. */
  readonly images?: Tensor<"float32"> | Tensor<"uint8"> | null;
  readonly imageForm?: ImageForm;
}

/** A client's encoded rows. */
export class Split {
  constructor(readonly rows: Rows) {}

  /** How many rows. */
  get length(): number {
    return this.rows.labels.length;
  }

  /** The rows at these places (at least one, in this order). */
  batch(places: readonly number[]): Batch {
    const { tokens, tokenTypes, unscored, images } = this.rows;
    const sampleIds = vector(taken(this.rows.ids, places));
    if (!tokens) {
      if (!images) throw new RangeError("a split has tokens or images");
      const inputs = { pixel_values: this.values(images, places) };
      return { inputs, labels: vector(taken(this.rows.labels, places)), sampleIds, scored: null };
    }
    const [ids, lengths] = tokens.joined(places);
    const inputs: Record<string, Tensor> = { input_ids: ids, lengths };
    if (tokenTypes) inputs["token_type_ids"] = tokenTypes.joined(places)[0];
    if (!unscored) return { inputs, labels: vector(taken(this.rows.labels, places)), sampleIds, scored: null };
    const labels = ids.data.slice();
    let first = 0;
    for (const place of places) {
      labels.fill(IGNORED, first, first + (unscored[place] as number));
      first += tokens.of(place).length;
    }
    const behind = [...labels.keys()].filter((at) => at > 0 && labels[at] !== IGNORED);
    const scored = BigInt64Array.from(behind, (at) => BigInt(at - 1));
    return { inputs, labels: vector(labels), sampleIds, scored: vector(scored) };
  }

  /** One text that differs where a row does, or how many there are. */
  digest(): string {
    const { labels, ids, tokens, tokenTypes, unscored, images } = this.rows;
    const hash = sha256.create();
    const parts: (Tensor | null)[] = [vector(labels), vector(ids), images ?? null];
    for (const ragged of [tokens, tokenTypes]) {
      for (const each of ragged ? [ragged.values, ragged.ends] : [null, null]) {
        parts.push(each && tensor("int32", [each.length], each));
      }
    }
    parts.push(unscored ? tensor("int32", [unscored.length], Int32Array.from(unscored)) : null);
    for (const part of parts) {
      hash.update(new TextEncoder().encode(part === null ? "-" : described(part)));
      if (part !== null) hash.update(bytesOf(part));
    }
    return bytesToHex(hash.digest());
  }

  private values(images: Tensor<"float32"> | Tensor<"uint8">, places: readonly number[]): Tensor<"float32"> {
    const shape = images.shape.slice(1);
    const size = sizeOf(shape);
    if (images.dtype === "float32") {
      const made = new Float32Array(places.length * size);
      places.forEach((place, at) => made.set(images.data.subarray(place * size, (place + 1) * size), at * size));
      return tensor("float32", [places.length, ...shape], made);
    }
    const form = this.rows.imageForm;
    if (form === undefined) throw new RangeError("pixels have a form");
    const [height, width] = shape as [number, number];
    const made = new Float32Array(places.length * size);
    places.forEach((place, at) => {
      valued(images.data.subarray(place * size, (place + 1) * size), made.subarray(at * size, (at + 1) * size), form);
    });
    return tensor("float32", [places.length, 3, height, width], made);
  }
}

/** Pixels (H, W, 3) as values (3, H, W), each product, difference and quotient rounded to float32. */
function valued(pixels: Uint8Array, made: Float32Array, form: ImageForm): void {
  const area = pixels.length / 3;
  for (let colour = 0; colour < 3; colour += 1) {
    const [mean, std] = [Math.fround(form.mean[colour] as number), Math.fround(form.std[colour] as number)];
    for (let at = 0; at < area; at += 1) {
      const pixel = pixels[3 * at + colour] as number;
      const scaled = Math.fround(form.scale === null ? pixel / 255 : pixel * form.scale);
      made[colour * area + at] = Math.fround(scaled - mean) / std;
    }
  }
}

function vector(values: BigInt64Array<ArrayBuffer>): Tensor<"int64"> {
  return tensor("int64", [values.length], values);
}

function taken(values: BigInt64Array, places: readonly number[]): BigInt64Array<ArrayBuffer> {
  return BigInt64Array.from(places, (place) => values[place] as bigint);
}

/**
 * A client's batches: batch `number` is a function of (seed, number) alone, so nothing of it needs to be kept.
 *
 * Every epoch is a new permutation of all rows; a batch never straddles two epochs, so the last of an epoch is smaller
 * where the size does not divide the rows.
 */
export class Feed {
  /** The number of the next batch. */
  cursor = 0;
  private epoch: { readonly number: number; readonly order: readonly number[] } | null = null;

  /** `split`: of at least one row; `size`: of a batch. */
  constructor(
    private readonly split: Split,
    private readonly size: number,
    private readonly seed: number | bigint,
  ) {}

  /** The number of rows. */
  get length(): number {
    return this.split.length;
  }

  /** Batch `number`, counted from 0 over all epochs. */
  batch(number: number): Batch {
    const each = Math.ceil(this.length / this.size);
    const start = (number % each) * this.size;
    return this.split.batch(this.order(Math.floor(number / each)).slice(start, start + this.size));
  }

  /** The batch at the cursor, which goes on. */
  next(): Batch {
    const batch = this.batch(this.cursor);
    this.cursor += 1;
    return batch;
  }

  /** The order of an epoch, which is remembered: it takes longer to draw than a batch to be put together. */
  private order(epoch: number): readonly number[] {
    if (this.epoch?.number !== epoch) {
      this.epoch = { number: epoch, order: Random.of(this.seed, epoch).permutation(this.length) };
    }
    return this.epoch.order;
  }
}

