/**
 * Replay: everyone who knows the seeds and the agreed slopes rebuilds the same update, bit for bit (docs/protocol.md).
 *
 * Many missed steps are taken in one pass over the parameters, tile by tile, so catching up needs no more memory than
 * taking one step: two tiles beside θ and its moments. Learning rates are functions of the run's step alone.
 */

import { Direction } from "./directions";
import { PeerError } from "./errors";
import { type Directions, type Seeds, type Word, wordOf } from "./seeds";
import { type Tensor, rowsOf, shown, sizeOf, tensor, zeros } from "./tensor";
import { type Schedule, type UpdateRule, constant } from "./update";

export type Parameters = ReadonlyMap<string, Tensor<"float32">>;

/** Values moved at once, a multiple of a direction's alignment: gradient, values and moments stay in a cache. */
const TILE = 1 << 14;
/** Rows taken in one pass over the parameters: as many keys, coefficients and views of slopes are there at once. */
const AT_ONCE = 1024;
const NONE: Tensor<"float32"> = tensor("float32", [0, 0], new Float32Array());

/**
 * What a row of agreed slopes is made of.
 *
 * `groups`: names of the parameters that share slopes; a row has P slopes for each group in turn. A device may have no
 * parameter of a group. null for one group of all that are not `exact`. `exact`: names of the parameters whose gradient
 * is agreed on as it is; a row ends with their gradients.
 */
export interface RowForm {
  readonly groups: readonly (readonly string[])[] | null;
  readonly exact: readonly string[];
}

export const PLAIN: RowForm = { groups: null, exact: [] };

/** A piece of a parameter, with its moments: as views. */
interface Tile {
  readonly name: string;
  readonly start: number;
  readonly values: Float32Array;
  readonly moments: readonly Float32Array[];
}

/** All that the next rows depend on. */
export interface ReplicaState {
  readonly arrays: ReadonlyMap<string, Tensor<"float32">>;
  readonly position: number;
}

/**
 * Parameters that every party moves alike, with the optimiser's moments and the number of rows taken.
 *
 * A row's number gives the directions and the age of moments; the run's step gives the learning rate.
 */
export class Replica {
  readonly exact: readonly string[];
  readonly groups: readonly (readonly string[])[];
  readonly moments: ReadonlyMap<string, Parameters>;
  /** Rows replayed so far; the next agreed row is number `position`. */
  position = 0;

  /** `parameters` are moved in place; `schedule(step)`: the learning rate's factor by step of the run. */
  constructor(
    readonly parameters: Parameters,
    readonly rule: UpdateRule,
    readonly directions: Directions,
    private readonly schedule: Schedule = constant,
    form: RowForm = PLAIN,
  ) {
    this.exact = form.exact;
    this.groups = form.groups ?? [[...parameters.keys()].filter((name) => !form.exact.includes(name))];
    this.moments = new Map(
      rule.moments().map((moment) => [
        moment,
        new Map([...parameters].map(([name, values]) => [name, zeros("float32", values.shape)])),
      ]),
    );
  }

  /** The parameters along which slopes are taken: all but the exact ones. */
  get measured(): Parameters {
    return new Map([...this.parameters].filter(([name]) => !this.exact.includes(name)));
  }

  /** The first `count` directions of a row: of the one to be replayed next, unless another is named. */
  seeds(count: number, row = this.position): Seeds {
    return this.directions.of(row, count);
  }

  /** Values of a row: `directions` slopes of each group, and the exact gradients. */
  width(directions: number): number {
    const exact = this.exact.map((name) => sizeOf(this.of(name).shape));
    return exact.reduce((sum, size) => sum + size, directions * this.groups.length);
  }

