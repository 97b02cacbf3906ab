import * as ort from "onnxruntime-web/wasm";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { PackageError } from "../../src/core/errors";
import { Package, dequantised } from "../../src/device/package";
import { Bottom } from "../../src/device/runtime";
import { BLOCK, type Named, filesOf, packageOf, weightsOf, withHeader } from "./made";

type Manifest = Record<string, unknown>;
type Change = (manifest: Manifest) => void;

beforeEach(() => {
  vi.spyOn(ort.InferenceSession, "create");
});
afterEach(() => {
  vi.restoreAllMocks();
});

async function refusal(named: Named): Promise<string> {
  const files = filesOf(named);
  const error: unknown = await Package.open(files)
    .then(Bottom.load)
    .catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(PackageError);
  expect((error as Error).message).not.toContain("\n");
  return (error as Error).message;
}

test("what is right is opened, and θ is a copy", async () => {
  const from = await Package.open(filesOf(await packageOf()));
  const theta = from.theta().get("a");
  expect([...(theta?.data ?? [])]).toEqual([1, 2]);
  (theta?.data as Float32Array)[0] = 9;
  expect([...(from.theta().get("a")?.data ?? [])]).toEqual([1, 2]);
});

const graphs =
  (change: (graphs: Manifest) => void): Change =>
  (manifest) =>
    change(manifest["graphs"] as Manifest);

describe("a manifest that says what can't be", () => {
  const cases: Record<string, [Change, string]> = {
    "a path out of the package": [
      (m) => Object.assign(m["files"] as Manifest, { "../x": { sha256: "0".repeat(64), bytes: 1 } }),
      'files: "../x" is no name of a file',
    ],
    "a file of another folder": [
      (m) => Object.assign(m["files"] as Manifest, { "a/b": { sha256: "0".repeat(64), bytes: 1 } }),
      "no name of a file",
    ],
    itself: [
      (m) => Object.assign(m["files"] as Manifest, { "manifest.json": { sha256: "0".repeat(64), bytes: 1 } }),
      "no name of a file",
    ],
    "no digest": [
      (m) => Object.assign((m["files"] as Manifest)["embed.onnx"] as Manifest, { sha256: "x" }),
      "a digest",
    ],
    "another digest": [
      (m) => Object.assign((m["files"] as Manifest)["block0.onnx"] as Manifest, { sha256: "0".repeat(64) }),
      "block0.onnx: its digest is not the manifest's",
    ],
    "another size": [
      (m) => Object.assign((m["files"] as Manifest)["block0.onnx"] as Manifest, { bytes: 6 }),
      "it has 5 bytes, and the manifest says 6",
    ],
    "a file that is not there": [
      (m) => Object.assign(m["files"] as Manifest, { more: { sha256: "0".repeat(64), bytes: 1 } }),
      "more: there is no such file",
    ],
    "another format": [(m) => Object.assign(m, { format: 2 }), "its format is 2"],
    "a truth for a number": [(m) => Object.assign(m, { format: true }), "its format is true"],
    "another model": [(m) => Object.assign(m["model"] as Manifest, { kind: "x" }), "model.kind"],
    "a cut that is none": [(m) => Object.assign(m["model"] as Manifest, { cut: -1 }), "model.cut"],
    "a graph that is no file": [
      graphs((g) => Object.assign(g["embed"] as Manifest, { file: "http://a/b" })),
      "none of the files",
    ],
    "weights that are not there": [
      graphs((g) => Object.assign(g, { blocks: [{ ...BLOCK, weights: ["0.b"] }] })),
      "is missing",
    ],
    "a kind that is not there": [
      graphs((g) => Object.assign(g, { blocks: [{ ...BLOCK, kind: 1 }] })),
      "none of the 1 kinds",
    ],
    "θ of another shape": [(m) => Object.assign(m, { theta: [{ name: "a", shape: [3] }] }), "of shape [3] are due"],
    "θ twice": [
      (m) =>
        Object.assign(m, {
          theta: [
            { name: "a", shape: [2] },
            { name: "a", shape: [2] },
          ],
        }),
      "a name of its own",
    ],
    "exact without θ": [(m) => Object.assign(m, { exact: ["b"] }), "only names of theta"],
    "a shape without end": [
      (m) => Object.assign(m, { theta: [{ name: "a", shape: Array(9).fill(1) }] }),
      "a shape are due",
    ],
  };
  test.each(Object.entries(cases))("%s", async (_, [change, said]) => {
    expect(await refusal(await packageOf({}, change))).toContain(said);
    expect(ort.InferenceSession.create).not.toHaveBeenCalled();
  });

  test("it is no JSON, or too long", async () => {
    const text = new TextEncoder();
    expect(await refusal({ "manifest.json": text.encode("{") })).toContain("it is not JSON");
    expect(await refusal({ "manifest.json": text.encode("[]") })).toContain("names and values");
    const long = filesOf({ "manifest.json": new Uint8Array((1 << 24) + 1) });
    await expect(Package.open(long)).rejects.toThrow("more than");
    expect(long.wasRead).toEqual([]);
  });
});

