/**
 * The device's part of a model in ONNX Runtime Web: forward passes, and exact gradients block by block and row by row.
 *
 * All blocks of one kind run in one session, with a block's weights and parameters as inputs: so no graph is loaded
 * with weights in it, and a perturbed parameter is in memory no longer than the block that uses it runs.
 */

import * as ort from "onnxruntime-web/wasm";

import type { Inputs } from "../core/batches";
import { PackageError, oneLine } from "../core/errors";
import type { Weight } from "../core/slopes";
import { type Tensor, rowsOf, tensor, zeros } from "../core/tensor";
import { type Layout, type Span, type Spot, layOut, partsOf } from "./layout";
import { type BlockOf, type Manifest, SCALE } from "./manifest";
import { type Package, dequantised } from "./package";

type Floats = Tensor<"float32">;
type Values = Record<string, Tensor>;

ort.env.wasm.numThreads = 1;

/** Before the first graph is loaded: threads of one operation, and where the runtime's own two files are. */
export function setUp(threads: number, files: { readonly mjs: string; readonly wasm: string } | null): void {
  ort.env.wasm.numThreads = threads;
  if (files !== null) ort.env.wasm.wasmPaths = files;
}

/** A graph in a session: what it takes, by name. */
export class Piece {
  /** The dtype of what it takes, by name. */
  readonly inputs: ReadonlyMap<string, string>;

  private constructor(private readonly session: ort.InferenceSession) {
    this.inputs = new Map(session.inputMetadata.map((each) => [each.name, each.isTensor ? each.type : ""]));
  }

  /**
   * Loads the graph `file`; `what` names it in an error.
   *
   * @throws PackageError where the runtime lacks an operator of it, or can't read it.
   */
  static async load(from: Package, file: string, what: string): Promise<Piece> {
    const graph = await from.graph(file);
    try {
      // What a run has taken is given back behind it, and nothing is kept for the next one.
      const options = { enableCpuMemArena: false, enableMemPattern: false, logSeverityLevel: 3 } as const;
      return new Piece(await ort.InferenceSession.create(graph, { ...options, executionProviders: ["wasm"] }));
    } catch (error) {
      const said = oneLine(String((error as Error).message ?? error)).slice(0, 300);
      throw new PackageError(`${what} (${file}): this runtime can't load it: ${said}`);
    }
  }

  /** Runs it on what it takes of these values. */
  async run(values: Values): Promise<Floats[]> {
    const feeds: Record<string, ort.Tensor> = {};
    for (const name of this.inputs.keys()) {
      const value = values[name];
      if (value === undefined) throw new PackageError(`the graph asks for ${name}, and nothing is called so`);
      feeds[name] = new ort.Tensor(value.dtype as "float32", value.data as Float32Array, [...value.shape]);
    }
    const results = await this.session.run(feeds);
    return this.session.outputNames.map((name) => {
      const found = results[name] as ort.Tensor;
      if (found.type !== "float32") throw new PackageError(`a graph gives ${found.type}, and float32 is due`);
      return tensor("float32", [...found.dims], found.data as Float32Array<ArrayBuffer>);
    });
  }

  /** Gives back what the session holds. */
  async close(): Promise<void> {
    await this.session.release();
  }
}

/** What entered the last blocks of a forward pass, the first of them first; used up by `Bottom.exact`. */
export interface Noted {
  readonly layout: Layout | null;
  readonly others: Values;
  readonly entered: Floats[];
}

/** What runs before the cut. */
export class Bottom {
  private readonly theta: ReadonlySet<string>;
  private readonly blocks: readonly BlockOf[];
  private readonly model: Manifest["model"];

  private constructor(
    private readonly from: Package,
    private readonly embed: Piece,
    private readonly forwards: readonly Piece[],
    private readonly backwards: readonly (Piece | null)[],
  ) {
    this.theta = new Set(from.manifest.theta.map((entry) => entry.name));
    this.blocks = from.manifest.graphs.blocks;
    this.model = from.manifest.model;
  }

  /**
   * Loads the graphs of a package's bottom.
   *
   * @throws PackageError where the runtime lacks an operator.
   */
  static async load(from: Package): Promise<Bottom> {
    const graphs = from.manifest.graphs;
    const made: Piece[] = [];
    const load = async (file: string, what: string): Promise<Piece> => {
      const piece = await Piece.load(from, file, what);
      made.push(piece);
      return piece;
    };
    try {
      const embed = await load(graphs.embed.file, "embed");
      const [forwards, backwards]: [Piece[], (Piece | null)[]] = [[], []];
      for (const [number, kind] of graphs.kinds.entries()) {
        const block = graphs.blocks.findIndex((each) => each.kind === number);
        forwards.push(await load(kind.file, `block ${block}`));
        const file = kind.backward ?? null;
        backwards.push(file === null ? null : await load(file, `gradient of block ${block}`));
      }
      return new Bottom(from, embed, forwards, backwards);
    } catch (error) {
      for (const piece of made) await piece.close(); // a gateway may ask again, as often as it likes
      throw error;
    }
  }