  /**
   * Takes the agreed rows `first`, `first` + 1, …, (rows, groups · P + exact gradients).
   *
   * `steps`: of the run, that of each row; their numbers, if none are given. Rows that were already taken are ignored,
   * so a repeated message is harmless. PeerError where rows in between are missing, or they are no rows.
   */
  replay(first: number, rows: Tensor<"float32">, steps: readonly number[] | null = null): void {
    const [count, given] = [this.groups.length, this.width(0)];
    const isMatrix = rows.shape.length === 2;
    const measured = isMatrix ? (rows.shape[1] as number) - given : 0;
    const isWrong = measured < 0 || measured % count > 0 || measured + given === 0;
    if (!isMatrix || (rows.shape[0] !== 0 && isWrong) || first < 0) {
      const wanted = (count === 1 ? "P" : `${count} · P`) + (given ? ` + ${given}` : "");
      const allowed = `(steps, ${wanted}) from step 0 is allowed`;
      throw new PeerError("history", `${shown(rows.shape)} from step ${first}`, allowed);
    }
    for (const [fresh, at] of this.untaken(first, rows, steps)) {
      if (measured > 0) this.replayMeasured(parted(fresh, 0, measured), at);
      if (given > 0) this.replayGiven(parted(fresh, measured, measured + given), at);
      this.position += at.length;
    }
  }

  /**
   * Takes rows as `replay` does, from the slopes (rows, groups · P) alone: `exact` is the rest behind the last.
   *
   * PeerError where rows in between are missing.
   */
  takeState(first: number, slopes: Tensor<"float32">, exact: readonly Tensor<"float32">[]): void {
    const [count, width] = slopes.shape as [number, number];
    const behind = first + count;
    if (behind <= this.position) return;
    // Without slopes a row has no values, so that few bytes may announce any number of rows.
    for (const [fresh, at] of this.untaken(first, width > 0 ? slopes : NONE, null)) {
      this.replayMeasured(parted(fresh, 0, width), at);
      this.position += at.length;
    }
    [...this.exactState().values()].forEach((mine, place) => mine.data.set((exact[place] as Tensor<"float32">).data));
    this.position = behind;
  }

  /** All that exact gradients move: the parameters by name, then each of their moments by moment and name. */
  exactState(): Map<string, Tensor<"float32">> {
    const state = new Map(this.exact.map((name) => [name, this.of(name)]));
    for (const [moment, byName] of this.moments) {
      for (const name of this.exact) state.set(`${moment}.${name}`, byName.get(name) as Tensor<"float32">);
    }
    return state;
  }

  /** Parameters and moments, which are not copied, and the position. */
  state(): ReplicaState {
    const arrays = new Map([...this.parameters].map(([name, values]) => [`theta.${name}`, values]));
    for (const [moment, byName] of this.moments) {
      for (const [name, values] of byName) arrays.set(`moment.${moment}.${name}`, values);
    }
    return { arrays, position: this.position };
  }

  /** Continues from `state`. */
  loadState(state: ReplicaState): void {
    for (const [name, mine] of this.state().arrays) {
      const kept = state.arrays.get(name);
      if (kept === undefined) throw new RangeError(`the state has no ${name}`);
      mine.data.set(kept.data);
    }
    this.position = state.position;
  }

  private of(name: string): Tensor<"float32"> {
    const parameter = this.parameters.get(name);
    if (parameter === undefined) throw new RangeError(`there is no parameter ${name}`);
    return parameter;
  }

  /** Those of the rows from number `first` on that are still to be taken, some at a time, and their steps. */
  private *untaken(
    first: number,
    rows: Tensor<"float32">,
    steps: readonly number[] | null,
  ): Generator<[Tensor<"float32">, number[]]> {
    const count = rows.shape[0] as number;
    if (steps !== null && steps.length !== count) {
      throw new RangeError(`${steps.length} steps are given for ${count} rows`);
    }
    if (first > this.position) {
      throw new PeerError("history", `rows begin at step ${first}, but this replica is at step ${this.position}`);
    }
    for (let taken = this.position - first; taken < count; taken += AT_ONCE) {
      const stop = Math.min(taken + AT_ONCE, count);
      const own = Array.from({ length: stop - taken }, (_, place) => steps?.[taken + place] ?? first + taken + place);
      yield [rowsOf(rows, taken, stop), own];
    }
  }

