import { expect, test } from "vitest";

import { type Npy, readNpz, textsOf } from "../../src/device/npz";
import { characters, floats, npzOf } from "./made";

test("texts and floats come as they were written", async () => {
  const file = npzOf({
    images: { descr: "<f4", shape: [2, 1], data: floats(0.5, -1) },
    labels: { descr: "<U2", shape: [2], data: characters(2, "a", "bc") },
  });
  const found = await readNpz(new Blob([file]));
  expect(found.get("images")).toMatchObject({ kind: "f4", shape: [2, 1], data: floats(0.5, -1) });
  expect(textsOf(found.get("labels") as Npy)).toEqual(["a", "bc"]);
});

test.each(["<U0", "|S0"])("values of %s, of which there may be any number in no bytes, are refused", async (descr) => {
  const file = npzOf({ labels: { descr, shape: [5], data: new Uint8Array() } });
  await expect(readNpz(new Blob([file]))).rejects.toThrow("values without a byte");
});

test("a text may be long", async () => {
  const long = "x".repeat(300_000);
  const file = npzOf({ labels: { descr: `<U${long.length}`, shape: [1], data: characters(long.length, long) } });
  expect(textsOf((await readNpz(new Blob([file]))).get("labels") as Npy)).toEqual([long]);
});
