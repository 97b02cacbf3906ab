/**
 * Fetches a device package from a gateway: in pieces, on from where it was cut off, and kept by digest.
 *
 * The gateway's listing says which files there are; each has to come to its digest, and all of them to the listing's.
 * A file that is kept already, of this package or of another, is not fetched again.
 */

import { DeviceError, PeerError } from "../core/errors";
import { isTree, isWhole, shown } from "./facts";
import { PIECE } from "./line";
import { type Files, sha256 } from "./package";
import type { Store } from "./store";

const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$/;
const DIGEST = /^[0-9a-f]{64}$/;
const MOST_FILES = 4097; // a package's, and its manifest
const MOST_BYTES = 2 ** 36; // of all files together
const NEWEST = "newest"; // the key of what the newest package is

/** What a file of the gateway's package has from an offset on: a piece of it, one byte or more. */
export type Ask = (file: string, offset: number) => Promise<Uint8Array>;

/** A file of a package. */
export interface Listed {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

/** The files of a package, and the digest of all of them. */
export interface Listing {
  readonly digest: string;
  readonly files: readonly Listed[];
}

/** Bytes of all files. */
export function bytesOf(listing: Listing): number {
  return listing.files.reduce((sum, file) => sum + file.bytes, 0);
}

/** A listing from what a gateway says; PeerError names what is wrong. */
export async function readListing(told: unknown): Promise<Listing> {
  if (!hasKeys(told, "digest", "files")) throw new PeerError("package", "digest and files are due");
  const entries = told["files"];
  if (!Array.isArray(entries) || !entries.length || entries.length > MOST_FILES) {
    throw new PeerError("package.files", `1 to ${MOST_FILES} are allowed`);
  }
  const files = entries.map((entry, place) => listed(entry, `package.files.${place}`));
  // The native device's disk may not tell a from A, and two such names would be one file there.
  if (new Set(files.map((file) => file.name.toLowerCase())).size < files.length) {
    throw new PeerError("package.files", "two have one name");
  }
  const listing = { digest: digestOf(told["digest"], "package.digest"), files };
  if (bytesOf(listing) > MOST_BYTES) {
    throw new PeerError("package.files", `${bytesOf(listing)} bytes`, `at most ${MOST_BYTES} are allowed`);
  }
  const lines = files.map((file) => `${file.name} ${file.sha256}\n`).sort();
  if ((await sha256(new TextEncoder().encode(lines.join("")))) !== listing.digest) {
    throw new PeerError("package.digest", "it is not that of its files");
  }
  return listing;
}

function listed(entry: unknown, where: string): Listed {
  if (!hasKeys(entry, "name", "bytes", "sha256")) throw new PeerError(where, "name, bytes and sha256 are due");
  const { name, bytes } = entry;
  if (typeof name !== "string" || !NAME.test(name) || /\.part$/i.test(name)) {
    throw new PeerError(`${where}.name`, shown(name), "a plain file's name is allowed");
  }
  if (!isWhole(bytes) || bytes > MOST_BYTES) {
    throw new PeerError(`${where}.bytes`, shown(bytes, 40), `0 to ${MOST_BYTES} are allowed`);
  }
  return { name, bytes, sha256: digestOf(entry["sha256"], `${where}.sha256`) };
}

function hasKeys(value: unknown, ...keys: string[]): value is Record<string, unknown> {
  return isTree(value) && Object.keys(value).sort().join() === [...keys].sort().join();
}

function digestOf(value: unknown, where: string): string {
  if (typeof value !== "string" || !DIGEST.test(value)) {
    throw new PeerError(where, shown(value, 80), "64 digits of base 16 are allowed");
  }
  return value;
}

/** Packages that are kept in the browser: files by their digest. */
export class Packages {
  constructor(private readonly store: Store) {}

  /** The digest of the newest package, if it is there; else nothing. */
  async digest(): Promise<string> {
    const kept = await this.store.get("packages", NEWEST);
    return typeof kept === "string" && DIGEST.test(kept) ? kept : "";
  }

  /**
   * The files of a package, which is fetched as far as it isn't there; those that only others had are removed.
   *
   * `tell` hears how many bytes are there, time and again.
   *
   * @throws PeerError where a file came to another digest; it is fetched anew the next time.
   * @throws DeviceError where the browser has no room. What has come until then stays.
   */
  async fetch(listing: Listing, ask: Ask, tell: (there: number) => void): Promise<Files> {
    let before = 0;
    for (const file of listing.files) {
      await this.fetchFile(file, ask, (there) => tell(before + there));
      before += file.bytes;
      tell(before);
    }
    const ours = new Set(listing.files.map((file) => file.sha256));
    const others = (await this.store.keys("pieces")).filter(([digest]) => !ours.has(digest as string));
    await this.store.change("pieces", [], others);
    await this.store.change("packages", [[NEWEST, listing.digest]], []);
    const named = new Map(listing.files.map((file) => [file.name, file]));
    return {
      size: (name) => named.get(name)?.bytes,
      read: (name) => this.read(named.get(name) as Listed),
    };
  }

  private async fetchFile(file: Listed, ask: Ask, tell: (there: number) => void): Promise<void> {
    const keys = await this.store.keys("pieces", file.sha256);
    let there = await this.there(file, keys);
    if (there === file.bytes && (await this.isRight(file))) return;
    if (there >= file.bytes) {
      await this.store.change("pieces", [], keys);
      there = 0;
    }
    while (there < file.bytes) {
      tell(there);
      const piece = await ask(file.name, there);
      const most = Math.min(PIECE, file.bytes - there);
      if (!piece.length || piece.length > most) {
        throw new PeerError("piece", `${piece.length} bytes of ${file.name}`, `1 to ${most} are allowed`, "server");
      }
      await this.store.change("pieces", [[[file.sha256, there], piece]], []);
      there += piece.length;
    }
    if (!(await this.isRight(file))) {
      await this.store.change("pieces", [], await this.store.keys("pieces", file.sha256));
      throw new PeerError("piece", `${file.name} came to another digest than listed`, "", "server");
    }
  }

  /** How many bytes of a file are there, from its beginning on. */
  private async there(file: Listed, keys: readonly IDBValidKey[][]): Promise<number> {
    const last = keys.at(-1);
    if (last === undefined) return 0;
    const piece = await this.store.get("pieces", last);
    return piece instanceof Uint8Array ? (last[1] as number) + piece.length : file.bytes + 1;
  }

  private async isRight(file: Listed): Promise<boolean> {
    return (await sha256(await this.read(file))) === file.sha256;
  }

  /** All of a file that is there. */
  private async read(file: Listed): Promise<Uint8Array<ArrayBuffer>> {
    const data = new Uint8Array(file.bytes);
    for (const key of await this.store.keys("pieces", file.sha256)) {
      const piece = (await this.store.get("pieces", key)) as Uint8Array;
      if ((key[1] as number) + piece.length > data.length)
        throw new DeviceError(`${file.name}: what was kept is damaged`);
      data.set(piece, key[1] as number);
    }
    return data;
  }
}