  /** The groups' steps, from their slopes, groups · P of each row. */
  private replayMeasured(rows: readonly Float32Array[], steps: readonly number[]): void {
    const count = (rows[0]?.length ?? 0) / this.groups.length;
    const keys = rows.map((_, place) => this.directions.of(this.position + place, count).numbers.map(wordOf));
    this.groups.forEach((names, place) => {
      const own = names.filter((name) => this.parameters.has(name));
      const dimension = own.reduce((sum, name) => sum + sizeOf(this.of(name).shape), 0);
      const coefficients = rows.map((row) =>
        this.rule.coefficients([...row.subarray(place * count, (place + 1) * count)], dimension),
      );
      for (const tile of this.tilesOf(own)) {
        this.move(tile, steps, (row, gradient, scratch) => {
          this.estimate(tile, keys[row] as Word[], coefficients[row] as number[], gradient, scratch);
        });
      }
    });
  }

  /** ĝ of a step: the sum of its directions times their coefficients, from the first on. */
  private estimate(
    tile: Tile,
    keys: readonly Word[],
    coefficients: readonly number[],
    gradient: Float32Array,
    scratch: Float32Array,
  ): void {
    keys.forEach((key, p) => {
      const made = p === 0 ? gradient : scratch;
      new Direction(key, tile.name, this.directions.law).write(made, tile.start, coefficients[p] as number);
      if (p > 0) add(gradient, made);
    });
  }

  /** The steps of the parameters whose gradients are known. */
  private replayGiven(rows: readonly Float32Array[], steps: readonly number[]): void {
    const scales = rows.map((row) => Math.fround(this.rule.exactScale(row)));
    let begin = 0;
    for (const name of this.exact) {
      const own = begin;
      for (const tile of this.tilesOf([name])) {
        this.move(tile, steps, (row, gradient) => {
          const [given, scale, from] = [rows[row] as Float32Array, scales[row] as number, own + tile.start];
          for (let at = 0; at < gradient.length; at += 1) gradient[at] = (given[from + at] as number) * scale;
        });
      }
      begin += sizeOf(this.of(name).shape);
    }
  }

  private *tilesOf(names: readonly string[]): Generator<Tile> {
    for (const name of names) {
      const all = [this.parameters, ...this.moments.values()].map((by) => (by.get(name) as Tensor<"float32">).data);
      const size = sizeOf(this.of(name).shape);
      for (let start = 0; start < size; start += TILE) {
        const [values, ...moments] = all.map((each) => each.subarray(start, start + TILE));
        yield { name, start, values: values as Float32Array, moments };
      }
    }
  }

  /** Takes a tile's next rows; `fill` writes the gradient of a row, and may use the scratch. */
  private move(
    tile: Tile,
    steps: readonly number[],
    fill: (row: number, gradient: Float32Array, scratch: Float32Array) => void,
  ): void {
    const [gradient, scratch] = [gradients.subarray(0, tile.values.length), scratches.subarray(0, tile.values.length)];
    steps.forEach((step, row) => {
      fill(row, gradient, scratch);
      const rate = this.rule.lr * this.schedule(step);
      this.rule.step(tile.values, gradient, tile.moments, this.position + row + 1, rate);
    });
  }
}

const gradients = new Float32Array(TILE);
const scratches = new Float32Array(TILE);

function add(to: Float32Array, more: Float32Array): void {
  for (let at = 0; at < to.length; at += 1) to[at] = (to[at] as number) + (more[at] as number);
}

/** Columns `start` to `stop` of each row, as views. */
function parted(rows: Tensor<"float32">, start: number, stop: number): Float32Array[] {
  const [count, width] = [rows.shape[0] as number, rows.shape[1] as number];
  return Array.from({ length: count }, (_, row) => rows.data.subarray(row * width + start, row * width + stop));
}
