/**
 * Texts without padding: how the tokens of a batch are laid out in the rows that a model's blocks run on.
 *
 * All tokens of a batch are one row in which each text sees itself alone, or, where attention over one row would cost
 * more than it saves, a few rows of about the same length. The reference lays out alike (docs/protocol.md).
 */

import { type Tensor, tensor, zeros } from "../core/tensor";

/** A multiplication within attention costs so many times one in a linear layer: its matrices are small. */
const DEAR = 2;
/** What is added to the score of a place that is not seen: the least float32. */
const LEAST = -3.4028234663852886e38;

/** Tokens `start` to `stop` of all of a batch. */
export interface Span {
  readonly start: number;
  readonly stop: number;
}

/** A row, and the columns in it that are a text's. */
export interface Spot extends Span {
  readonly row: number;
}

/** Where each of N tokens of B texts stands in R rows of M places. */
export class Layout {
  /** (R, M) how far a token is from the first of its text; 0 where no token is. */
  readonly positions: Int32Array;
  /** (R, M) the number of a token's text; -1 where no token is. */
  readonly texts: Int32Array;

  /**
   * `lengths`: tokens of each text; `place`: row · M + column of each token, null where the tokens are one row as they
   * are; `starts`: the place of each text's first token.
   */
  constructor(
    readonly lengths: readonly number[],
    readonly place: Int32Array | null,
    readonly starts: readonly number[],
    readonly rows: number,
    readonly columns: number,
  ) {
    this.positions = new Int32Array(rows * columns);
    this.texts = new Int32Array(rows * columns).fill(-1);
    lengths.forEach((length, text) => {
      for (let token = 0; token < length; token += 1) {
        const at = (starts[text] as number) + token;
        this.positions[at] = token;
        this.texts[at] = text;
      }
    });
  }

  /** (N,) whole numbers as (R, M), with zeros where no token is. */
  lay(tokens: Tensor<"int64">): Tensor<"int64"> {
    const laid = zeros("int64", [this.rows, this.columns]);
    if (this.place === null) laid.data.set(tokens.data);
    else
      this.place.forEach((at, token) => {
        laid.data[at] = tokens.data[token] as bigint;
      });
    return laid;
  }

  /** (R, M, H) as (N, H). */
  take(laid: Tensor<"float32">): Tensor<"float32"> {
    const width = laid.shape[2] as number;
    const place = this.place;
    if (place === null) return tensor("float32", [this.columns, width], laid.data);
    const taken = zeros("float32", [place.length, width]);
    place.forEach((at, token) => taken.data.set(laid.data.subarray(at * width, (at + 1) * width), token * width));
    return taken;
  }

  /**
   * What is added to the scores of attention, so that a token sees its own text alone: (R, 1, M, M) float32.
   *
   * 0 for what the token of a row of the matrix sees, else the least number. With `causal` it sees none behind it, and
   * with a `window` no more than so many tokens, itself among them.
   */
  bias(causal: boolean, window: number | null): Tensor<"float32"> {
    const [rows, columns, texts, positions] = [this.rows, this.columns, this.texts, this.positions];
    const made = zeros("float32", [rows, 1, columns, columns]);
    let at = 0;
    for (let row = 0; row < rows; row += 1) {
      const first = row * columns;
      for (let mine = first; mine < first + columns; mine += 1) {
        for (let other = first; other < first + columns; other += 1) {
          let hides = texts[mine] !== texts[other];
          if (causal && !hides) {
            const ahead = (positions[other] as number) - (positions[mine] as number);
            hides = ahead > 0 || (window !== null && ahead <= -window);
          }
          if (hides) made.data[at] = LEAST;
          at += 1;
        }
      }
    }
    return made;
  }

  /** Row and columns of each text, in the order of the texts. */
  spots(): Spot[] {
    return this.starts.map((first, text) => {
      const row = Math.floor(first / this.columns);
      const start = first % this.columns;
      return { row, start, stop: start + (this.lengths[text] as number) };
    });
  }

  /** (R, M) how far each token is from the first of its text, as a graph takes them. */
  positionIds(): Tensor<"int64"> {
    return tensor("int64", [this.rows, this.columns], BigInt64Array.from(this.positions, BigInt));
  }

  /** (R, M): how many tokens of its text a token ends that are not the padding's, from behind the padding's number. */
  positionsBehind(padding: number, ids: Tensor<"int64">): Tensor<"int64"> {
    const found = zeros("int64", [this.rows, this.columns]);
    const none = BigInt(padding);
    let count = 0n;
    for (let at = 0; at < found.data.length; at += 1) {
      if (this.positions[at] === 0) count = 0n;
      const counts = ids.data[at] !== none;
      if (counts) count += 1n;
      found.data[at] = (counts ? count : 0n) + none;
    }
    return found;
  }
}

/** The layout of texts of so many tokens each, 1 or more, for a model with `width` features of a token. */
export function layOut(lengths: readonly number[], width: number): Layout {
  const rows = sharedOut(lengths, width);
  const most = Math.max(...rows.map((row) => sum(row.map((text) => lengths[text] as number))));
  const starts = new Array<number>(lengths.length).fill(0);
  rows.forEach((row, number) => {
    let start = number * most;
    for (const text of row) {
      starts[text] = start;
      start += lengths[text] as number;
    }
  });
  if (rows.length === 1) return new Layout(lengths, null, starts, 1, most);
  const place = new Int32Array(sum(lengths));
  partsOf(lengths).forEach(({ start, stop }, text) => {
    for (let token = start; token < stop; token += 1) place[token] = (starts[text] as number) + token - start;
  });
  return new Layout(lengths, place, starts, rows.length, most);
}

/** Where each text's tokens are among those of all. */
export function partsOf(lengths: readonly number[]): Span[] {
  let start = 0;
  return lengths.map((length) => {
    const part = { start, stop: start + length };
    start += length;
    return part;
  });
}

/**
 * The texts of each row, for the number of rows with the least products: a linear layer's and attention's.
 *
 * A block has about 12 · width² products a token in its linear layers, and 2 · width · M in attention over M places.
 */
function sharedOut(lengths: readonly number[], width: number): number[][] {
  let best = [lengths.map((_, text) => text)];
  let least = costOf(1, sum(lengths), width);
  for (let count = 2; count < 2 * lengths.length; count *= 2) {
    const rows = even(lengths, Math.min(count, lengths.length));
    const most = Math.max(...rows.map((row) => sum(row.map((text) => lengths[text] as number))));
    const cost = costOf(rows.length, most, width);
    if (cost < least) [best, least] = [rows, cost];
  }
  return best;
}

function costOf(rows: number, places: number, width: number): number {
  return rows * places * (6 * width + DEAR * places);
}

/** The texts in so many rows of about as many tokens: the longest first, each where there are the fewest yet. */
function even(lengths: readonly number[], count: number): number[][] {
  const rows = Array.from({ length: count }, (): number[] => []);
  const sizes = new Array<number>(count).fill(0);
  const order = lengths
    .map((_, text) => text)
    .sort((one, other) => (lengths[other] as number) - (lengths[one] as number));
  for (const text of order) {
    const row = sizes.indexOf(Math.min(...sizes));
    (rows[row] as number[]).push(text);
    sizes[row] = (sizes[row] as number) + (lengths[text] as number);
  }
  return rows.map((row) => row.sort((one, other) => one - other));
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
