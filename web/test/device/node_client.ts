/**
 * A page's device under Node, for tests and benchmarks against the Python side: the same modules, with a WebSocket and
 * a database that a browser would have.
 *
 * Its one argument is JSON: `url`, `token`, `rows` ({kind, path, text, pair, label}). Each line on standard input is
 * an order: `pause`, `resume`, `leave`, or `reopen`, which is a tab that is closed and opened again: what was in memory
 * is gone, what the browser kept is there. Each event is a line of JSON on standard output.
 */

import "fake-indexeddb/auto";

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { stdin, stdout } from "node:process";
import { createInterface } from "node:readline";

import { WebSocket } from "ws";

import { bytesOf } from "../../src/core/tensor";
import type { Device } from "../../src/device/client";
import type { Event, Rows } from "../../src/device/events";
import { Joining, type Terms } from "../../src/device/join";
import { noteMemories } from "../../src/device/memory";
import { sha256 } from "../../src/device/package";
import { Store } from "../../src/device/store";

interface Told {
  readonly kind: "table" | "arrays";
  readonly path: string;
  readonly text: string;
  readonly pair?: string;
  readonly label: string;
}

Object.assign(globalThis, { WebSocket });
noteMemories();

const { url, token, rows } = JSON.parse(process.argv[2] as string) as { url: string; token: string; rows: Told };
const terms: Terms = { url, token, rows: rowsOf(rows), keepLabels: false };
let joining: Joining | null = null;
let isReopened = false;

function rowsOf({ kind, path, ...columns }: Told): Rows {
  const file = new File([readFileSync(path)], basename(path));
  return kind === "arrays" ? { kind, file } : { kind, file, ...columns };
}

function tell(event: Event): void {
  stdout.write(`${JSON.stringify(event)}\n`);
}

createInterface({ input: stdin }).on("line", (order) => {
  isReopened = order === "reopen";
  if (order === "leave" || isReopened) joining?.leave();
  else joining?.pause(order === "pause");
});

try {
  do {
    isReopened = false;
    joining = new Joining(terms, await Store.open(), tell);
    await joining.work();
  } while (isReopened);
} catch (error) {
  tell({ type: "state", state: "failed", detail: String(error) });
}
await tellTheta();
stdin.destroy();

/** Where θ is, and a digest of each of its parameters. */
async function tellTheta(): Promise<void> {
  const { theta } = (joining as unknown as { device: { device: Device } | null }).device?.device.session?.party ?? {};
  const digests: Record<string, string> = {};
  for (const [name, values] of theta?.parameters ?? []) digests[name] = await sha256(new Uint8Array(bytesOf(values)));
  stdout.write(`${JSON.stringify({ type: "theta", position: theta?.position ?? -1, digests })}\n`);
}
