/** What a sender remembers of a sample: its rows times a sparse matrix of random signs, or the rows themselves. */

import { Random } from "../random";
import { zeros } from "../tensor";
import type { Matrix } from "./protocol";

/**
 * Rows of `width` values in `columns`: ±√(3 ÷ columns) with probability 1/6 each, else 0 (Achlioptas, 2003), which
 * keeps a row's squared norm on average. The receiver never needs it, so any other projection would do as well; this
 * one is the reference's.
 */
export class Sketch {
  /** The columns that a row's values go to, one value's behind the other's; `-1 - column` where it is taken away. */
  private readonly places: Int32Array | null;
  /** Where the columns of each value end. */
  private readonly ends: Int32Array;

  /** `columns` null, or no fewer than the width: the rows themselves. */
  constructor(
    width: number,
    private readonly columns: number | null,
    seed: number | bigint,
  ) {
    this.ends = new Int32Array(width);
    if (columns === null || columns >= width) {
      this.places = null;
      return;
    }
    const draws = new Random([BigInt(seed), 0n]);
    const places: number[] = [];
    for (let value = 0; value < width; value += 1) {
      for (let column = 0; column < columns; column += 1) {
        const drawn = draws.below(6);
        if (drawn < 2) places.push(drawn === 0 ? column : -1 - column);
      }
      this.ends[value] = places.length;
    }
    this.places = Int32Array.from(places);
  }

  /** (rows, width) → (rows, columns), summed in float64. */
  of(rows: Matrix): Matrix {
    if (this.places === null || this.columns === null) return rows;
    const made = zeros("float32", [rows.shape[0] as number, this.columns]);
    const size = Math.sqrt(3 / this.columns);
    const sums = new Float64Array(this.columns);
    for (let row = 0; row < (rows.shape[0] as number); row += 1) {
      sums.fill(0);
      this.add(rows.data.subarray(row * this.ends.length, (row + 1) * this.ends.length), this.places, sums);
      sums.forEach((sum, column) => {
        made.data[row * sums.length + column] = sum * size;
      });
    }
    return made;
  }

  private add(row: Float32Array, places: Int32Array, sums: Float64Array): void {
    let at = 0;
    row.forEach((value, from) => {
      for (const end = this.ends[from] as number; at < end; at += 1) {
        const place = places[at] as number;
        if (place < 0) sums[-1 - place] = (sums[-1 - place] as number) - value;
        else sums[place] = (sums[place] as number) + value;
      }
    });
  }
}
