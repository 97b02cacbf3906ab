/**
 * What a page keeps in its browser: pieces of packages' files by the file's digest, and states.
 *
 * It is one database of this origin (IndexedDB). A change is one transaction, so it is there as a whole or not at all.
 */

import { DeviceError } from "../core/errors";

const NAME = "halfback-device";
const VERSION = 1;
const STORES = ["pieces", "packages", "states"] as const;
export type StoreName = (typeof STORES)[number];

/** The browser gives this origin no more room. */
export class NoRoom extends DeviceError {}

/** The database of this origin. */
export class Store {
  private constructor(private readonly database: IDBDatabase) {}

  /** Opens it; DeviceError where this browser keeps nothing, as in some private windows. */
  static async open(): Promise<Store> {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const name of STORES) request.result.createObjectStore(name);
    };
    const database = await settled(request, "this browser keeps nothing for pages");
    database.onversionchange = () => database.close();
    return new Store(database);
  }

  /** What is under a key; undefined for nothing. */
  async get(store: StoreName, key: IDBValidKey): Promise<unknown> {
    return settled(this.database.transaction(store).objectStore(store).get(key), "what was kept can't be read");
  }

  /** The keys that begin with these, in order; all of them for none. */
  async keys(store: StoreName, ...begin: IDBValidKey[]): Promise<IDBValidKey[][]> {
    const range = IDBKeyRange.bound(begin, [...begin, []]); // a list is behind numbers and texts
    const found = this.database.transaction(store).objectStore(store).getAllKeys(range);
    return settled(found, "what was kept can't be read") as Promise<IDBValidKey[][]>;
  }

  /**
   * Puts values under their keys and removes others, all of it or nothing.
   *
   * @throws NoRoom where there is none; DeviceError where it can't be kept for another reason.
   */
  async change(
    store: StoreName,
    put: readonly (readonly [IDBValidKey, unknown])[],
    remove: readonly IDBValidKey[],
  ): Promise<void> {
    const transaction = this.database.transaction(store, "readwrite", { durability: "strict" });
    const objects = transaction.objectStore(store);
    const done = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(refusal(transaction.error, "the browser can't keep it"));
    });
    for (const [key, value] of put) objects.put(value, key);
    for (const key of remove) objects.delete(key);
    await done;
  }

  /** Closes it. */
  close(): void {
    this.database.close();
  }
}

function settled<T>(request: IDBRequest<T>, what: string): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(refusal(request.error, what));
  });
}

function refusal(error: DOMException | null, what: string): DeviceError {
  const said = `${what}: ${error?.message || error?.name || "no reason is said"}`;
  return error?.name === "QuotaExceededError" ? new NoRoom(said) : new DeviceError(said);
}
