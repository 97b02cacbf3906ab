import "fake-indexeddb/auto";

import { IDBFactory } from "fake-indexeddb";
import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { tensor } from "../../src/core/tensor";
import { States } from "../../src/device/state";
import { NoRoom, Store } from "../../src/device/store";

const VALUES = { about: "", lineage: "", link: null, position: 0, rounds: 0 };
let store: Store;

beforeEach(async () => {
  Object.assign(globalThis, { indexedDB: new IDBFactory() });
  store = await Store.open();
});
afterEach(() => {
  vi.restoreAllMocks();
  store.close();
});

/** From now on the browser has room for so many states, and fails as browsers do: the transaction is aborted. */
function hasRoomFor(states: number): void {
  const { put } = IDBObjectStore.prototype;
  vi.spyOn(IDBObjectStore.prototype, "put").mockImplementation(function (this: IDBObjectStore, value, key) {
    const { transaction } = this;
    const request = put.call(this, value, key);
    this.count().onsuccess = ({ target }) => {
      if ((target as IDBRequest<number>).result <= states) return;
      Object.defineProperty(transaction, "error", { value: new DOMException("full", "QuotaExceededError") });
      transaction.abort();
    };
    return request;
  });
}

async function saved(owner: string, run: string, rounds: number, client = 0): Promise<States> {
  const states = new States(store, owner, run, client);
  const arrays = new Map([["a", tensor("float32", [1], Float32Array.of(rounds))]]);
  await states.save(rounds, { arrays, values: { ...VALUES, rounds } });
  return states;
}

test("the last two states of a run are kept, beside those of other runs while there is room", async () => {
  for (const run of ["old", "new"]) for (const rounds of [1, 2, 3]) await saved("o", run, rounds);
  expect(await store.keys("states")).toEqual(["new", "old"].flatMap((run) => [2, 3].map((at) => ["o", run, "0", at])));
});

test("where there is no room what this device has left of other runs goes, and nothing of another device's", async () => {
  await saved("other", "old", 1);
  for (const [run, client] of [["old", 0], ["older", 3], ["new", 0]] as const) await saved("o", run, 1, client);
  hasRoomFor(4);
  const states = await saved("o", "new", 2);
  expect(await store.keys("states")).toEqual([["o", "new", "0", 1], ["o", "new", "0", 2], ["other", "old", "0", 1]]);
  expect((await states.read(2)).arrays.get("a")?.data).toEqual(Float32Array.of(2));
});

test("where there is none all the same it is said, and the state of before is there", async () => {
  const states = await saved("o", "new", 1);
  hasRoomFor(1);
  const error: unknown = await saved("o", "new", 2).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(NoRoom);
  expect((error as Error).message).toBe("the browser can't keep it: full");
  expect(await states.rounds()).toEqual([1]);
});