describe("weights that are not where the header says", () => {
  const one = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
  const cases: Record<string, [unknown, string]> = {
    "larger than the file": [
      { "0.a": { ...one, shape: [1000], data_offsets: [0, 4000] } },
      "is not where its values are",
    ],
    "other bytes than its shape": [{ "0.a": { ...one, shape: [3] } }, "is not where its values are"],
    "one over the other": [{ "0.a": one, "0.b": one }, "is not where its values are"],
    "another type": [{ "0.a": { ...one, dtype: "F64" } }, "type or shape"],
    "no offsets": [{ "0.a": { ...one, data_offsets: [0] } }, "two offsets"],
    "offsets below 0": [{ "0.a": { ...one, data_offsets: [-8, 0] } }, "two offsets"],
    "bytes of nothing": [{ "0.a": { dtype: "F32", shape: [1], data_offsets: [0, 4] } }, "belong to nothing"],
    "a list": [[1], "not where"],
  };
  test.each(Object.entries(cases))("%s", async (_, [header, said]) => {
    const message = await refusal(await packageOf({ "weights.safetensors": withHeader(header, new Uint8Array(8)) }));
    expect(message).toContain(header instanceof Array ? "names and values" : said);
  });

  test("a header longer than the file", async () => {
    const file = new Uint8Array(16).fill(255);
    expect(await refusal(await packageOf({ "weights.safetensors": file }))).toContain("its header has");
  });
});

test.each([
  ["refers to a file", "…location…", "refers to a file of this machine"],
  ["has a loop", "…Loop…", "may never end"],
])("a graph that %s is not loaded", async (_, graph, said) => {
  expect(await refusal(await packageOf({ "embed.onnx": new TextEncoder().encode(graph) }))).toContain(said);
  expect(ort.InferenceSession.create).not.toHaveBeenCalled();
});

test("what is no graph is one line", async () => {
  expect(await refusal(await packageOf())).toMatch(/^embed \(embed.onnx\): this runtime can't load it: /);
});

test("a graph that became another one is not loaded", async () => {
  const named = await packageOf();
  const from = await Package.open(filesOf(named));
  named["embed.onnx"] = new TextEncoder().encode("other");
  await expect(Bottom.load(from)).rejects.toThrow("its digest is not the manifest's");
});

test("weights that are not aligned are read all the same", async () => {
  const file = weightsOf({ "0.a": { shape: [2], data: [1, 2] } });
  const [length] = [Number(new DataView(file.buffer).getBigUint64(0, true))];
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length))) as object;
  for (let blanks = 0; blanks < 4; blanks += 1) {
    const padded = withHeader({ ...header, __metadata__: { x: " ".repeat(blanks) } }, file.subarray(8 + length));
    const from = await Package.open(filesOf(await packageOf({ "weights.safetensors": padded })));
    expect([...(from.weights.get("0.a")?.data ?? [])]).toEqual([1, 2]);
  }
});

test("whole numbers times the scale of their channel", () => {
  const values = { dtype: "int8", shape: [2, 3], data: Int8Array.of(1, 2, 3, -4, 5, 127) } as const;
  const rows = { dtype: "float32", shape: [2, 1], data: Float32Array.of(0.5, 2) } as const;
  const columns = { dtype: "float32", shape: [1, 3], data: Float32Array.of(1, 10, 100) } as const;
  expect([...dequantised(values, rows).data]).toEqual([0.5, 1, 1.5, -8, 10, 254]);
  expect([...dequantised(values, columns).data]).toEqual([1, 20, 300, -4, 50, 12700]);
});
