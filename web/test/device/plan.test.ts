import { expect, test } from "vitest";

import { PackageError } from "../../src/core/errors";
import { seedFor } from "../../src/core/seeds";
import { readManifest } from "../../src/device/manifest";
import { checkSecrets, planOf } from "../../src/device/plan";
import { packageOf, recipeOf } from "./made";

type Config = Record<string, unknown>;

/** The file of a manifest with this in its recipe; `text` may change what no JSON of JavaScript's can say. */
async function manifestOf(config: Config = {}, text = (told: string): string => told): Promise<Uint8Array> {
  const named = await packageOf({}, (manifest) => Object.assign(manifest, recipeOf(config)));
  return new TextEncoder().encode(text(new TextDecoder().decode(named["manifest.json"])));
}

const algorithm = { name: "ho_sfl" };
const REFUSED: [Config, string][] = [
  [{ privacy: { unit: "client" } }, "privacy.unit=client: a page clips rows"],
  [{ privacy: { where: "distributed" } }, "privacy.where=distributed: a page clips rows"],
  [{ secure: { sum: true } }, "secure.sum=true: a page has no keys for it"],
  [{ codecs: { activations_up: [{ name: "private", epsilon: 1 }] } }, "codecs.activations_up: codec private: a page has"],
  [{ algorithm: { ...algorithm, exact_blocks: 1 } }, "the manifest's exact names 0 parameters"],
  [{ seed: -1 }, "seed=-1: 0 to 9223372036854775807 are allowed"],
];

test.each(REFUSED)("a recipe with %o is refused in one line", async (config, said) => {
  const manifest = readManifest(await manifestOf(config));
  expect(() => planOf(manifest)).toThrow(PackageError);
  expect(() => planOf(manifest)).toThrow(said);
});

test.each(REFUSED.slice(0, 3))("so is a run's order with %o, whose package says otherwise", (config, said) => {
  expect(() => checkSecrets(config)).toThrow(said);
});

test("what is not asked for is not refused", async () => {
  const config = { privacy: { unit: "row", where: "server" }, secure: { sum: false } };
  expect(planOf(readManifest(await manifestOf(config))).method).toBe("ho_sfl");
});

test("a seed beyond 2^53 keeps its digits", async () => {
  const large = "9007199254740993"; // the first one that no float64 is
  const manifest = readManifest(await manifestOf({}, (told) => told.replace('"seed":0', `"seed":${large}`)));
  const { seed } = planOf(manifest);
  expect(seed).toBe(BigInt(large));
  expect(seedFor(seed, "order", 0)).not.toBe(seedFor(9007199254740992n, "order", 0));
});

test("a manifest that says a thing twice is refused", async () => {
  const file = await manifestOf({}, (told) => told.replace('"seed":0', '"seed":0,"seed":1'));
  expect(() => readManifest(file)).toThrow("manifest.json: it is not JSON: an object names a key twice");
});
