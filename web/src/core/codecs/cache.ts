/** What both ends of a link remember of each sample, with a cap and an order of leaving that both follow. */

import { blake2b } from "@noble/hashes/blake2.js";

import { whole } from "../seeds";
import type { Tensor } from "../tensor";
import type { Parts, State } from "./protocol";

interface Entry {
  readonly parts: Parts;
  readonly size: number;
  readonly check: number;
}

/**
 * Arrays by sample id, at most `cap` bytes of them; the least recently used leave first.
 *
 * `size` of an entry is what the *receiver* stores, and `check` a checksum of what was *sent* for it: the two ends hold
 * different things (a sketch, the values) and still keep one order, drop the same entries and have one digest.
 */
export class Cache {
  /** In the order of leaving, which is a map's own. */
  private readonly entries = new Map<number, Entry>();
  private bytes = 0;

  constructor(private readonly cap: number | null) {}

  has(sample: number): boolean {
    return this.entries.has(sample);
  }

  get size(): number {
    return this.entries.size;
  }

  /** The arrays of a sample that is there. */
  get(sample: number): Parts {
    return this.entry(sample).parts;
  }

  /** The sample was used: it is the last to leave now. */
  touch(sample: number): void {
    const entry = this.entry(sample);
    this.entries.delete(sample);
    this.entries.set(sample, entry);
  }

  /** Remembers a sample and drops others until the cap holds. */
  put(sample: number, parts: Parts, size: number, check: number): void {
    if (this.entries.has(sample)) this.drop(sample);
    this.entries.set(sample, { parts, size, check });
    this.bytes += size;
    for (const first of this.entries.keys()) {
      if (this.cap === null || this.bytes <= this.cap || this.entries.size === 1) break;
      this.drop(first);
    }
  }

  /** Forgets everything. */
  clear(): void {
    this.entries.clear();
    this.bytes = 0;
  }

  /** A signed 64-bit digest of which samples are here, in which order, and what was sent for them. */
  digest(): bigint {
    const hash = blake2b.create({ dkLen: 8 });
    const text = new TextEncoder();
    for (const [sample, { size, check }] of this.entries) hash.update(text.encode(`${sample} ${size} ${check}\n`));
    return BigInt.asIntN(64, whole(hash.digest()));
  }

  /** Everything, for a checkpoint. */
  state(): State {
    const arrays = new Map<string, Tensor>();
    for (const [sample, { parts }] of this.entries) {
      parts.forEach((part, place) => arrays.set(`${sample}.${place}`, part));
    }
    return { arrays, values: [...this.entries].map(([sample, { size, check }]) => [sample, size, check]) };
  }

  /** Continues from `state`. */
  loadState(state: State): void {
    this.clear();
    for (const [sample, size, check] of state.values as [number, number, number][]) {
      const parts: Tensor[] = [];
      for (let place = 0; state.arrays.has(`${sample}.${place}`); place += 1) {
        parts.push(state.arrays.get(`${sample}.${place}`) as Tensor);
      }
      this.put(sample, parts, size, check);
    }
  }

  private entry(sample: number): Entry {
    const entry = this.entries.get(sample);
    if (entry === undefined) throw new RangeError(`sample ${sample} is not remembered`);
    return entry;
  }

  private drop(sample: number): void {
    this.bytes -= this.entry(sample).size;
    this.entries.delete(sample);
  }
}
