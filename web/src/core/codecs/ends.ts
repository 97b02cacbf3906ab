/** The two ends of a link whose chain needs no comparison: plain, or with error feedback. */

import { PeerError } from "../errors";
import { type Tensor, sameShape, tensor } from "../tensor";
import type { Chain } from "./chain";
import { type Matrix, type Parts, type Receiver, type Samples, type Sender, type State, finite } from "./protocol";

/** Either end of a chain without memory. */
export class Plain implements Sender, Receiver {
  constructor(private readonly chain: Chain) {}

  encode(matrix: Matrix): Parts {
    return this.chain.encode(matrix);
  }

  /** The matrix; throws as `Chain.decode`, and for values that are not finite, before anyone remembers them. */
  decode(parts: Parts, samples: Samples): Matrix {
    const matrix = this.chain.decode(parts, samples.total);
    if (!finite(matrix)) throw new PeerError("codec: payload", "a value came that is not finite");
    return matrix;
  }

  most(rows: number): readonly [number, number] {
    return this.chain.most(rows);
  }

  state(): State {
    return { arrays: new Map(), values: null };
  }

  loadState(): void {
    // It has none.
  }
}

/** Adds to a sample's rows what the chain lost of them when they were last sent. */
export class FeedbackSender implements Sender {
  private lost = new Map<number, Matrix>();

  constructor(private readonly chain: Chain) {}

  /** The chain's arrays of the corrected rows. */
  encode(matrix: Matrix, samples: Samples): Parts {
    const { ids } = samples;
    if (ids === null) return this.chain.encode(matrix);
    const corrected = tensor("float32", matrix.shape, matrix.data.slice());
    samples.split(corrected).forEach((piece, place) => {
      const before = this.lost.get(ids[place] as number);
      if (before === undefined || !sameShape(before.shape, piece.shape)) return;
      before.data.forEach((value, at) => {
        piece.data[at] = (piece.data[at] as number) + value;
      });
    });
    const parts = this.chain.encode(corrected);
    const arrived = this.chain.decode(parts, matrix.shape[0] as number).data;
    arrived.forEach((value, at) => {
      corrected.data[at] = (corrected.data[at] as number) - value;
    });
    samples.split(corrected).forEach((rest, place) => this.lost.set(ids[place] as number, copied(rest)));
    return parts;
  }

  /** What was lost, by sample. */
  state(): State {
    const arrays = [...this.lost].map(([sample, rest]): [string, Tensor] => [`${sample}`, rest]);
    return { arrays: new Map(arrays), values: null };
  }

  loadState(state: State): void {
    this.lost = new Map([...state.arrays].map(([sample, rest]) => [Number(sample), rest as Matrix]));
  }
}

/** A copy of its own: a view would keep the whole batch alive. */
export function copied(matrix: Matrix): Matrix {
  return tensor("float32", matrix.shape, matrix.data.slice());
}
