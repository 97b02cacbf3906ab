/**
 * Random directions from a counter-based generator, the same bits as everywhere (docs/protocol.md).
 *
 * Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). Value i of a parameter's
 * direction is a function of (seed, name, i) alone, so that a parameter's values are made in what pieces one likes.
 */

import { gaussianTable } from "./gaussian";
import { type Law, type Seeds, type Word, nameNumber, wordOf } from "./seeds";
import { type Shape, type Tensor, sizeOf, tensor, zeros } from "./tensor";

const ROUNDS = 10;
/** A piece of a direction begins at a multiple of this, so with a block of either law. */
export const ALIGNMENT = 128;
/** Blocks that are drawn at once: eight kilobytes. */
const AT_ONCE = 512;
const SIGN = 0x80000000 | 0;

/** Fills `words`, four to a block, with blocks number `first`, `first` + 1, … of a key and a name. */
export function philox(words: Uint32Array, first: Word, key: Word, name: Word): void {
  for (let at = 0; at < words.length; at += 4) {
    const low = first.low + at / 4;
    let c0 = low | 0;
    let c1 = (first.high + (low < 2 ** 32 ? 0 : 1)) | 0;
    let c2 = name.low | 0;
    let c3 = name.high | 0;
    let k0 = key.low | 0;
    let k1 = key.high | 0;
    for (let round = 0; round < ROUNDS; round += 1) {
      // The high halves of 0xD2511F53 · c0 and 0xCD9E8D57 · c2, by halves of 16 bits, whose products fit 32.
      const a = c0 & 0xffff;
      const b = c0 >>> 16;
      const c = c2 & 0xffff;
      const d = c2 >>> 16;
      const middle0 = (Math.imul(0xd251, a) + (Math.imul(0x1f53, a) >>> 16)) | 0;
      const carry0 = (Math.imul(0x1f53, b) + (middle0 & 0xffff)) | 0;
      const high0 = (Math.imul(0xd251, b) + (middle0 >>> 16) + (carry0 >>> 16)) | 0;
      const middle2 = (Math.imul(0xcd9e, c) + (Math.imul(0x8d57, c) >>> 16)) | 0;
      const carry2 = (Math.imul(0x8d57, d) + (middle2 & 0xffff)) | 0;
      const high2 = (Math.imul(0xcd9e, d) + (middle2 >>> 16) + (carry2 >>> 16)) | 0;
      const low0 = Math.imul(0xd2511f53, c0);
      c0 = high2 ^ c1 ^ k0;
      c1 = Math.imul(0xcd9e8d57, c2);
      c2 = high0 ^ c3 ^ k1;
      c3 = low0;
      k0 = (k0 + 0x9e3779b9) | 0;
      k1 = (k1 + 0xbb67ae85) | 0;
    }
    words[at] = c0;
    words[at + 1] = c1;
    words[at + 2] = c2;
    words[at + 3] = c3;
  }
}

const names = new Map<string, Word>();

function numberOf(name: string): Word {
  const known = names.get(name) ?? wordOf(nameNumber(name));
  names.set(name, known);
  return known;
}

const drawn = new Uint32Array(4 * AT_ONCE);

/** The direction of one parameter under one seed. */
export class Direction {
  private readonly name: Word;

  constructor(
    private readonly key: Word,
    name: string,
    private readonly law: Law,
  ) {
    this.name = numberOf(name);
  }

  /**
   * Fills `made` with the direction's values from number `start` on, a multiple of `ALIGNMENT`, times `scale`; both are
   * rounded to float32.
   */
  write(made: Float32Array, start: number, scale: number): void {
    const each = this.law === "rademacher" ? 128 : 8;
    const fill = this.law === "rademacher" ? signs : normals;
    for (let at = 0; at < made.length; at += AT_ONCE * each) {
      const here = made.subarray(at, at + AT_ONCE * each);
      const words = drawn.subarray(0, 4 * Math.ceil(here.length / each));
      const block = (start + at) / each;
      philox(words, { low: block % 2 ** 32, high: Math.floor(block / 2 ** 32) }, this.key, this.name);
      fill(here, words, scale);
    }
  }
}

/** ± the scale from bits: a set one is -1, so it is the sign of the float. */
function signs(made: Float32Array, words: Uint32Array, scale: number): void {
  const size = new Int32Array(Float32Array.of(scale).buffer)[0] as number;
  const bits = new Int32Array(made.buffer, made.byteOffset, made.length);
  const full = made.length >>> 5;
  for (let word = 0; word < full; word += 1) {
    const from = words[word] as number;
    const at = word << 5;
    for (let bit = 0; bit < 32; bit += 8) {
      const place = at + bit;
      const left = from >>> bit;
      bits[place] = size ^ (left << 31);
      bits[place + 1] = size ^ ((left << 30) & SIGN);
      bits[place + 2] = size ^ ((left << 29) & SIGN);
      bits[place + 3] = size ^ ((left << 28) & SIGN);
      bits[place + 4] = size ^ ((left << 27) & SIGN);
      bits[place + 5] = size ^ ((left << 26) & SIGN);
      bits[place + 6] = size ^ ((left << 25) & SIGN);
      bits[place + 7] = size ^ ((left << 24) & SIGN);
    }
  }
  for (let place = full << 5; place < made.length; place += 1) {
    bits[place] = size ^ (((words[full] as number) << (31 - (place & 31))) & SIGN);
  }
}

/** What halves of words choose from the table, times the scale. */
function normals(made: Float32Array, words: Uint32Array, scale: number): void {
  const halves = new Uint16Array(words.buffer, words.byteOffset, made.length);
  const table = gaussianTable();
  const factor = Math.fround(scale);
  for (let at = 0; at < made.length; at += 1) made[at] = (table[halves[at] as number] as number) * factor;
}

/** The whole direction of one parameter: float32 of its shape. */
export function direction(seed: bigint, name: string, shape: Shape, law: Law = "rademacher"): Tensor<"float32"> {
  const made = zeros("float32", shape);
  new Direction(wordOf(seed), name, law).write(made.data, 0, 1);
  return made;
}

/**
 * θ + `radius`·u of the direction at a place among the seeds, parameter by parameter, as a graph asks for it; live
 * parameters never change.
 */
export class Perturbed {
  private readonly key: Word;
  private readonly law: Law;

  constructor(
    private readonly parameters: ReadonlyMap<string, Tensor<"float32">>,
    seeds: Seeds,
    place: number,
    private readonly radius: number,
  ) {
    const seed = seeds.numbers[place];
    if (seed === undefined) throw new RangeError(`there is no direction ${place} of ${seeds.length}`);
    this.key = wordOf(seed);
    this.law = seeds.law;
  }

  has(name: string): boolean {
    return this.parameters.has(name);
  }

  /** A fresh tensor of the parameter's shape. */
  of(name: string): Tensor<"float32"> {
    const parameter = this.parameters.get(name);
    if (parameter === undefined) throw new RangeError(`${name} is no parameter that moves`);
    const moved = new Float32Array(sizeOf(parameter.shape));
    new Direction(this.key, name, this.law).write(moved, 0, this.radius);
    for (let at = 0; at < moved.length; at += 1) moved[at] = (parameter.data[at] as number) + (moved[at] as number);
    return tensor("float32", parameter.shape, moved);
  }
}
