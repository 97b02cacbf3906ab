/**
 * Temporal reuse: send a sample's rows only when they changed since they were last sent (docs/protocol.md).
 *
 * Both ends remember each sample across epochs. The sender compares a sample's rows, under a random projection of its
 * own, with what the receiver holds; above the threshold it sends nothing and the receiver takes what it holds,
 * otherwise it sends the rows through the rest of the chain and both ends remember the result.
 */

import { crc32 } from "../crc";
import { PackageError, PeerError } from "../errors";
import { toBfloat16, widened } from "../halves";
import { type Tensor, bytesOf, rowsOf, sameShape, sizeOf, tensor } from "../tensor";
import { Cache } from "./cache";
import type { Chain } from "./chain";
import { copied } from "./ends";
import { type Matrix, type Parts, type Receiver, Samples, type Sender, type State, expect } from "./protocol";
import { Sketch } from "./sketch";
import { quantised, scaled } from "./stages";

type Held = "float32" | "bfloat16" | "int8";

/** The options; the threshold comes from the server. */
export class Temporal {
  /** dtype of what the receiver remembers. */
  readonly cache: Held;
  /** Bytes that the receiver remembers for one client's link; null for no limit. */
  readonly cap: number | null;
  /** Columns of the sender's sketch of a row; null compares the rows themselves. */
  readonly projection: number | null;
  /** How far the norms may be apart, as a share of the remembered one. */
  readonly normGuard: number;
  /** Of the projection. */
  readonly seed: number | bigint;

  /** Options as a recipe has them; PackageError names one that is not allowed. A page remembers in memory alone. */
  constructor(options: Readonly<Record<string, unknown>>) {
    const known = { cache: "bfloat16", cap_mb: null, where: "memory", projection: 64, norm_guard: 0.2, seed: 0 };
    const { cache, cap_mb: cap, where, projection, norm_guard: guard, seed } = { ...known, ...options } as typeof known;
    const isWhole = typeof seed === "bigint" || Number.isSafeInteger(seed);
    const rules: Readonly<Record<string, boolean>> = {
      cache: ["float32", "bfloat16", "int8"].includes(cache),
      cap_mb: cap === null || (isNumber(cap) && cap > 0 && cap * 1e6 < Infinity),
      where: ["memory", "disk"].includes(where),
      projection: projection === null || (Number.isSafeInteger(projection) && projection >= 1),
      norm_guard: isNumber(guard) && guard >= 0,
      seed: isWhole && seed >= 0 && seed < 2 ** 64,
    };
    for (const name of Object.keys(options)) {
      if (rules[name] === true) continue;
      throw new PackageError(`codec temporal: ${name}=${String(options[name]).slice(0, 100)} is not allowed`);
    }
    this.cache = cache as Held;
    this.cap = cap === null ? null : Math.floor(cap * 1e6);
    this.projection = projection;
    this.normGuard = guard;
    this.seed = seed;
  }

  /** Bytes that the receiver stores for a sample. */
  size(rows: number, width: number): number {
    return this.cache === "int8" ? rows * (width + 4) : rows * width * (this.cache === "bfloat16" ? 2 : 4);
  }
}

function isNumber(value: unknown): value is number {
  return typeof value === "number";
}

/** The end that compares. `inner` encodes what is sent and `chain` decodes it as the receiver will. */
export class TemporalSender implements Sender {
  threshold = 1;
  readonly cache: Cache;
  private readonly sketch: Sketch;

  constructor(
    private readonly options: Temporal,
    private readonly inner: Sender,
    private readonly chain: Chain,
  ) {
    this.cache = new Cache(options.cap);
    this.sketch = new Sketch(chain.width, options.projection, options.seed);
  }

