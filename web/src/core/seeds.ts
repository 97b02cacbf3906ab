/** Seeds are hashed paths: no arithmetic, so no two paths share a seed by construction of a sum (docs/protocol.md). */

import { blake2b } from "@noble/hashes/blake2.js";

export type Law = "rademacher" | "gaussian";
/** Sixty-four bits as two halves of 32, for loops in which a bigint would be slow. */
export interface Word {
  readonly low: number;
  readonly high: number;
}

const TEXT = new TextEncoder();
/** BLAKE2b's field for who asks has 16 bytes, zeros behind a shorter name. */
const PERSONS = { seed: person("halfback.seed"), name: person("halfback.name") };

function person(name: string): Uint8Array {
  const field = new Uint8Array(16);
  field.set(TEXT.encode(name));
  return field;
}

/**
 * The 64-bit seed of a path such as `(runSeed, "direction", "bottom", step, 3)`.
 *
 * Each element, a whole number or a text, is written with its type and length before hashing, so `("1", 2)`, `(1, 2)`
 * and `(12)` differ. TypeError for a number that is not whole.
 */
export function seedFor(...path: readonly (number | bigint | string)[]): bigint {
  const pieces: Uint8Array[] = [];
  for (const element of path) {
    if (typeof element === "number" && !Number.isSafeInteger(element)) {
      throw new TypeError(`a seed path holds whole numbers and texts, not ${element}`);
    }
    const text = TEXT.encode(`${element}`);
    const head = new DataView(new ArrayBuffer(5));
    head.setUint8(0, (typeof element === "string" ? "s" : "i").charCodeAt(0));
    head.setUint32(1, text.length, true);
    pieces.push(new Uint8Array(head.buffer), text);
  }
  const hash = blake2b.create({ dkLen: 8, personalization: PERSONS.seed });
  for (const piece of pieces) hash.update(piece);
  return whole(hash.digest());
}

/** The 64 bits by which a parameter's name stands in a counter. */
export function nameNumber(name: string): bigint {
  return whole(blake2b(TEXT.encode(name), { dkLen: 8, personalization: PERSONS.name }));
}

/** Eight bytes, the lowest first, as a number from 0 to 2^64 - 1. */
export function whole(digest: Uint8Array): bigint {
  return new DataView(digest.buffer, digest.byteOffset, 8).getBigUint64(0, true);
}

/** The halves of a number from 0 to 2^64 - 1. */
export function wordOf(number: bigint): Word {
  return { low: Number(number & 0xffffffffn), high: Number(number >> 32n) };
}

/** The seed of direction p of a row: that of the path which goes on by these two from `path`. */
export function seedsUnder(...path: readonly (number | bigint | string)[]): (row: number, p: number) => bigint {
  return (row, p) => seedFor(...path, row, p);
}

/** The directions of one step: a seed each, and the law that all of them have. */
export class Seeds {
  constructor(
    readonly numbers: readonly bigint[],
    readonly law: Law = "rademacher",
  ) {}

  get length(): number {
    return this.numbers.length;
  }
}

/** The directions of all steps: `seedOf(row, p)` is the seed of direction p of a row of the history. */
export class Directions {
  constructor(
    readonly seedOf: (row: number, p: number) => bigint,
    readonly law: Law = "rademacher",
  ) {}

  /** The first `count` directions of a row. */
  of(row: number, count: number): Seeds {
    return new Seeds(
      Array.from({ length: count }, (_, p) => this.seedOf(row, p)),
      this.law,
    );
  }
}
