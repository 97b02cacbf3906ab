/** Fewer bits a value: `cast` to half precision, `int8` and `int4` with a scale a row, `sign` with a mean a row. */

import { PackageError, PeerError } from "../errors";
import { toBfloat16, toFloat16, widened } from "../halves";
import { type Dtype, type Tensor, tensor, zeros } from "../tensor";
import { type Matrix, type Parts, type Stage, expect } from "./protocol";

const LARGEST = { float16: 65504, bfloat16: 2 ** 127 * (2 - 2 ** -7) };
type Half = keyof typeof LARGEST;

/** Values in half precision. */
export class Cast implements Stage {
  readonly extras = 0;

  constructor(
    readonly width: number,
    before: Dtype,
    readonly dtype: Half = "bfloat16",
  ) {
    if (!Object.hasOwn(LARGEST, dtype)) {
      throw new PackageError(`codec cast to ${String(dtype)}: ${Object.keys(LARGEST).join(" and ")} are allowed`);
    }
    if (before !== "float32") {
      throw new PackageError(`codec cast to ${dtype}: the values are of half precision already; leave it away`);
    }
  }

  /** Rounds to the nearest; float16 ends at 65,504, and an infinity would stop the run. */
  encode(matrix: Tensor): readonly [Tensor, Parts] {
    const values = widened(matrix);
    const largest = LARGEST[this.dtype];
    const bounded = values.data.map((value) => Math.max(Math.min(value, largest), -largest));
    const all = tensor("float32", values.shape, bounded);
    return [this.dtype === "bfloat16" ? toBfloat16(all) : toFloat16(all), []];
  }

  decode(payload: Tensor): Matrix {
    return widened(payload);
  }
}

/** Eight bits a value, symmetric, with one float32 scale a row: max |x| ÷ 127. */
export class Int8 implements Stage {
  readonly dtype = "int8";
  readonly extras = 1;

  constructor(readonly width: number) {}

  /** Whole numbers from -127 to 127, and scales (rows, 1). */
  encode(matrix: Tensor): readonly [Tensor, Parts] {
    const [values, scale] = quantised(widened(matrix), 127);
    return [values, [scale]];
  }

  decode(payload: Tensor, [scale]: Parts): Matrix {
    return scaled(payload.data as Int8Array, this.width, checkedScale(scale, payload.shape[0] as number));
  }
}

/** Four bits a value, symmetric, with one float32 scale a row: max |x| ÷ 7; the low half of a byte comes first. */
export class Int4 implements Stage {
  readonly dtype = "uint8";
  readonly extras = 1;
  readonly width: number;

  constructor(private readonly columns: number) {
    this.width = Math.ceil(columns / 2); // an odd row ends with half a byte unused
  }

  /** Bytes (rows, half the columns), and scales (rows, 1). */
  encode(matrix: Tensor): readonly [Tensor, Parts] {
    const [values, scale] = quantised(widened(matrix), 7);
    const made = zeros("uint8", [values.shape[0] as number, this.width]);
    values.data.forEach((value, at) => {
      const [row, column] = [Math.floor(at / this.columns), at % this.columns];
      const place = row * this.width + (column >>> 1);
      made.data[place] = (made.data[place] as number) | ((value & 15) << (column & 1 ? 4 : 0));
    });
    return [made, [scale]];
  }

  decode(payload: Tensor, [scale]: Parts): Matrix {
    const rows = payload.shape[0] as number;
    const bytes = payload.data as Uint8Array;
    const values = new Int8Array(rows * this.columns);
    for (let at = 0; at < values.length; at += 1) {
      const [row, column] = [Math.floor(at / this.columns), at % this.columns];
      const four = ((bytes[row * this.width + (column >>> 1)] as number) >>> (column & 1 ? 4 : 0)) & 15;
      values[at] = four > 7 ? four - 16 : four;
    }
    return scaled(values, this.columns, checkedScale(scale, rows));
  }
}

/** One bit a value, set where it is negative, with one float32 a row: the mean of |x|. */
export class Sign implements Stage {
  readonly dtype = "uint8";
  readonly extras = 1;
  readonly width: number;

