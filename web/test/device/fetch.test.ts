import "fake-indexeddb/auto";

import { IDBFactory } from "fake-indexeddb";
import { beforeEach, describe, expect, test } from "vitest";

import { PeerError } from "../../src/core/errors";
import { type Listed, type Listing, Packages, bytesOf, readListing } from "../../src/device/fetch";
import { PIECE } from "../../src/device/line";
import { sha256 } from "../../src/device/package";
import { Store } from "../../src/device/store";
import { States } from "../../src/device/state";
import { tensor } from "../../src/core/tensor";

const TEXT = new TextEncoder();
let store: Store;

beforeEach(async () => {
  globalThis.indexedDB = new IDBFactory();
  store = await Store.open();
});

type Named = Record<string, Uint8Array<ArrayBuffer>>;
const LARGE = new Uint8Array(2 * PIECE + 5).map((_, place) => place % 251);
const FILES: Named = { "manifest.json": TEXT.encode("{}"), "weights.safetensors": LARGE, empty: new Uint8Array() };

async function listingOf(named: Named): Promise<Listing> {
  const files: Listed[] = [];
  for (const [name, data] of Object.entries(named))
    files.push({ name, bytes: data.length, sha256: await sha256(data) });
  const lines = files.map((file) => `${file.name} ${file.sha256}\n`).sort();
  return { digest: await sha256(TEXT.encode(lines.join(""))), files };
}

/** A gateway that counts what it is asked for, and is gone after so many pieces. */
function gateway(named: Named, goneAfter = Infinity) {
  const asked: [string, number][] = [];
  return {
    asked,
    ask: async (name: string, offset: number): Promise<Uint8Array> => {
      if (asked.length >= goneAfter) throw new Error("gone");
      asked.push([name, offset]);
      return (named[name] as Uint8Array).slice(offset, offset + PIECE);
    },
  };
}

describe("a package", () => {
  test("comes once: who comes again fetches nothing", async () => {
    const listing = await listingOf(FILES);
    const [first, told] = [gateway(FILES), [] as number[]];
    const files = await new Packages(store).fetch(listing, first.ask, (there) => told.push(there));
    expect(first.asked).toEqual([
      ["manifest.json", 0],
      ["weights.safetensors", 0],
      ["weights.safetensors", PIECE],
      ["weights.safetensors", 2 * PIECE],
    ]);
    expect(told.at(-1)).toBe(bytesOf(listing));
    expect(await sha256(await files.read("weights.safetensors"))).toBe(await sha256(LARGE));
    const [again, second] = [new Packages(await Store.open()), gateway(FILES)];
    expect(await again.digest()).toBe(listing.digest);
    await again.fetch(listing, second.ask, () => {});
    expect(second.asked).toEqual([]);
  });

  test("goes on from where it was cut off", async () => {
    const listing = await listingOf(FILES);
    await expect(new Packages(store).fetch(listing, gateway(FILES, 2).ask, () => {})).rejects.toThrow("gone");
    expect(await new Packages(store).digest()).toBe("");
    const second = gateway(FILES);
    await new Packages(store).fetch(listing, second.ask, () => {});
    expect(second.asked).toEqual([
      ["weights.safetensors", PIECE],
      ["weights.safetensors", 2 * PIECE],
    ]);
  });

  test("shares files with the one before, of which nothing else is kept", async () => {
    await new Packages(store).fetch(await listingOf(FILES), gateway(FILES).ask, () => {});
    const other = { ...FILES, "manifest.json": TEXT.encode("[]") };
    const second = gateway(other);
    await new Packages(store).fetch(await listingOf(other), second.ask, () => {});
    expect(second.asked).toEqual([["manifest.json", 0]]);
    const digests = new Set((await store.keys("pieces")).map(([digest]) => digest));
    expect(digests).toEqual(new Set([await sha256(LARGE), await sha256(other["manifest.json"])]));
  });

  test("that comes to another digest is fetched anew the next time", async () => {
    const [listing, spoiled] = [await listingOf(FILES), LARGE.slice()];
    spoiled[PIECE + 1] = 0;
    const liar = gateway({ ...FILES, "weights.safetensors": spoiled });
    const fetching = new Packages(store).fetch(listing, liar.ask, () => {});
    await expect(fetching).rejects.toThrow("weights.safetensors came to another digest than listed");
    const second = gateway(FILES);
    await new Packages(store).fetch(listing, second.ask, () => {});
    expect(second.asked.filter(([name]) => name === "weights.safetensors")).toHaveLength(3);
  });

  test.each([
    ["longer than a piece", PIECE + 1],
    ["empty", 0],
    ["longer than the file", 3],
  ])("whose piece is %s is refused", async (_, bytes) => {
    const listing = await listingOf(FILES);
    const lies = async (): Promise<Uint8Array> => new Uint8Array(bytes);
    await expect(new Packages(store).fetch(listing, lies, () => {})).rejects.toThrow(PeerError);
    expect(await store.keys("pieces", listing.files[0]?.sha256 ?? "")).toEqual([]);
  });

  test("whose pieces were damaged in the browser is fetched anew", async () => {
    const listing = await listingOf(FILES);
    await new Packages(store).fetch(listing, gateway(FILES).ask, () => {});
    await store.change("pieces", [[[await sha256(LARGE), PIECE], new Uint8Array(PIECE)]], []);
    const second = gateway(FILES);
    await new Packages(store).fetch(listing, second.ask, () => {});
    expect(second.asked).toHaveLength(3);
  });
});