  /** Similarities (B) float32 (NaN: nothing to compare with), skip map (B) bool, the chain's of the rest. */
  encode(matrix: Matrix, samples: Samples): Parts {
    const pieces = samples.split(matrix);
    const { ids, rows } = samples;
    if (ids !== null) checkUnique(ids);
    const compared = pieces.map((piece, place) => this.compare(piece, ids === null ? null : (ids[place] as number)));
    const skip = compared.map(([similarity, isNear]) => isNear && similarity > this.threshold);
    const sent = skip.flatMap((isSkipped, place) => (isSkipped ? [] : [place]));
    const own = sent.map((place) => pieces[place] as Matrix);
    const rowsSent = sent.map((place) => rows[place] as number);
    const idsSent = ids === null ? null : sent.map((place) => ids[place] as number);
    const parts = this.inner.encode(joined(own, matrix.shape[1] as number), new Samples(idsSent, rowsSent));
    if (ids !== null && idsSent !== null) {
      skip.forEach((isSkipped, place) => isSkipped && this.cache.touch(ids[place] as number));
      this.remember(idsSent, rowsSent, parts);
    }
    const similarities = Float32Array.from(compared, ([similarity]) => similarity);
    const map = Uint8Array.from(skip, Number);
    return [tensor("float32", [map.length], similarities), tensor("bool", [map.length], map), ...parts];
  }

  private remember(ids: readonly number[], rows: readonly number[], parts: Parts): void {
    if (ids.length === 0) return;
    const sent = new Samples(null, rows);
    const sums = checks(parts, rows);
    sent.split(this.chain.decode(parts, sent.total)).forEach((values, place) => {
      const rounded = loaded(stored(values, this.options.cache));
      const size = this.options.size(values.shape[0] as number, this.chain.width);
      this.cache.put(ids[place] as number, [copied(this.sketch.of(rounded))], size, sums[place] as number);
    });
  }

  /** Cosine of all rows of a sample, together, with what is remembered; and whether shape and norm allow reuse. */
  private compare(piece: Matrix, sample: number | null): readonly [number, boolean] {
    if (sample === null || !this.cache.has(sample)) return [NaN, false];
    const [now, then] = [this.sketch.of(piece), this.cache.get(sample)[0] as Matrix];
    if (!sameShape(now.shape, then.shape)) return [NaN, false];
    const [norm, before] = [Math.sqrt(dot(now.data, now.data)), Math.sqrt(dot(then.data, then.data))];
    if (norm === 0 || before === 0) return [norm === before ? 1 : 0, norm === before];
    const cosine = dot(now.data, then.data) / (norm * before);
    const isNear = Math.abs(norm - before) <= this.options.normGuard * before;
    return [Math.min(Math.max(cosine, -1), 1), isNear];
  }

  state(): State {
    return joinedStates(this.cache.state(), this.inner.state());
  }

  loadState(state: State): void {
    partStates(state, this.cache, this.inner);
  }
}

/** The end that remembers the values. */
export class TemporalReceiver implements Receiver {
  readonly cache: Cache;

  constructor(
    private readonly options: Temporal,
    private readonly inner: Receiver,
    private readonly chain: Chain,
  ) {
    this.cache = new Cache(options.cap);
  }

  /**
   * The matrix (rows, width). PeerError where the skip map names a sample that is not here as it is now, or an array is
   * malformed.
   */
  decode(parts: Parts, samples: Samples): Matrix {
    if (parts.length < 2) {
      throw new PeerError("codec", `${parts.length} tensors`, `${2 + this.chain.parts} are allowed`);
    }
    const { ids, rows } = samples;
    const similarity = expect("codec: similarities", parts[0], "float32", rows.length);
    if (similarity.data.some((value) => Math.abs(value) > 1)) {
      throw new PeerError("codec: similarities", "one outside [-1, 1] came");
    }
    const skip = [...expect("codec: skip map", parts[1], "bool", rows.length).data].map(Boolean);
    if (ids === null && skip.includes(true)) {
      throw new PeerError("codec: skip map", "a sample is skipped where all must come, as in a repeated upload");
    }
    if (ids !== null) {
      checkUnique(ids);
      skip.forEach((isSkipped, place) => isSkipped && this.checkHere(ids[place] as number, rows[place] as number));
    }
    const sent = skip.flatMap((isSkipped, place) => (isSkipped ? [] : [place]));
    const rowsSent = sent.map((place) => rows[place] as number);
    const idsSent = ids === null ? null : sent.map((place) => ids[place] as number);
    const changed = this.inner.decode(parts.slice(2), new Samples(idsSent, rowsSent));
    if (ids === null) return changed;
    return this.merged(changed, new Samples(ids, rows), skip, checks(parts.slice(2), rowsSent));
  }

