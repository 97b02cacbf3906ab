/** What chains make of matrices and back, to the bit; conversations over links that remember; and what is refused. */

import { describe, expect, it } from "vitest";

import { Cache } from "../../src/core/codecs/cache";
import { type Chosen, makeReceiver, makeSender } from "../../src/core/codecs";
import { Samples } from "../../src/core/codecs/protocol";
import { Sketch } from "../../src/core/codecs/sketch";
import { Temporal, TemporalReceiver, TemporalSender } from "../../src/core/codecs/temporal";
import { crc32 } from "../../src/core/crc";
import { direction } from "../../src/core/directions";
import { PackageError, PeerError } from "../../src/core/errors";
import { Bounds, HiddenForm, VectorForm } from "../../src/core/forms";
import { toBfloat16, toFloat16, widened } from "../../src/core/halves";
import { type Both, Encoded, type Exact } from "../../src/core/messages";
import { type Tensor, bytesOf, rowsOf, tensor, zeros } from "../../src/core/tensor";
import { Most, unpack } from "../../src/core/wire";
import { Dice } from "./dice";
import { type Shown, array, bytes, floats, telling, told, vectors } from "./vectors";

const CODECS = vectors("codecs");

interface ChainCase {
  name: string;
  chain: Chosen;
  matrix: Shown;
  parts: Shown[];
  decoded: Shown & { first: Shown };
}

describe.each<ChainCase>(CODECS.chains)("$name of $matrix.shape", (kase) => {
  const matrix = floats(kase.matrix);
  const [rows, width] = matrix.shape as [number, number];
  const samples = new Samples([0], [rows]);

  it("makes the recorded parts, and of these the recorded matrix", () => {
    const parts = makeSender(kase.chain, width, "codecs").encode(matrix, samples);
    expect(parts.map((part, place) => telling(part, kase.parts[place] as Shown))).toEqual(kase.parts.map(told));
    const receiver = makeReceiver(kase.chain, width, "codecs");
    const back = receiver.decode(parts, samples);
    expect(telling(back, kase.decoded)).toEqual(told(kase.decoded));
    const first = { ...rowsOf(back, 0, 1), shape: [width] } as Tensor;
    expect(telling(first, kase.decoded.first)).toEqual(told(kase.decoded.first));
    const size = parts.reduce((sum, part) => sum + part.data.byteLength, 0);
    expect(receiver.most(rows, 1)).toEqual([size, parts.length]);
  });

  it("refuses other parts", () => {
    const receiver = makeReceiver(kase.chain, width, "codecs");
    const parts = kase.parts.map(array);
    const wrong = [
      parts.slice(1),
      [...parts, zeros("float32", [rows, 1])],
      ...parts.map((part, place) => parts.with(place, rowsOf(part, 1, rows))),
      ...parts.map((part, place) => parts.with(place, zeros("int64", part.shape))),
    ];
    for (const each of wrong) expect(() => receiver.decode(each, samples)).toThrow(PeerError);
  });
});

it("adds what sign lost to a sample's next rows", () => {
  const sender = makeSender(["sign"], 16, "codecs");
  const samples = new Samples([0], [2]);
  const other = makeSender(["sign"], 16, "codecs");
  for (const { matrix, parts } of CODECS.sign_with_feedback as { matrix: Shown; parts: Shown[] }[]) {
    other.loadState(structuredClone(sender.state()));
    for (const each of [sender, other]) {
      const made = each.encode(floats(matrix), samples);
      expect(made.map((part, place) => telling(part, parts[place] as Shown))).toEqual(parts.map(told));
    }
  }
});

it("reads missed steps of exact gradients from one message", () => {
  const { chain, length, hex, rows } = CODECS.missed as { chain: Chosen; length: number; hex: string; rows: Shown[] };
  const form = new VectorForm(length);
  const receiver = makeReceiver(chain, form.width, "codecs");
  const run = { rows: 1, steps: 9, slopes: 0, exact: length, state: 12 * length, weights: new Most(0, 0) };
  const most = new Bounds(run).receiving(new Map([["slopes_down", form]]), new Map([["slopes_down", receiver]]));
  const { values } = (unpack(bytes(hex), most) as Both).second as Exact;
  const { parts } = values as Encoded;
  const whole = form.tensor(receiver.decode(parts, new Samples([0], [parts[0]?.shape[0] as number])));
  rows.forEach((row, place) => {
    const own = tensor("float32", [length], whole.data.slice(place * length, (place + 1) * length));
    expect(telling(own, row)).toEqual(told(row));
  });
});

