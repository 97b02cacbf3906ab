/** Seeds, the generator, the table and directions of both laws. */

import { describe, expect, it } from "vitest";

import { ALIGNMENT, Direction, Perturbed, direction, philox } from "../../src/core/directions";
import { gaussianTable } from "../../src/core/gaussian";
import { type Law, Seeds, nameNumber, seedFor, wordOf } from "../../src/core/seeds";
import { tensor } from "../../src/core/tensor";
import { type Shown, telling, told, vectors } from "./vectors";

const DIRECTIONS = vectors("directions");
const hex = (number: bigint): string => number.toString(16).padStart(16, "0");

describe("seeds", () => {
  it("are those of the reference", () => {
    const { seeds, names } = vectors("seeds");
    for (const { path, seed } of seeds) expect(hex(seedFor(...path))).toBe(seed);
    for (const { name, number } of names) expect(hex(nameNumber(name))).toBe(number);
  });

  it("are of whole numbers and texts", () => {
    expect(() => seedFor(0.5)).toThrow(TypeError);
    expect(seedFor(7)).toBe(seedFor(7n));
  });
});

it("draws the words of the reference", () => {
  for (const { counter, key, words } of DIRECTIONS.philox) {
    const [c0, c1, c2, c3] = counter;
    const made = new Uint32Array(4);
    philox(made, { low: c0, high: c1 }, { low: key[0], high: key[1] }, { low: c2, high: c3 });
    expect([...made]).toEqual(words);
  }
});

it("has the reference's table", () => {
  const known = DIRECTIONS.gaussian_table;
  const table = tensor("float32", [65536], gaussianTable());
  const chosen = Float32Array.from(known.places as number[], (place) => table.data[place] ?? NaN);
  expect(telling(tensor("float32", [chosen.length], chosen), known.values)).toEqual(told(known.values));
  expect(telling(table, known)).toEqual(told(known));
});

interface Case extends Shown {
  seed: string;
  name: string;
  law: Law;
  first: Shown;
  last: Shown;
}

it.each<Case>(DIRECTIONS.directions)("makes the $law direction of $shape", (kase) => {
  const made = direction(BigInt(`0x${kase.seed}`), kase.name, kase.shape, kase.law);
  expect(telling(made, kase)).toEqual(told(kase));
  for (const [part, shown] of [
    [made.data.slice(0, 15), kase.first],
    [made.data.slice(-3), kase.last],
  ] as const) {
    expect(telling(tensor("float32", [part.length], part), shown)).toEqual(told(shown));
  }
});

it.each<Law>(["rademacher", "gaussian"])("makes pieces of a %s direction as it makes all of it", (law) => {
  const [seed, name, size] = [seedFor("pieces"), "weight", 1000];
  const whole = direction(seed, name, [size], law);
  const made = new Float32Array(size);
  for (let start = 0; start < size; start += 3 * ALIGNMENT) {
    new Direction(wordOf(seed), name, law).write(made.subarray(start, start + 3 * ALIGNMENT), start, 1);
  }
  expect(made).toEqual(whole.data);
});

it("counts blocks beyond 2^32", () => {
  const start = 2 ** 32 * 8;
  const [key, name] = [wordOf(seedFor("far")), wordOf(nameNumber("weight"))];
  const made = new Float32Array(8);
  new Direction(key, "weight", "gaussian").write(made, start, 1);
  const words = new Uint32Array(4);
  philox(words, { low: 0, high: 1 }, key, name);
  expect([...made]).toEqual([...new Uint16Array(words.buffer)].map((half) => gaussianTable()[half]));
});

it("moves parameters by a rounded product and a rounded sum", () => {
  const parameters = new Map([["weight", tensor("float32", [3, 50], direction(1n, "start", [150], "gaussian").data)]]);
  const moved = new Perturbed(parameters, new Seeds([5n, 9n], "gaussian"), 1, 1e-3).of("weight");
  const along = direction(9n, "weight", [150], "gaussian").data;
  const wanted = [...(parameters.get("weight")?.data ?? [])].map((value, place) =>
    Math.fround(value + Math.fround((along[place] as number) * Math.fround(1e-3))),
  );
  expect(moved.shape).toEqual([3, 50]);
  expect([...moved.data]).toEqual(wanted);
});
