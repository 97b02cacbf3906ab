/** θ and its moments, to the bit: every rule over rows, groups, exact parameters, turns and both laws. */

import { describe, expect, it, vi } from "vitest";

import * as directions from "../../src/core/directions";
import { PeerError } from "../../src/core/errors";
import { Replica, type RowForm } from "../../src/core/replay";
import { Directions, type Law, seedFor, seedsUnder } from "../../src/core/seeds";
import { fsum } from "../../src/core/sums";
import { type Tensor, rowsOf, tensor, zeros } from "../../src/core/tensor";
import { type RuleSettings, type Schedule, type ScheduleShape, UpdateRule, schedule } from "../../src/core/update";
import { type Shown, floats, telling, told, vectors } from "./vectors";

const REPLAY = vectors("replay");

interface Shape {
  shape: ScheduleShape;
  warmup: number;
  total: number;
  milestones?: number[];
  gamma?: number;
}

interface Case extends RowForm {
  shapes: Record<string, number[]>;
  rule: RuleSettings & { weight_decay?: number };
  schedule: Shape;
  seed_path: (number | string)[];
  law: Law;
  rows: Shown;
  steps: number[];
  result: Record<string, Record<string, Shown>>;
}

function scheduleOf({ shape, warmup, total, milestones = [], gamma = 0.1 }: Shape): Schedule {
  return schedule(shape, warmup, total, { milestones, gamma });
}

function replicaOf(kase: Case): Replica {
  const start = Object.entries(kase.shapes).map(
    ([name, shape]): [string, Tensor<"float32">] => [
      name,
      directions.direction(seedFor("start"), name, shape, "gaussian"),
    ],
  );
  const { weight_decay: weightDecay = 0, ...rule } = kase.rule;
  return new Replica(
    new Map(start),
    new UpdateRule({ ...rule, weightDecay }),
    new Directions(seedsUnder(...kase.seed_path), kase.law),
    scheduleOf(kase.schedule),
    { groups: kase.groups, exact: kase.exact },
  );
}

/** What Python's `float.fromhex` reads. */
function ofHex(text: string): number {
  const [, digits = "", fraction = "", exponent = ""] = /^0x([0-9a-f]+)\.([0-9a-f]*)p([+-]\d+)$/.exec(text) ?? [];
  return (parseInt(digits, 16) + parseInt(fraction, 16) / 16 ** fraction.length) * 2 ** Number(exponent);
}

it.each<Shape & { factors: string[] }>(REPLAY.schedules)("schedule $shape after $warmup", (kase) => {
  const factor = scheduleOf(kase);
  expect(Array.from({ length: 12 }, (_, step) => factor(step))).toEqual(kase.factors.map(ofHex));
});

describe.each(Object.entries<Case>(REPLAY.cases))("%s", (_, kase) => {
  it.each([5, 1, 2])("comes to the recorded bits by %i rows at once", (atOnce) => {
    const replica = replicaOf(kase);
    const rows = floats(kase.rows);
    const count = rows.shape[0] as number;
    for (let first = 0; first < count; first += atOnce) {
      const stop = Math.min(first + atOnce, count);
      replica.replay(first, rowsOf(rows, first, stop), kase.steps.slice(first, stop));
    }
    const held = new Map([...replica.moments].map(([moment, by]) => [`moment.${moment}`, by]));
    held.set("theta", replica.parameters);
    expect([...held.keys()].sort()).toEqual(Object.keys(kase.result).sort());
    for (const [what, byName] of Object.entries(kase.result)) {
      for (const [name, shown] of Object.entries(byName)) {
        const values = held.get(what)?.get(name) as Tensor;
        expect(telling(values, shown), `${what} ${name}`).toEqual(told(shown));
      }
    }
  });
});

function plain(sizes: Record<string, number>, exact: string[] = [], rule: RuleSettings = { optimizer: "adamw" }): Replica {
  const start = new Map(Object.entries(sizes).map(([name, size]) => [name, zeros("float32", [size])]));
  const form = { groups: null, exact };
  return new Replica(start, new UpdateRule(rule), new Directions(seedsUnder("t")), undefined, form);
}

const rows = (...values: number[][]): Tensor<"float32"> =>
  tensor("float32", [values.length, values[0]?.length ?? 0], Float32Array.from(values.flat()));

describe("replay", () => {
  it("ignores rows that it has taken, and refuses those behind a gap", () => {
    const replica = plain({ a: 5 });
    replica.replay(0, rows([1], [2]));
    const before = replica.parameters.get("a")?.data.slice();
    replica.replay(0, rows([9], [9]));
    expect(replica.parameters.get("a")?.data).toEqual(before);
    expect(() => replica.replay(3, rows([1]))).toThrow(PeerError);
    expect(replica.position).toBe(2);
  });

  it.each([
    [tensor("float32", [2], new Float32Array(2)), 0],
    [rows([1, 2]), -1],
    [rows([1, 2]), 0],
    [zeros("float32", [1, 0]), 0],
  ])("refuses what is no rows: %o from %i", (given, first) => {
    expect(() => plain({ a: 3, b: 4 }, ["b"]).replay(first, given)).toThrow(PeerError);
  });

  it("goes on from a state, and from what exact gradients moved elsewhere", () => {
    const [one, other] = [plain({ a: 3, b: 2 }, ["b"]), plain({ a: 3, b: 2 }, ["b"])];
    one.replay(0, rows([0.5, 1, 2], [0.25, 3, 4]));
    other.takeState(0, rows([0.5], [0.25]), structuredClone([...one.exactState().values()]));
    expect(other.state()).toEqual(one.state());
    const third = plain({ a: 3, b: 2 }, ["b"]);
    third.loadState(one.state());
    for (const each of [one, other, third]) each.replay(2, rows([1, 1, 1]));
    expect(third.state()).toEqual(one.state());
    expect(other.state()).toEqual(one.state());
  });

  it("takes rows without slopes for what they weigh", () => {
    const replica = plain({ a: 3, b: 2 }, ["b"]);
    const state = structuredClone([...replica.exactState().values()]);
    replica.takeState(0, zeros("float32", [2 ** 31, 0]), state);
    expect(replica.position).toBe(2 ** 31);
    expect(() => replica.takeState(2 ** 32, zeros("float32", [1, 0]), state)).toThrow(PeerError);
  });

  it("comes to the same by thousands of rows at once", () => {
    const slopes = floats({ dtype: "float32", shape: [2500, 1], hex: "0000803f".repeat(2500) });
    const [one, other] = [plain({ a: 3 }), plain({ a: 3 })];
    one.replay(0, slopes);
    for (let first = 0; first < 2500; first += 7) other.replay(first, rowsOf(slopes, first, Math.min(first + 7, 2500)));
    expect(one.state()).toEqual(other.state());
  });

  it("makes no direction of more than a tile", () => {
    const sizes = vi.spyOn(directions.Direction.prototype, "write");
    plain({ a: 100_000 }, [], {}).replay(0, rows([1, 2, 3], [4, 5, 6]));
    expect(Math.max(...sizes.mock.calls.map(([made]) => made.length))).toBe(1 << 14);
    expect(sizes.mock.calls.length).toBe(7 * 2 * 3);
  });
});

it.each([
  [[], 0],
  [[1e16, 1, 1e-16], 1e16 + 2], // a tie, which what is far below decides
  [[1, 1e100, 1, -1e100], 2],
  [[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 1],
])("rounds the sum of %o once", (values, sum) => {
  expect(fsum(values)).toBe(sum);
});