interface Conversation {
  chain: Chosen;
  threshold: number;
  steps: {
    ids: number[] | null;
    rows: number[];
    matrix: Shown;
    similarity: (number | null)[];
    parts: Shown[];
    arrived: Shown;
    digest: number | bigint;
  }[];
}

describe.each(Object.entries<Conversation>(vectors("temporal")))("temporal, %s", (_, kase) => {
  it("says and remembers what the reference does", () => {
    const sender = makeSender(kase.chain, 8, "codecs") as TemporalSender;
    let receiver = makeReceiver(kase.chain, 8, "codecs") as TemporalReceiver;
    sender.threshold = kase.threshold;
    for (const step of kase.steps) {
      const samples = new Samples(step.ids, step.rows);
      const [similarity, ...parts] = sender.encode(floats(step.matrix), samples);
      const kept = Float32Array.from(step.similarity, (each) => each ?? NaN);
      (similarity as Tensor<"float32">).data.forEach((each, place) => {
        if (Number.isNaN(kept[place])) expect(each).toBeNaN();
        else expect(Math.abs(each - (kept[place] as number))).toBeLessThan(1e-5);
      });
      expect(parts.map((part, place) => telling(part, step.parts[place] as Shown))).toEqual(step.parts.map(told));
      const came = [tensor("float32", [kept.length], kept), ...step.parts.map(array)];
      const arrived = receiver.decode(came, samples);
      expect(telling(arrived, step.arrived)).toEqual(told(step.arrived));
      expect(sender.cache.digest()).toBe(receiver.cache.digest());
      expect(sender.cache.digest()).toBe(BigInt(step.digest));
      const next = makeReceiver(kase.chain, 8, "codecs") as TemporalReceiver;
      next.loadState(structuredClone(receiver.state()));
      receiver = next;
    }
  });
});

describe("a skip map", () => {
  const chain = [{ name: "temporal", projection: null }];
  const matrix = tensor("float32", [3, 4], Float32Array.from({ length: 12 }, (_, at) => at));
  const large = tensor("float32", [2], Float32Array.of(1.1, 0));
  const parts = (skip: number[], rows: number): Tensor[] => [
    tensor("float32", [2], Float32Array.of(NaN, NaN)),
    tensor("bool", [2], Uint8Array.from(skip)),
    rowsOf(matrix, 0, rows),
  ];

  it.each([
    ["an unknown sample", new Samples([1, 2], [1, 2]), parts([1, 0], 2)],
    ["a sample twice", new Samples([1, 1], [1, 2]), parts([0, 0], 3)],
    ["a sample of a probe", new Samples(null, [1, 2]), parts([1, 0], 2)],
    ["as many samples as there are", new Samples([1, 2, 3], [1, 1, 1]), parts([0, 0], 3)],
    ["similarities up to 1", new Samples([1, 2], [1, 2]), parts([0, 0], 3).with(0, large)],
    ["two tensors at least", new Samples([1, 2], [1, 2]), parts([0, 0], 3).slice(0, 1)],
  ])("is of %s", (_, samples, came) => {
    const receiver = makeReceiver(chain, 4, "codecs") as TemporalReceiver;
    expect(() => receiver.decode(came, samples)).toThrow(PeerError);
    expect(receiver.cache.size).toBe(0);
  });

  it("is of samples with as many rows as before", () => {
    const receiver = makeReceiver(chain, 4, "codecs");
    receiver.decode(parts([0, 0], 3), new Samples([1, 2], [1, 2]));
    expect(() => receiver.decode(parts([1, 0], 1), new Samples([1, 2], [2, 1]))).toThrow(PeerError);
  });
});