  constructor(private readonly columns: number) {
    this.width = Math.ceil(columns / 8);
  }

  /** Bytes (rows, columns / 8), the lowest bit first, and means (rows, 1). */
  encode(matrix: Tensor): readonly [Tensor, Parts] {
    const values = widened(matrix);
    const rows = values.shape[0] as number;
    const made = zeros("uint8", [rows, this.width]);
    const means = zeros("float32", [rows, 1]);
    for (let row = 0; row < rows; row += 1) {
      const own = values.data.subarray(row * this.columns, (row + 1) * this.columns);
      own.forEach((value, column) => {
        const place = row * this.width + (column >>> 3);
        if (value < 0) made.data[place] = (made.data[place] as number) | (1 << (column & 7));
      });
      means.data[row] = meanSize(own);
    }
    return [made, [means]];
  }

  /** The mean, with each value's sign. */
  decode(payload: Tensor, [extra]: Parts): Matrix {
    const rows = payload.shape[0] as number;
    const mean = checkedScale(extra, rows).data;
    const bytes = payload.data as Uint8Array;
    const made = zeros("float32", [rows, this.columns]);
    for (let at = 0; at < made.data.length; at += 1) {
      const [row, column] = [Math.floor(at / this.columns), at % this.columns];
      const isNegative = ((bytes[row * this.width + (column >>> 3)] as number) >>> (column & 7)) & 1;
      made.data[at] = isNegative ? -(mean[row] as number) : (mean[row] as number);
    }
    return made;
  }
}

/**
 * Mean of |x| over a row, before it is rounded to float32.
 *
 * Summed in float64 by halves (x_i + x_{i + n/2}, again and again; zeros behind it up to a power of two), so that it
 * has the same bits everywhere.
 */
function meanSize(row: Float32Array): number {
  let count = 1;
  while (count < row.length) count *= 2;
  const sums = new Float64Array(count);
  row.forEach((value, place) => {
    sums[place] = Math.abs(value);
  });
  while (count > 1) {
    count /= 2;
    for (let at = 0; at < count; at += 1) sums[at] = (sums[at] as number) + (sums[at + count] as number);
  }
  return (sums[0] as number) / row.length;
}

/** A sum of float64 with it has no bits below 1: what is added before it is taken away is rounded, halves to even. */
const WHOLE = 1.5 * 2 ** 52;

/** Whole numbers up to `largest`, and the scale of each row (rows, 1); halves are rounded to even. */
export function quantised(matrix: Matrix, largest: number): readonly [Tensor<"int8">, Tensor<"float32">] {
  const [rows, columns] = [matrix.shape[0] as number, matrix.shape[1] as number];
  const [values, scales] = [zeros("int8", [rows, columns]), zeros("float32", [rows, 1])];
  for (let row = 0; row < rows; row += 1) {
    let most = 0;
    for (let at = row * columns; at < (row + 1) * columns; at += 1) {
      most = Math.max(most, Math.abs(matrix.data[at] as number));
    }
    scales.data[row] = most / largest;
    // A row of zeros has the scale 0; what it is divided by does not matter then.
    const scale = (scales.data[row] as number) || 1;
    for (let at = row * columns; at < (row + 1) * columns; at += 1) {
      const whole = Math.fround((matrix.data[at] as number) / scale) + WHOLE - WHOLE;
      values.data[at] = Math.max(Math.min(whole, largest), -largest);
    }
  }
  return [values, scales];
}

/** Whole numbers (rows, columns) times the scale of their row. */
export function scaled(values: Int8Array, columns: number, scale: Tensor<"float32">): Matrix {
  const rows = scale.shape[0] as number;
  const made = Float32Array.from(values, (value, at) => value * (scale.data[Math.floor(at / columns)] as number));
  return tensor("float32", [rows, columns], made);
}

function checkedScale(scale: Tensor | undefined, rows: number): Tensor<"float32"> {
  const known = expect("codec: scale", scale, "float32", rows, 1);
  if (!known.data.every((value) => value >= 0 && value < Infinity)) {
    throw new PeerError("codec: scale", "a negative or infinite value", "finite values from 0 are allowed");
  }
  return known;
}
