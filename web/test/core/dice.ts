/** Draws that a seed repeats, for tests alone: mulberry32. */

export class Dice {
  constructor(private state: number) {}

  /** A whole number from 0 to `below` - 1. */
  below(below: number): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  }

  between(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  choice<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }

  bytes(count: number, below = 256): Uint8Array<ArrayBuffer> {
    return Uint8Array.from({ length: count }, () => this.below(below));
  }
}
