/** Slopes against closed forms, and what is asked of a forward pass. */

import { expect, it } from "vitest";

import { direction } from "../../src/core/directions";
import type { Parameters } from "../../src/core/replay";
import { type Law, Seeds } from "../../src/core/seeds";
import { Cotangent, Probe, type Run, estimate, inner } from "../../src/core/slopes";
import { type Tensor, tensor } from "../../src/core/tensor";

const LAW: Law = "gaussian";
const SEEDS = new Seeds([11n, 12n, 13n], LAW);

function drawn(seed: bigint, name: string, ...shape: number[]): Tensor<"float32"> {
  return direction(seed, name, shape, LAW);
}

const THETA: Parameters = new Map([
  ["a", drawn(1n, "a", 6)],
  ["b", drawn(1n, "b", 6)],
]);
const X = drawn(2n, "x", 4, 6);
const LAMBDA = drawn(3n, "λ", 4, 6);

/** z of sample n and place i is a_i² · x_ni + b_i. */
const run: Run = async (weight) => {
  const [a, b] = [weight("a").data, weight("b").data];
  return tensor("float32", [4, 6], X.data.map((x, at) => (a[at % 6] as number) ** 2 * x + (b[at % 6] as number)));
};

/** ∂⟨λ, z⟩ along the direction of a seed, of each sample. */
function exact(seed: bigint, names: readonly string[]): number[] {
  const [a, u, v] = [THETA.get("a")?.data, drawn(seed, "a", 6).data, drawn(seed, "b", 6).data] as Float32Array[];
  const each = (values: Float32Array | undefined, at: number): number => values?.[at % 6] as number;
  const parts = [...LAMBDA.data].map((value, at) => {
    const byA = names.includes("a") ? 2 * each(a, at) * (X.data[at] as number) * each(u, at) : 0;
    return value * (byA + (names.includes("b") ? each(v, at) : 0));
  });
  return [0, 1, 2, 3].map((row) => parts.slice(row * 6, row * 6 + 6).reduce((sum, part) => sum + part, 0));
}

const total = (values: number[]): number => values.reduce((sum, value) => sum + value, 0);

it.each([
  ["forward", ["a", "b"], 0.02],
  ["central", ["a", "b"], 0.002],
  ["central", ["b"], 0.002],
] as const)("%s of %s", async (estimator, names, error) => {
  const measured = new Map([...THETA].filter(([name]) => names.includes(name as "b")));
  const cotangent = Cotangent.at(LAMBDA, await run((name) => THETA.get(name) as Tensor<"float32">));
  const slopes = await estimate(run, THETA, measured, cotangent, SEEDS, new Probe(3, 1e-3, estimator));
  SEEDS.numbers.forEach((seed, place) => {
    expect(Math.abs((slopes[place] as number) - total(exact(seed, names)))).toBeLessThan(error);
  });
});

it("bounds what each sample says", async () => {
  const cotangent = Cotangent.at(LAMBDA, await run((name) => THETA.get(name) as Tensor<"float32">));
  const [slope] = await estimate(run, THETA, THETA, cotangent, SEEDS, new Probe(3, 1e-3, "central", 2));
  const bounded = exact(11n, ["a", "b"]).map((value) => Math.max(Math.min(value, 0.5), -0.5));
  expect(Math.abs((slope as number) - total(bounded))).toBeLessThan(0.002);
});

it("sums each text's tokens", () => {
  const [one, other] = [LAMBDA, X].map((each) => each.data);
  const products = [...(one as Float32Array)].map((value, at) => value * ((other as Float32Array)[at] as number));
  expect([...inner(LAMBDA, X, [1, 3])]).toEqual([total(products.slice(0, 6)), total(products.slice(6))]);
  expect([...inner(LAMBDA, X)]).toHaveLength(4);
});

it("has a radius by default that is smaller for many parameters", () => {
  expect(new Probe(1).settled(THETA).moved).toBe(1e-4);
  const large = new Map([["a", { ...(THETA.get("a") as Tensor<"float32">), shape: [4000, 4000] }]]);
  expect(new Probe(1).settled(large).moved).toBe(0.25 / 4000);
  expect(new Probe(1, 0.5).settled(large).moved).toBe(0.5);
  expect(() => new Probe(1).moved).toThrow(RangeError);
});