it("gives values that are not finite to nobody", () => {
  const receiver = makeReceiver([{ name: "temporal", projection: null }, "cast"], 2, "codecs") as TemporalReceiver;
  const parts = [
    tensor("float32", [1], Float32Array.of(NaN)),
    zeros("bool", [1]),
    tensor("bfloat16", [1, 2], Uint16Array.of(0x7f80, 0)),
  ];
  expect(() => receiver.decode(parts, new Samples([1], [1]))).toThrow(PeerError);
  expect(receiver.cache.size).toBe(0);
  const scales = makeReceiver(["int8"], 2, "codecs");
  for (const scale of [-1, NaN, Infinity]) {
    const came = [zeros("int8", [1, 2]), tensor("float32", [1, 1], Float32Array.of(scale))];
    expect(() => scales.decode(came, new Samples([1], [1]))).toThrow(PeerError);
  }
});

describe("a recipe's chain", () => {
  it.each<[Chosen, string]>([
    [["topk"], "topk: a page has cast, int8, int4, sign, temporal"],
    [["int8", "temporal"], "temporal must be the first"],
    [["int8", "int4"], "int4 takes floats; what comes before it gives int8"],
    [["cast", "cast"], "half precision already"],
    [[{ name: "cast", dtype: "int4" }], "float16 and bfloat16 are allowed"],
    [[{ name: "int8", more: 1 }], "no option more"],
    [[{ name: "temporal", cap_mb: -1 }], "cap_mb=-1 is not allowed"],
    [[{ name: "temporal", cache: "int4" }], "cache=int4 is not allowed"],
    [[{ name: "temporal", toString: 1 }], "toString=1 is not allowed"],
    [[{ name: "toString" }], "a page has"],
  ])("%j is refused", (chosen, why) => {
    expect(() => makeSender(chosen, 8, "codecs.gradient_down")).toThrow(PackageError);
    expect(() => makeReceiver(chosen, 8, "codecs.gradient_down")).toThrow(`codecs.gradient_down: `);
    expect(() => makeReceiver(chosen, 8, "codecs.gradient_down")).toThrow(why);
  });
});

describe("half precision", () => {
  it.each(["float16", "bfloat16"] as const)("%s: every finite value comes back as it is", (dtype) => {
    const infinity = dtype === "float16" ? 0x7c00 : 0x7f80;
    const bits = Uint16Array.from({ length: 2 * infinity }, (_, at) => (at < infinity ? at : 0x8000 + at - infinity));
    const values = widened(tensor(dtype, [bits.length], bits));
    const back = dtype === "float16" ? toFloat16(values) : toBfloat16(values);
    expect(bytesOf(back)).toEqual(bytesOf(tensor(dtype, [bits.length], bits)));
    const sizes = values.data.subarray(0, infinity);
    expect(sizes.every((value, at) => at === 0 || value > (sizes[at - 1] as number))).toBe(true);
  });

  it.each(["float16", "bfloat16"] as const)("%s: what is between two goes to the nearer, or the even", (dtype) => {
    const round = dtype === "float16" ? toFloat16 : toBfloat16;
    const of = (bits: number): number => widened(tensor(dtype, [1], Uint16Array.of(bits))).data[0] as number;
    const rounded = (value: number): number => round(tensor("float32", [1], Float32Array.of(value))).data[0] as number;
    const dice = new Dice(2);
    for (let turn = 0; turn < 300; turn += 1) {
      const bits = dice.below((dtype === "float16" ? 0x7c00 : 0x7f80) - 1);
      const [low, high] = [of(bits), of(bits + 1)];
      const middle = (low + high) / 2;
      expect(rounded(middle)).toBe(bits + (bits & 1));
      if (Math.fround(middle) === middle && middle > 2 ** -120) {
        expect(rounded(middle * (1 - 2 ** -23))).toBe(bits);
        expect(rounded(middle * (1 + 2 ** -23))).toBe(bits + 1);
      }
    }
  });

  it("has the values that everybody knows", () => {
    const known = tensor("float16", [5], Uint16Array.of(0x3c00, 0xc000, 0x7bff, 0x0001, 0x0400));
    expect([...widened(known).data]).toEqual([1, -2, 65504, 2 ** -24, 2 ** -14]);
    expect([...widened(tensor("bfloat16", [2], Uint16Array.of(0x3f80, 0xc049))).data]).toEqual([1, -3.140625]);
    expect(widened(tensor("float16", [3], Uint16Array.of(0x7c00, 0xfc00, 0x7e00))).data.map(Math.sign)).toEqual(
      Float32Array.of(1, -1, NaN),
    );
  });
});