  /** What came and what is remembered, in the order of the batch; remembers what came, of these checksums. */
  private merged(changed: Matrix, samples: Samples, skip: readonly boolean[], sums: readonly number[]): Matrix {
    const ids = samples.ids ?? [];
    const rowsSent = samples.rows.filter((_, place) => !skip[place]);
    const came = new Samples(null, rowsSent).split(changed)[Symbol.iterator]();
    const pieces = ids.map((sample, place) =>
      skip[place] ? loaded(this.cache.get(sample)) : (came.next().value as Matrix),
    );
    ids.forEach((sample, place) => skip[place] && this.cache.touch(sample));
    const checksums = sums[Symbol.iterator]();
    pieces.forEach((piece, place) => {
      if (skip[place]) return;
      const size = this.options.size(samples.rows[place] as number, this.chain.width);
      const check = checksums.next().value as number;
      this.cache.put(ids[place] as number, stored(piece, this.options.cache), size, check);
    });
    return joined(pieces, this.chain.width);
  }

  /** With nothing skipped: the chain's, a similarity for each sample and its place in the skip map. */
  most(rows: number, samples: number): readonly [number, number] {
    const [size, parts] = this.chain.most(rows);
    return [size + 5 * samples, parts + 2];
  }

  private checkHere(sample: number, rows: number): void {
    if (!this.cache.has(sample)) {
      throw new PeerError("codec: skip map", `sample ${sample}`, "but it was never sent or has left the cache");
    }
    const held = this.cache.get(sample)[0]?.shape[0];
    if (held === rows) return;
    throw new PeerError("codec: skip map", `sample ${sample} came with ${rows} rows, ${held} are in the cache`);
  }

  state(): State {
    return joinedStates(this.cache.state(), this.inner.state());
  }

  loadState(state: State): void {
    partStates(state, this.cache, this.inner);
  }
}

/** Refuses a batch that has a sample twice: PeerError names the sample. */
export function checkUnique(ids: readonly number[]): void {
  if (new Set(ids).size === ids.length) return;
  const twice = ids.find((sample, place) => ids.indexOf(sample) < place);
  throw new PeerError("codec", `sample id ${twice} came twice in one batch; temporal reuse needs one id a sample`);
}

function stored(values: Matrix, dtype: Held): Parts {
  if (dtype === "int8") return quantised(values, 127);
  return [dtype === "bfloat16" ? toBfloat16(values) : copied(values)];
}

function loaded([payload, scale]: Parts): Matrix {
  if (scale === undefined) return widened(payload as Tensor);
  return scaled((payload as Tensor).data as Int8Array, (payload as Tensor).shape[1] as number, scale as Matrix);
}

function joined(pieces: readonly Matrix[], width: number): Matrix {
  const rows = pieces.reduce((sum, piece) => sum + (piece.shape[0] as number), 0);
  const all = new Float32Array(sizeOf([rows, width]));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece.data, at);
    at += piece.data.length;
  }
  return tensor("float32", [rows, width], all);
}

function dot(one: Float32Array, other: Float32Array): number {
  let sum = 0;
  for (let at = 0; at < one.length; at += 1) sum += (one[at] as number) * (other[at] as number);
  return sum;
}

/** A checksum of what was sent for each sample: the same bytes at both ends. */
function checks(parts: Parts, rows: readonly number[]): number[] {
  let begin = 0;
  return rows.map((count) => {
    begin += count;
    return parts.reduce((sum, part) => crc32(bytesOf(rowsOf(part, begin - count, begin)), sum), 0);
  });
}

function joinedStates(cache: State, inner: State): State {
  const named = (prefix: string, { arrays }: State): [string, Tensor][] =>
    [...arrays].map(([name, values]) => [`${prefix}.${name}`, values]);
  return {
    arrays: new Map([...named("cache", cache), ...named("inner", inner)]),
    values: { cache: cache.values, inner: inner.values },
  };
}

function partStates(state: State, cache: Cache, inner: Sender | Receiver): void {
  const values = state.values as { cache: unknown; inner: unknown };
  for (const [prefix, end] of [["cache", cache], ["inner", inner]] as const) {
    const own = [...state.arrays].filter(([name]) => name.startsWith(`${prefix}.`));
    const arrays = new Map(own.map(([name, each]) => [name.slice(prefix.length + 1), each]));
    end.loadState({ arrays, values: values[prefix] });
  }
}
