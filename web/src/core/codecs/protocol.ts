/**
 * The seam between codecs and links: what a stage of a chain and the two ends of a link are.
 *
 * A link carries a matrix of float32 values: one row a token, a channel of an image, or 256 values of a vector.
 * `Samples` says which rows belong to which sample, and both ends know it before the matrix arrives.
 */

import { PeerError } from "../errors";
import { widened } from "../halves";
import { type Dtype, type Tensor, described, rowsOf, sameShape, shown } from "../tensor";

export type Matrix = Tensor<"float32">;
/** The arrays that a matrix is sent as. */
export type Parts = readonly Tensor[];
/** Named arrays, and values that a structured clone can hold, for a checkpoint. */
export interface State {
  readonly arrays: ReadonlyMap<string, Tensor>;
  readonly values: unknown;
}

/** The samples of a matrix, in order. */
export class Samples {
  /**
   * `ids`: a number for each sample, the same whenever the sample comes again; null for another matrix of the step's
   * samples, such as a probe, which nobody should remember. `rows`: how many rows of the matrix each sample has.
   */
  constructor(
    readonly ids: readonly number[] | null,
    readonly rows: readonly number[],
  ) {}

  /** Rows of all samples. */
  get total(): number {
    return this.rows.reduce((sum, count) => sum + count, 0);
  }

  /** Each sample's rows of the matrix, as views. */
  split(matrix: Matrix): Matrix[] {
    let begin = 0;
    return this.rows.map((count) => {
      begin += count;
      return rowsOf(matrix, begin - count, begin);
    });
  }
}

/** One step of a chain, without memory. */
export interface Stage {
  /** Columns of its payload, and its dtype. */
  readonly width: number;
  readonly dtype: Dtype;
  /** Arrays that it sends beside its payload. */
  readonly extras: number;
  /** (rows, columns) floats → the payload (rows, `width`), and `extras` arrays with a row for each row. */
  encode(matrix: Tensor): readonly [Tensor, Parts];
  /** The payload, which is checked, and the extras, which are not → (rows, columns) float32, or PeerError. */
  decode(payload: Tensor, extras: Parts): Matrix;
}

/** What an end of a link remembers: all that the next messages depend on. */
export interface Remembering {
  state(): State;
  /** Goes on, to the bit, from what `state` gave. */
  loadState(state: State): void;
}

/** The sending end of a link. */
export interface Sender extends Remembering {
  /** What is sent of a matrix (rows, columns). */
  encode(matrix: Matrix, samples: Samples): Parts;
}

/** The receiving end of a link. */
export interface Receiver extends Remembering {
  /** The matrix again. PeerError where the sender can't have made these arrays; then nothing is remembered. */
  decode(parts: Parts, samples: Samples): Matrix;
  /** Bytes and number of the arrays that a matrix of so many rows and samples is sent as, at most. */
  most(rows: number, samples: number): readonly [number, number];
}

/** Whether every value is finite. */
export function finite(matrix: Tensor): boolean {
  return widened(matrix).data.every(Number.isFinite);
}

/** Refuses an array of another dtype or shape: PeerError names what came and what is allowed. */
export function expect<D extends Dtype>(
  what: string,
  values: Tensor | undefined,
  dtype: D,
  ...shape: number[]
): Tensor<D> {
  if (values !== undefined && values.dtype === dtype && sameShape(values.shape, shape)) {
    return values as unknown as Tensor<D>;
  }
  const came = values === undefined ? "nothing" : described(values);
  throw new PeerError(what, came, `${dtype} ${shown(shape)} is allowed`);
}