it("reckons zlib's checksum", () => {
  const text = new TextEncoder().encode("123456789");
  expect(crc32(text)).toBe(0xcbf43926);
  expect(crc32(text.subarray(4), crc32(text.subarray(0, 4)))).toBe(0xcbf43926);
});

it("keeps norms and angles in a sketch", () => {
  const [width, rows] = [384, 40];
  const matrix = { ...direction(1n, "rows", [rows * width], "gaussian"), shape: [rows, width] } as Tensor<"float32">;
  const sketch = new Sketch(width, 64, 0);
  const whole = sketch.of(matrix);
  expect(whole.shape).toEqual([rows, 64]);
  const square = (values: Float32Array): number => values.reduce((sum, value) => sum + value * value, 0);
  expect(Math.abs(square(whole.data) / square(matrix.data) - 1)).toBeLessThan(0.1);
  // Linear, and a row's sketch is its own.
  expect(sketch.of(rowsOf(matrix, 3, 5)).data).toEqual(whole.data.slice(3 * 64, 5 * 64));
  expect(new Sketch(8, 64, 0).of(rowsOf(matrix, 0, 0))).toEqual(rowsOf(matrix, 0, 0));
});

it("keeps to its cap, and drops what was used longest ago", () => {
  const cache = new Cache(10);
  const parts = [zeros("float32", [1])];
  for (const sample of [1, 2, 3]) cache.put(sample, parts, 3, 0);
  cache.touch(1);
  cache.put(4, parts, 3, 0);
  expect([1, 2, 3, 4].filter((sample) => cache.has(sample))).toEqual([1, 3, 4]);
  cache.put(5, parts, 100, 0);
  expect([1, 3, 4, 5].filter((sample) => cache.has(sample))).toEqual([5]);
  cache.put(6, parts, 1, 0);
  expect([5, 6].filter((sample) => cache.has(sample))).toEqual([6]);
});

describe("forms", () => {
  it("lay samples out for codecs and back", () => {
    const image = new HiddenForm([2, 3, 4], false);
    expect([image.rows, image.width]).toEqual([2, 12]);
    const hidden = zeros("float32", [5, 2, 3, 4]);
    expect(image.matrix(hidden).shape).toEqual([10, 12]);
    expect(image.tensor(image.matrix(hidden))).toEqual(hidden);
    const vector = new HiddenForm([7], false);
    expect(vector.tensor(vector.matrix(zeros("float32", [3, 7]))).shape).toEqual([3, 7]);
    expect(vector.most(3)).toEqual(new Most(84, 1, [3, 7]));
  });

  it("bound what may come", () => {
    const text = new HiddenForm([100, 8], true);
    const run = { rows: 4, steps: 9, slopes: 18, exact: 1000, state: 12_000, weights: new Most(12_000, 3) };
    const most = new Bounds(run).receiving(new Map([["gradient_down", text]]), new Map());
    expect(most.gradient).toEqual(new Most(4 * 4 * 100 * 8, 1, [400, 8]));
    expect(most.slopes).toEqual(new Most(2 * 4000)); // of two steps' exact gradients: three would be the state's size
    expect(most.activations).toBeUndefined();
    expect(most.labels).toBeUndefined();
  });
});

it("takes the options that a recipe may have", () => {
  const options = new Temporal({ cap_mb: 1.5, cache: "int8", seed: 2n ** 63n, where: "disk" });
  expect(options.cap).toBe(1_500_000);
  expect(options.size(2, 10)).toBe(28);
});
