/** What both ends know of what a link carries, and how much of it a message may hold: all of it from the recipe. */

import type { Receiver } from "./codecs/protocol";
import type { Parameters, Replica } from "./replay";
import type { Role } from "./messages";
import { type Shape, type Tensor, reshaped, sizeOf, tensor, zeros } from "./tensor";
import { type Bound, Most } from "./wire";

type Matrix = Tensor<"float32">;

/** Hidden states of samples, float32. */
export class HiddenForm {
  /** `shape`: of one sample's; of a text, whose tokens are among those of its batch, (the most tokens, features). */
  constructor(
    readonly shape: Shape,
    readonly hasTexts: boolean,
  ) {}

  /** Rows of the matrix that codecs take, a sample: channels of an image, one of a vector; of texts at most. */
  get rows(): number {
    return this.shape.length > 1 ? (this.shape[0] as number) : 1;
  }

  /** Values in such a row: of a token, of an image's channel, or of a vector. */
  get width(): number {
    return sizeOf(this.shape) / this.rows;
  }

  /** Hidden states as codecs take them, (rows, width). */
  matrix(hidden: Matrix): Matrix {
    return reshaped(hidden, [hidden.data.length / this.width, this.width]);
  }

  /** Hidden states from their matrix. */
  tensor(matrix: Matrix): Matrix {
    return this.hasTexts ? matrix : reshaped(matrix, [(matrix.shape[0] as number) / this.rows, ...this.shape]);
  }

  /** Of a batch of so many samples, without a codec. */
  most(rows: number): Most {
    const [first, ...others] = this.shape;
    const shape = this.hasTexts ? [rows * (first as number), ...others] : [rows, ...this.shape];
    return new Most(4 * sizeOf(shape), 1, shape);
  }
}

/** Columns of the matrix that codecs take of a vector. */
const WIDTH = 256;

/**
 * A vector that belongs to no samples: `length` float32 values.
 *
 * Codecs take it in rows of 256 values, the last one filled up with zeros. What they make of several such vectors may
 * come one behind the other.
 */
export class VectorForm {
  readonly width = WIDTH;

  constructor(readonly length: number) {}

  /** Of the matrix that codecs take, a vector. */
  get rows(): number {
    return Math.ceil(this.length / WIDTH);
  }

  /** The vector as codecs take it, (rows, width). */
  matrix(vector: Matrix): Matrix {
    const matrix = zeros("float32", [this.rows, WIDTH]);
    matrix.data.set(vector.data);
    return matrix;
  }

  /** The vector from its matrix, or several one behind the other from theirs. */
  tensor(matrix: Matrix): Matrix {
    const count = (matrix.shape[0] as number) / this.rows;
    const made = new Float32Array(count * this.length);
    for (let place = 0; place < count; place += 1) {
      const start = place * this.rows * WIDTH;
      made.set(matrix.data.subarray(start, start + this.length), place * this.length);
    }
    return tensor("float32", [made.length], made);
  }
}

export type LinkForm = HiddenForm | VectorForm;

/** What the server's messages may hold. */
export interface BoundsOf {
  /** Of a batch. */
  readonly rows: number;
  /** Of the run. */
  readonly steps: number;
  /** Values of all slopes in one message. */
  readonly slopes: number;
  /** Values of the exact gradients of a step. */
  readonly exact: number;
  /** Bytes of what all of them together move. */
  readonly state: number;
  /** What one message may hold of the model. */
  readonly weights: Most;
}

/** The bounds of a run, from which those of each role follow. */
export class Bounds {
  constructor(private readonly of: BoundsOf) {}

  /** The most that the fields of a message to the device may hold, by role; lengths and the like never come. */
  receiving(forms: ReadonlyMap<string, LinkForm>, receivers: ReadonlyMap<string, Receiver>): Bound {
    const { rows, steps, slopes } = this.of;
    const exact = this.exact(forms.get("slopes_down"), receivers.get("slopes_down"));
    const most: Partial<Record<Role, Most>> = {
      slopes: new Most(Math.max(4 * slopes, this.kept(exact.bytes) * exact.bytes), exact.tensors),
      losses: new Most(4),
      steps: new Most(4 * steps), // a number for each, where a message has them as a tensor
      caches: new Most(8 * forms.size),
      thresholds: new Most(4 * forms.size),
      weights: this.of.weights,
    };
    for (const role of ["activations", "gradient"] as const) {
      const [form, receiver] = [forms.get(`${role}_down`), receivers.get(`${role}_down`)];
      if (!(form instanceof HiddenForm)) continue;
      most[role] = receiver === undefined ? form.most(rows) : new Most(...receiver.most(rows * form.rows, rows));
    }
    return most;
  }

  /** Of a step's exact gradients. */
  private exact(form: LinkForm | undefined, receiver: Receiver | undefined): Most {
    if (form === undefined || receiver === undefined) return new Most(4 * this.of.exact);
    return new Most(...receiver.most(form.rows, 1));
  }

  /** Of how many steps exact gradients may come at once, each of so many bytes (docs/protocol.md). */
  private kept(row: number): number {
    if (row === 0) return 0;
    const { state, exact } = this.of;
    const values = Math.floor(Math.max(1 << 20, Math.floor(state / 4)) / exact);
    return Math.max(Math.min(Math.floor((state - 1) / row), values), 1);
  }
}

/**
 * The bounds of a run with batches of so many `rows` and with so many steps of P `directions`.
 *
 * `head`: the trained tensors of the device's head, in the U-shape.
 */
export function boundsOf(
  replica: Replica,
  head: Parameters,
  run: { readonly directions: number; readonly rows: number; readonly steps: number },
): Bounds {
  const own = [[...head.values()], [...replica.exactState().values()]];
  const sizes = own.map((tensors) => tensors.reduce((sum, each) => sum + each.data.byteLength, 0));
  return new Bounds({
    rows: run.rows,
    steps: run.steps,
    slopes: run.steps * run.directions * replica.groups.length,
    exact: replica.width(0),
    state: sizes[1] as number,
    weights: new Most(Math.max(...sizes), Math.max(...own.map((tensors) => tensors.length))),
  });
}
