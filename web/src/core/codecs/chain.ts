/** Stages one behind the other, without memory: what one gives is what the next one takes. */

import { PeerError } from "../errors";
import { widened } from "../halves";
import { type Tensor, zeros } from "../tensor";
import { type Matrix, type Parts, type Stage, expect } from "./protocol";

/** Encodes a matrix (rows, `width`) of float32 into arrays and back; without stages the matrix is sent as it is. */
export class Chain {
  /** Arrays that a matrix is sent as. */
  readonly parts: number;
  private readonly rowBytes: number;

  constructor(
    private readonly stages: readonly Stage[],
    readonly width: number,
  ) {
    this.parts = stages.reduce((sum, stage) => sum + stage.extras, 1);
    // All sizes are a row's times the rows, so one row tells.
    this.rowBytes = this.encode(zeros("float32", [1, width])).reduce((sum, part) => sum + part.data.byteLength, 0);
  }

  /** Bytes and number of the arrays that `encode` makes of so many rows. */
  most(rows: number): readonly [number, number] {
    return [rows * this.rowBytes, this.parts];
  }

  /** The payload of the last stage, then the extras of each stage. */
  encode(matrix: Matrix): Parts {
    let payload: Tensor = matrix;
    const extras: Tensor[] = [];
    for (const stage of this.stages) {
      const [next, more] = stage.encode(payload);
      payload = next;
      extras.push(...more);
    }
    return [payload, ...extras];
  }

  /**
   * (rows, `width`) float32. PeerError where another number of arrays came, or one has another shape or dtype than
   * `encode` gives.
   */
  decode(parts: Parts, rows: number): Matrix {
    if (parts.length !== this.parts) {
      throw new PeerError("codec", `${parts.length} tensors`, `${this.parts} are allowed`);
    }
    const last = this.stages.at(-1) ?? { dtype: "float32" as const, width: this.width };
    let matrix: Tensor = expect("codec: payload", parts[0], last.dtype, rows, last.width);
    let end = parts.length;
    for (const stage of [...this.stages].reverse()) {
      matrix = stage.decode(matrix, parts.slice(end - stage.extras, end));
      end -= stage.extras;
    }
    return widened(matrix);
  }
}