  /** Gives back what the sessions hold. */
  async close(): Promise<void> {
    for (const piece of [this.embed, ...this.forwards, ...this.backwards]) await piece?.close();
  }

  /**
   * Activations: (N, H) of the N tokens of B texts, or (B, T, H) or (B, C, H, W) of images; float32.
   *
   * @param inputs `input_ids` (N,) and `lengths` (B,) int64, for encoders optionally `token_type_ids` (N,) int64; or
   *   `pixel_values` (B, C, H, W) float32.
   * @param weight gives each parameter of θ.
   * @throws PackageError where a text is longer than the package is for.
   */
  async forward(inputs: Inputs, weight: Weight): Promise<Floats> {
    return (await this.noting(inputs, weight, 0))[0];
  }

  /** As `forward`, and what entered the last `blocks` blocks. */
  async noting(inputs: Inputs, weight: Weight, blocks: number): Promise<[Floats, Noted]> {
    const [layout, embedded, others] = await this.embedded(inputs, weight);
    const noted: Noted = { layout, others, entered: [] };
    let hidden = embedded;
    for (const [place, block] of this.blocks.entries()) {
      if (place >= this.blocks.length - blocks) noted.entered.push(hidden);
      const piece = this.forwards[block.kind] as Piece;
      const given = { ...this.values(piece, block.weights, weight), ...ofBlock(others, block), hidden };
      hidden = (await piece.run(given))[0] as Floats;
    }
    return [layout === null ? hidden : layout.take(hidden), noted];
  }

  /**
   * The gradient of ⟨λ, z⟩ by the parameters of θ in the noted blocks, each by its name; `noted` is used up.
   *
   * `gradient` is λ, in the shape of the activations. One block is in memory at a time, and of a batch one image, or
   * so many neighbouring texts as have together no more tokens than the longest may have.
   */
  async exact(noted: Noted, gradient: Floats, weight: Weight): Promise<Map<string, Floats>> {
    const found = new Map<string, Floats>();
    const { layout, others } = noted;
    const shares = layout === null ? images(gradient.shape[0] as number) : neighbours(layout, this.model.longest);
    let arrived = gradient;
    for (const block of this.blocks.slice(this.blocks.length - noted.entered.length).reverse()) {
      const entered = noted.entered.pop() as Floats;
      const piece = this.backwards[block.kind] ?? null;
      if (piece === null) throw new PackageError("this package has no gradients of its blocks: its method takes none");
      const trained = block.weights.map((name) => name.slice(2)).filter((name) => this.theta.has(name));
      const held = this.values(piece, block.weights, weight);
      const own = ofBlock(others, block);
      const before = zeros("float32", [arrived.shape[0] as number, ...entered.shape.slice(layout === null ? 1 : 2)]);
      let sums: Floats[] | null = null;
      for (const share of shares) {
        const [ofHidden, ...slopes] = await piece.run({ ...held, ...sample(entered, arrived, own, share, layout) });
        rowsOf(before, share.part.start, share.part.stop).data.set((ofHidden as Floats).data);
        if (sums === null) sums = slopes;
        else sums.forEach((total, place) => add(total.data, (slopes[place] as Floats).data));
      }
      trained.forEach((name, place) => found.set(name, (sums as Floats[])[place] as Floats));
      arrived = before;
    }
    return found;
  }

  /** The layout, what enters the first block, and what else blocks take, by its name. */
  private async embedded(inputs: Inputs, weight: Weight): Promise<[Layout | null, Floats, Values]> {
    const { weights, others } = this.from.manifest.graphs.embed;
    const own = this.values(this.embed, weights, weight);
    if (this.model.kind === "image") {
      const [hidden] = await this.embed.run({ ...own, pixel_values: inputs["pixel_values"] as Tensor });
      return [null, hidden as Floats, {}];
    }
    const lengths = lengthsOf(inputs);
    const longest = Math.max(...lengths);
    if (longest > this.model.longest) {
      throw new PackageError(`a text has ${longest} tokens; this package is for ${this.model.longest} at most`);
    }
    const layout = layOut(lengths, this.model.width);
    const ids = layout.lay(inputs["input_ids"] as Tensor<"int64">);
    const kinds = inputs["token_type_ids"] as Tensor<"int64"> | undefined;
    const padding = this.model.positions_behind ?? null;
    const positions = padding === null ? layout.positionIds() : layout.positionsBehind(padding, ids);
    const given = {
      input_ids: ids,
      token_type_ids: kinds === undefined ? zeros("int64", ids.shape) : layout.lay(kinds),
      position_ids: positions,
    };
    const [hidden, ...rest] = await this.embed.run({ ...own, ...given });
    const named: Values = { position_ids: positions };
    others.forEach((name, place) => {
      named[name] = rest[place] as Floats;
    });
    for (const window of new Set(this.blocks.map((block) => block.window))) {
      named[`bias ${window}`] = layout.bias(this.model.kind === "decoder", window);
    }
    return [layout, hidden as Floats, named];
  }

