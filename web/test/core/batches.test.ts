/** The reference's order of rows, and batches of texts and images. */

import { describe, expect, it } from "vitest";

import { Feed, type ImageForm, Ragged, type Rows, Split } from "../../src/core/batches";
import { Random } from "../../src/core/random";
import { tensor, zeros } from "../../src/core/tensor";
import { vectors } from "./vectors";

function numbered(count: number): Pick<Rows, "labels" | "ids"> {
  const rows = BigInt64Array.from({ length: count }, (_, row) => BigInt(row));
  return { labels: rows.map((row) => row % 3n), ids: rows };
}

interface Case {
  rows: number[];
  batch_size: number;
  seed: number | bigint;
  batches: number[][];
}

it.each<Case>(vectors("batches").cases)("takes the rows of seed $seed in the reference's order", (kase) => {
  const count = kase.rows.length;
  const ids = BigInt64Array.from(kase.rows, BigInt);
  const split = new Split({ labels: new BigInt64Array(count), ids, images: zeros("float32", [count, 1, 1, 1]) });
  const feed = new Feed(split, kase.batch_size, kase.seed);
  const order = kase.batches.map((_, number) => [...feed.batch(number).sampleIds.data].map(Number));
  expect(order).toEqual(kase.batches);
  // Whatever came before, a batch is a function of its number.
  expect([...feed.batch(0).sampleIds.data].map(Number)).toEqual(kase.batches[0]);
});

it("draws what NumPy draws", () => {
  // numpy.random.Generator(numpy.random.Philox(numpy.random.SeedSequence([2**64 - 1, 2**40, 7, 0, 5]))).permutation(12)
  const drawn = Random.of(2n ** 64n - 1n, 2 ** 40, 7, 0, 5).permutation(12);
  expect(drawn).toEqual([7, 9, 11, 4, 0, 1, 2, 8, 3, 10, 6, 5]);
});

it("draws the whole numbers that NumPy draws", () => {
  // numpy.random.Generator(numpy.random.Philox(key=9)).integers(0, 6, size=20)
  const draws = new Random([9n, 0n]);
  const drawn = Array.from({ length: 20 }, () => draws.below(6));
  expect(drawn).toEqual([4, 1, 1, 4, 3, 2, 3, 5, 2, 4, 1, 4, 2, 3, 3, 5, 3, 5, 1, 0]);
  // numpy.random.Generator(numpy.random.Philox(key=9)).integers(0, 3_000_000_000, size=6): many draws are refused
  const far = new Random([9n, 0n]);
  expect(Array.from({ length: 6 }, () => far.below(3_000_000_000))).toEqual([2388968509, 1626542428, 2529896351, 1498519340, 690582606, 1915095054]);
});

describe("texts", () => {
  const tokens = new Ragged([[5, 6, 7], [8], [9, 10]]);

  it("stand one behind the other", () => {
    const types = new Ragged([[0, 0, 1], [0], [0, 1]]);
    const split = new Split({ ...numbered(3), tokens, tokenTypes: types });
    const { inputs, labels, sampleIds, scored } = split.batch([2, 0]);
    expect([...(inputs["input_ids"]?.data ?? [])]).toEqual([9n, 10n, 5n, 6n, 7n]);
    expect([...(inputs["token_type_ids"]?.data ?? [])]).toEqual([0n, 1n, 0n, 0n, 1n]);
    expect([...(inputs["lengths"]?.data ?? [])]).toEqual([2n, 3n]);
    expect([...labels.data, ...sampleIds.data]).toEqual([2n, 0n, 2n, 0n]);
    expect(scored).toBeNull();
  });

  it("have their own tokens for labels, but for those without a loss", () => {
    const { labels, scored } = new Split({ ...numbered(3), tokens, unscored: [2, 1, 1] }).batch([0, 1, 2]);
    expect([...labels.data]).toEqual([-100n, -100n, 7n, -100n, -100n, 10n]);
    expect([...(scored?.data ?? [])]).toEqual([1n, 4n]);
  });
});

it("makes values of pixels in float32", () => {
  const form: ImageForm = { scale: null, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
  const images = tensor("uint8", [2, 1, 2, 3], Uint8Array.of(0, 1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 255));
  const of = (imageForm: ImageForm): number[] => {
    const { pixel_values: values } = new Split({ ...numbered(2), images, imageForm }).batch([1]).inputs;
    expect(values?.shape).toEqual([1, 3, 1, 2]);
    return [...(values?.data ?? [])].map(Number);
  };
  const f = Math.fround;
  const pixels = [10, 40, 20, 50, 30, 255];
  const each = (of: readonly number[], at: number): number => f(of[at >> 1] as number); // two pixels of a colour
  const wanted = (scaled: (pixel: number) => number): number[] =>
    pixels.map((pixel, at) => f(f(f(scaled(pixel)) - each(form.mean, at)) / each(form.std, at)));
  expect(of(form)).toEqual(wanted((pixel) => pixel / 255));
  expect(of({ ...form, scale: 0.00392 })).toEqual(wanted((pixel) => pixel * 0.00392));
});

it("tells splits apart by what is in them", () => {
  const tokens = new Ragged([[1, 2], [3]]);
  const splits: Rows[] = [
    { ...numbered(2), tokens },
    { ...numbered(2), tokens: new Ragged([[1], [2, 3]]) },
    { ...numbered(2), tokens, tokenTypes: tokens },
    { ...numbered(2), tokens, unscored: [1, 1] },
    { ...numbered(2), images: zeros("float32", [2, 1, 1, 1]) },
    { ...numbered(2), images: zeros("float32", [2, 1, 1, 2]) },
  ];
  const digests = splits.map((rows) => new Split(rows).digest());
  expect(new Set(digests).size).toBe(splits.length);
  expect(new Split({ ...numbered(2), tokens: new Ragged([[1, 2], [3]]) }).digest()).toBe(digests[0]);
});
