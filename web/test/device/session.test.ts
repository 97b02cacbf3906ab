import * as ort from "onnxruntime-web/wasm";
import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { PackageError } from "../../src/core/errors";
import { tensor } from "../../src/core/tensor";
import { ownSplit } from "../../src/device/data";
import { Package } from "../../src/device/package";
import { planOf } from "../../src/device/plan";
import { Bottom } from "../../src/device/runtime";
import { Session } from "../../src/device/session";
import { characters, filesOf, floats, graphOf, npzOf, packageOf, recipeOf } from "./made";

const create = vi.spyOn(ort.InferenceSession, "create");
const { prototype } = ort.InferenceSession as unknown as { prototype: ort.InferenceSession };
const release = vi.spyOn(prototype, "release");

beforeEach(() => void vi.clearAllMocks());
afterEach(() => expect(release).toHaveBeenCalledTimes(made()));

/** How many sessions of the runtime there were. */
function made(): number {
  return create.mock.settledResults.filter((each) => each.type === "fulfilled").length;
}

/** A package of images of one value, whose graphs these are; `change` is of its manifest. */
async function opened(
  block: Uint8Array<ArrayBuffer>,
  change: (manifest: Record<string, unknown>) => void = () => {},
): Promise<Package> {
  const graphs = { "embed.onnx": graphOf("Identity", "pixel_values"), "block0.onnx": block };
  return Package.open(
    filesOf(
      await packageOf(graphs, (manifest) => {
        Object.assign(manifest, recipeOf());
        change(manifest);
      }),
    ),
  );
}

async function begun(from: Package): Promise<Session> {
  const file = npzOf({
    images: { descr: "<f4", shape: [1, 1, 1, 1], data: floats(-1) },
    labels: { descr: "<U1", shape: [1], data: characters(1, "a") },
  });
  const split = await ownSplit({ kind: "arrays", file: new File([file], "rows.npz") }, from);
  return Session.begin(from, planOf(from.manifest), split, 0);
}

test("a bottom of which one graph is none gives back the others", async () => {
  await expect(Bottom.load(await opened(Uint8Array.of(1, 2, 3)))).rejects.toThrow("this runtime can't load it");
  expect(made()).toBe(1);
});

test("a session whose rehearsal fails gives back all graphs, however often it is asked for", async () => {
  const from = await opened(graphOf("Sqrt", "hidden"));
  for (let count = 0; count < 3; count += 1) await expect(begun(from)).rejects.toThrow("what is not finite");
  expect(made()).toBe(6);
});

test("so does one whose head is none", async () => {
  const head = { file: "weights.safetensors", weights: [], read: "first", sizes: [1], tensors: [] };
  const from = await opened(graphOf("Identity", "hidden"), (manifest) => {
    Object.assign(manifest["graphs"] as object, { head });
    Object.assign((manifest["config"] as Record<string, object>)["model"] as object, { head: 0 });
  });
  await expect(begun(from)).rejects.toThrow(PackageError);
  expect(made()).toBe(2);
});

test("a state is gone on from; one with an array that nothing has is not", async () => {
  const session = await begun(await opened(graphOf("Identity", "hidden")));
  const { arrays, values } = session.state();
  const state = { arrays, values, lineage: "", rounds: 1, about: "", position: 0, link: values["link"] };
  session.loadState(state);
  const more = new Map([...arrays, ["link.up.nobody's", tensor("float32", [1], Float32Array.of(1))] as const]);
  expect(() => session.loadState({ ...state, arrays: more })).toThrow('array "link.up.nobody\'s" is there, and nothing');
  await session.close();
});