describe("a listing", () => {
  const DIGEST = "0".repeat(64);
  const file = { name: "a", bytes: 1, sha256: DIGEST };
  const cases: [string, unknown, string][] = [
    ["is a list", [], "digest and files are due"],
    ["has another key", { digest: DIGEST, files: [file], more: 1 }, "digest and files are due"],
    ["has no files", { digest: DIGEST, files: [] }, "1 to 4097 are allowed"],
    ["has too many", { digest: DIGEST, files: Array(4098).fill(file) }, "1 to 4097 are allowed"],
    ["names a path", { digest: DIGEST, files: [{ ...file, name: "../x" }] }, "package.files.0.name"],
    ["names a part", { digest: DIGEST, files: [{ ...file, name: "x.PART" }] }, "package.files.0.name"],
    ["has half a byte", { digest: DIGEST, files: [{ ...file, bytes: 0.5 }] }, "package.files.0.bytes"],
    [
      "has more bytes than there are",
      { digest: DIGEST, files: [{ ...file, bytes: 2 ** 36 + 1 }] },
      "package.files.0.bytes",
    ],
    [
      "has more in all",
      { digest: DIGEST, files: ["a", "b"].map((name) => ({ ...file, name, bytes: 2 ** 36 })) },
      "at most",
    ],
    ["has one file twice", { digest: DIGEST, files: [file, { ...file, name: "A" }] }, "two have one name"],
    ["has no digest", { digest: "x", files: [file] }, "package.digest"],
    ["has another digest", { digest: DIGEST, files: [file] }, "it is not that of its files"],
  ];
  test.each(cases)("that %s is refused", async (_, told, said) => {
    await expect(readListing(told)).rejects.toThrow(said);
  });

  test("that is right is read", async () => {
    const listing = await listingOf(FILES);
    expect(await readListing(JSON.parse(JSON.stringify(listing)))).toEqual(listing);
  });
});

describe("a state", () => {
  const arrays = (value: number) => new Map([["theta.a", tensor("float32", [2], Float32Array.of(value, 1))]]);
  const values = (rounds: number) => ({ lineage: "l", rounds, about: "x", position: rounds, link: { a: [1, 2] } });
  const states = () => new States(store, "owner", "run", 0);

  test("comes back as it was; the last two are kept, and none of later rounds", async () => {
    for (const rounds of [1, 2, 10, 3]) await states().save(rounds, { arrays: arrays(rounds), values: values(rounds) });
    expect(await states().rounds()).toEqual([2, 3]);
    const found = await states().read(3);
    expect(found).toMatchObject({ lineage: "l", rounds: 3, about: "x", position: 3, link: { a: [1, 2] } });
    expect(found.arrays).toEqual(arrays(3));
    for (const other of [
      new States(store, "other", "run", 0),
      new States(store, "owner", "other", 0),
      new States(store, "owner", "run", 1),
    ]) {
      expect(await other.rounds()).toEqual([]);
    }
  });

  test("that was changed is refused", async () => {
    await states().save(1, { arrays: arrays(1), values: values(1) });
    const key = ["owner", "run", "0", 1];
    const kept = (await store.get("states", key)) as { arrays: object[]; values: string };
    const spoiled: [object, string][] = [
      [{ ...kept, values: kept.values.replace('"position":1', '"position":2') }, "it is damaged"],
      [{ ...kept, arrays: [{ ...kept.arrays[0], data: Float32Array.of(1, 2) }] }, "it is damaged"],
      [{ ...kept, arrays: [{ ...kept.arrays[0], data: Float32Array.of(1) }] }, "an array is cut off"],
      [{ ...kept, arrays: [{ ...kept.arrays[0], data: Float32Array.of(NaN, 1) }] }, "a value is not finite"],
      [{ ...kept, arrays: [] }, "it is damaged"],
      [{}, "it is none"],
    ];
    for (const [other, said] of spoiled) {
      await store.change("states", [[key, other]], []);
      await expect(states().read(1)).rejects.toThrow(`the state behind round 1 can't be read: ${said}`);
    }
  });

  test("that can't be written leaves the one before", async () => {
    await states().save(1, { arrays: arrays(1), values: values(1) });
    const full = states().save(2, {
      arrays: new Map([["a", { dtype: "float32", shape: [1], data: (() => 0) as never }]]),
      values: {},
    });
    await expect(full).rejects.toThrow();
    expect(await states().rounds()).toEqual([1]);
  });
});