  /** What a graph takes of weights and θ. */
  private values(piece: Piece, names: readonly string[], weight: Weight): Values {
    const values: Values = {};
    for (const [place, name] of names.entries()) {
      const wanted = piece.inputs.get(`w${place}`);
      if (wanted === undefined) continue;
      if (this.theta.has(name.slice(2))) {
        values[`w${place}`] = weight(name.slice(2));
        continue;
      }
      let held = this.from.weights.get(name) as Tensor;
      if (held.dtype === "int8") {
        const scale = this.from.weights.get(name + SCALE) as Tensor;
        if (wanted === "float32") held = dequantised(held, scale);
        else values[`s${place}`] = scale;
      }
      values[`w${place}`] = held;
    }
    return values;
  }
}

/** How many tokens each text of a batch has. */
export function lengthsOf(inputs: Inputs): number[] {
  return Array.from((inputs["lengths"] as Tensor<"int64">).data, Number);
}

/** A part of a batch that goes back through a block by itself: where it is in the gradient, and in the rows. */
interface Part {
  readonly part: Span;
  readonly spot: Spot;
}

function images(count: number): Part[] {
  return Array.from({ length: count }, (_, row) => ({
    part: { start: row, stop: row + 1 },
    spot: { row, start: 0, stop: 0 },
  }));
}

/**
 * Texts one behind the other in a row, `most` tokens of them or one text: their tokens, row and places.
 *
 * A short text alone is a small product, which costs more than its share of a larger one.
 */
function neighbours(layout: Layout, most: number): Part[] {
  const found: Part[] = [];
  const spots = layout.spots();
  for (const [text, part] of partsOf(layout.lengths).entries()) {
    const spot = spots[text] as Spot;
    const last = found.at(-1);
    const joins = last?.part.stop === part.start && last.spot.row === spot.row && last.spot.stop === spot.start;
    if (joins && spot.stop - last.spot.start <= most) {
      const [span, at] = [
        { start: last.part.start, stop: part.stop },
        { ...spot, start: last.spot.start },
      ];
      found[found.length - 1] = { part: span, spot: at };
    } else {
      found.push({ part, spot });
    }
  }
  return found;
}

/** What a block takes beside activations and weights, by its graph's names. */
function ofBlock(others: Values, block: BlockOf): Values {
  const named: Values = {};
  for (const [name, source] of Object.entries(block.others)) {
    const found = Object.hasOwn(others, source) ? others[source] : undefined;
    if (found === undefined)
      throw new PackageError(`a block takes ${oneLine(source).slice(0, 60)}, which nothing gives`);
    named[name] = found;
  }
  const bias = others[`bias ${block.window}`];
  return bias === undefined ? named : { ...named, bias };
}

/** What the gradient of a block takes of one part of a batch. */
function sample(entered: Floats, gradient: Floats, others: Values, share: Part, layout: Layout | null): Values {
  const { part, spot } = share;
  const arrived = rowsOf(gradient, part.start, part.stop);
  if (layout === null) return { hidden: rowsOf(entered, spot.row, spot.row + 1), gradient: arrived };
  const found: Values = {};
  for (const [name, value] of Object.entries(others)) found[name] = placesOf(value, spot);
  found["hidden"] = placesOf(entered, spot);
  return { ...found, gradient: { ...arrived, shape: [1, ...arrived.shape] } as Tensor };
}

/** What of a row's places, or of pairs of them (R, 1, M, M), is one part's. */
function placesOf(value: Tensor, spot: Spot): Tensor {
  const [count] = value.shape;
  const row = rowsOf(value, (count as number) > 1 ? spot.row : 0, (count as number) > 1 ? spot.row + 1 : 1);
  if (value.shape.length !== 4) {
    const [columns, ...rest] = value.shape.slice(1);
    const flat = { ...row, shape: [columns as number, ...rest] } as Tensor;
    const part = rowsOf(flat, spot.start, spot.stop);
    return { ...part, shape: [1, ...part.shape] } as Tensor;
  }
  const [channels, columns] = [value.shape[1] as number, value.shape[3] as number];
  const length = spot.stop - spot.start;
  const found = zeros("float32", [1, channels, length, length]);
  for (let line = 0; line < channels * length; line += 1) {
    const from = (Math.floor(line / length) * columns + spot.start + (line % length)) * columns;
    found.data.set((row.data as Float32Array).subarray(from + spot.start, from + spot.stop), line * length);
  }
  return found;
}

/** Adds to each of `sums`, rounded to float32. */
export function add(sums: Float32Array, values: Float32Array): void {
  for (let place = 0; place < sums.length; place += 1)
    sums[place] = (sums[place] as number) + (values[place] as number);
}
