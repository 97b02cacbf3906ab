/** In the U-shape, what follows the middle: the loss of a batch, and its gradients, one sample at a time. */

import { PackageError } from "../core/errors";
import { type Shape, type Tensor, rowsOf, tensor, zeros } from "../core/tensor";
import { partsOf } from "./layout";
import type { Package } from "./package";
import { Piece, add } from "./runtime";

type Floats = Tensor<"float32">;

/** What the head gives: the gradient by its input, the batch's mean loss, and its gradients by the trained tensors. */
export interface Told {
  readonly gradient: Floats;
  readonly loss: number;
  readonly ofHead: Floats[];
}

export class Head {
  private constructor(
    private readonly piece: Piece,
    private readonly reads: string,
    private readonly held: Record<string, Tensor>,
    /** The shape of its input behind the dimension of the samples, or of the texts' tokens. */
    readonly sizes: Shape,
    /** Of its trainable tensors, by name and in order. */
    readonly shapes: ReadonlyMap<string, Shape>,
  ) {}

  /**
   * Loads the head of a package that has one.
   *
   * @throws PackageError where there is none in it, or the runtime lacks an operator.
   */
  static async load(from: Package): Promise<Head> {
    const head = from.manifest.graphs.head ?? null;
    if (head === null) throw new PackageError("this package has no head: its recipe has no model.head");
    const held: Record<string, Tensor> = {};
    head.weights.forEach((name, place) => {
      held[`w${place}`] = from.weights.get(name) as Tensor;
    });
    const shapes = new Map(head.tensors.map((entry) => [entry.name, entry.shape]));
    return new Head(await Piece.load(from, head.file, "the head"), head.read, held, head.sizes, shapes);
  }

  /** Gives back what the session holds. */
  async close(): Promise<void> {
    await this.piece.close();
  }

  /**
   * The batch's mean loss, a number; its gradient by `hidden`; and those by the head's trained tensors.
   *
   * @param hidden the middle's output, (N, H) of the N tokens of B texts, or (B, …) of images.
   * @param tensors the head's trained tensors, in the order of `shapes`.
   * @param lengths tokens of each text; null for images.
   * @param labels (B,) classes, or of a language model (N,) tokens, -100 where none counts.
   * @param scored of a language model, the places (S,) of the tokens behind which a label counts; else null.
   */
  async loss(
    hidden: Floats,
    tensors: readonly Tensor[],
    lengths: readonly number[] | null,
    labels: Tensor<"int64">,
    scored: Tensor<"int64"> | null = null,
  ): Promise<Told> {
    const parts = partsOf(lengths ?? new Array<number>(hidden.shape[0] as number).fill(1));
    const total = Math.max(scored === null ? labels.data.length : scored.data.length, 1);
    const scale = tensor("float32", [], Float32Array.of(1 / total));
    const moved: Record<string, Tensor> = {};
    tensors.forEach((each, place) => {
      moved[`t${place}`] = each;
    });
    const gradient = zeros("float32", hidden.shape);
    const sums = tensors.map((each) => zeros("float32", each.shape));
    let loss = 0;
    for (const [number, { start, stop }] of parts.entries()) {
      let read = [BigInt(this.reads === "last" ? stop - start - 1 : 0)];
      let wanted = [labels.data[number] as bigint];
      if (scored !== null) {
        const places = Array.from(scored.data, Number).filter((place) => place >= start && place < stop);
        if (!places.length) continue;
        read = places.map((place) => BigInt(place - start));
        wanted = places.map((place) => labels.data[place + 1] as bigint);
      }
      const given = {
        hidden: rowsOf(hidden, start, stop),
        scale,
        read: tensor("int64", [read.length], BigInt64Array.from(read)),
        labels: tensor("int64", [wanted.length], BigInt64Array.from(wanted)),
      };
      const [own, byHidden, ...slopes] = await this.piece.run({ ...given, ...moved, ...this.held });
      rowsOf(gradient, start, stop).data.set((byHidden as Floats).data);
      loss += (own as Floats).data[0] as number;
      sums.forEach((mine, place) => add(mine.data, (slopes[place] as Floats).data));
    }
    return { gradient, loss, ofHead: sums };
  }
}
