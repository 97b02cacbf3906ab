/**
 * A page's device under Node without a connection: frames come on standard input, as on a stream (docs/protocol.md).
 *
 * Its arguments are the folder of a package and JSON of its rows. A frame with the header `theta` is replied to with
 * where θ is and its digests; one with `reopen` as by a tab that is opened again.
 */

import "fake-indexeddb/auto";

import { readFileSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { stdin, stdout } from "node:process";

import { bytesOf } from "../../src/core/tensor";
import { Device } from "../../src/device/client";
import { ownSplit } from "../../src/device/data";
import type { Rows } from "../../src/device/events";
import { type Files, Package, sha256 } from "../../src/device/package";
import { Store } from "../../src/device/store";

const [, , folder, told] = process.argv as [string, string, string, string];
const { kind, path, ...columns } = JSON.parse(told) as {
  kind: "table" | "arrays";
  path: string;
  text: string;
  label: string;
};

const files: Files = {
  size: (name) => statSync(join(folder, name), { throwIfNoEntry: false })?.size,
  read: async (name) => new Uint8Array(readFileSync(join(folder, name))),
};

async function device(): Promise<Device> {
  const from = await Package.open(files);
  const file = new File([readFileSync(path)], basename(path));
  const own: Rows = kind === "arrays" ? { kind, file } : { kind, file, ...columns };
  const log = (line: string): void => console.error(line);
  return new Device({
    from,
    rows: () => ownSplit(own, from),
    store: await Store.open(),
    owner: "0",
    keepLabels: false,
    log,
  });
}

async function theta(from: Device): Promise<string> {
  const party = from.session?.party;
  const digests: Record<string, string> = {};
  for (const [name, values] of party?.theta.parameters ?? [])
    digests[name] = await sha256(new Uint8Array(bytesOf(values)));
  return JSON.stringify({ position: party?.theta.position ?? -1, digests });
}

let held = Buffer.alloc(0);
let here = await device();
for await (const piece of stdin) {
  held = Buffer.concat([held, piece as Buffer]);
  while (held.length >= 8 && held.length >= 8 + held.readUInt32LE(0) + held.readUInt32LE(4)) {
    const [header, body] = [held.readUInt32LE(0), held.readUInt32LE(4)];
    const asked = {
      header: held.toString("utf8", 8, 8 + header),
      body: new Uint8Array(held.subarray(8 + header, 8 + header + body)),
    };
    held = held.subarray(8 + header + body);
    if (asked.header === "reopen") here = await device();
    const reply = ["theta", "reopen"].includes(asked.header)
      ? { header: await theta(here), body: new Uint8Array() }
      : await here.reply(asked);
    const lengths = Buffer.alloc(8);
    lengths.writeUInt32LE(Buffer.byteLength(reply.header), 0);
    lengths.writeUInt32LE(reply.body.length, 4);
    stdout.write(Buffer.concat([lengths, Buffer.from(reply.header), reply.body]));
  }
}
