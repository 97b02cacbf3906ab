import "fake-indexeddb/auto";

import type { AddressInfo } from "node:net";

import { IDBFactory } from "fake-indexeddb";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { WebSocket, WebSocketServer } from "ws";

import { DeviceError } from "../../src/core/errors";
import type { Event, State } from "../../src/device/events";
import { Joining, type Terms } from "../../src/device/join";
import { unpacked } from "../../src/device/line";
import { sha256 } from "../../src/device/package";
import { Store } from "../../src/device/store";
import { type Named, characters, floats, npzOf, packageOf } from "./made";

const TOKEN = `hb1.00000000.${"a".repeat(43)}`;
let server: WebSocketServer;
let events: Event[];
let visits: WebSocket[];

/** A page asks for wss alone; here there is no certificate. */
class Plain extends WebSocket {
  constructor(url: string, protocols: string[]) {
    super(url.replace("wss:", "ws:"), protocols);
  }
}

beforeEach(async () => {
  Object.assign(globalThis, { WebSocket: Plain, indexedDB: new IDBFactory() });
  [events, visits] = [[], []];
  server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "halfback" });
  await new Promise((resolve) => server.once("listening", resolve));
});

afterEach(() => {
  for (const each of server.clients) each.terminate();
  server.close();
});

function packed(header: unknown, body: Uint8Array = new Uint8Array()): Buffer {
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  return Buffer.concat([length, text, body]);
}

/** A gateway that hands out these files; `welcome` may say something else. */
async function serves(named: Named, welcome: (told: Record<string, unknown>) => void = () => {}): Promise<void> {
  const files: Record<string, unknown>[] = [];
  for (const [name, data] of Object.entries(named)) files.push({ name, bytes: data.length, sha256: await sha256(data) });
  const lines = files.map((file) => `${file["name"]} ${file["sha256"]}\n`).sort();
  const digest = await sha256(new TextEncoder().encode(lines.join("")));
  server.on("connection", (line) => {
    visits.push(line);
    line.on("message", (message) => {
      const asked = JSON.parse(unpacked(new Uint8Array(message as Buffer)).header) as Record<string, unknown>;
      if (asked["kind"] === "hello") {
        const told: Record<string, unknown> = { kind: "welcome", protocol: 1, place: 0, package: { digest, files } };
        welcome(told);
        line.send(packed(told));
      }
      if (asked["kind"] === "piece") line.send(packed(asked, (named[String(asked["file"])] as Uint8Array).slice()));
    });
  });
}

async function joining(changes: Partial<Terms> = {}): Promise<Joining> {
  const url = `wss://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const rows = { kind: "arrays", file: new File([], "rows.npz") } as const;
  const terms: Terms = { url, token: TOKEN, rows, keepLabels: false, ...changes };
  return new Joining(terms, await Store.open(), (event) => events.push(event));
}

function states(): State[] {
  return events.flatMap((event) => (event.type === "state" ? [event.state] : []));
}

const details = (): string => events.flatMap((event) => (event.type === "state" ? [event.detail ?? ""] : [])).join("\n");

test("it takes a rest, goes on, and leaves", async () => {
  await serves({});
  server.on("connection", (line) => line.removeAllListeners("message")); // it never says welcome
  const device = await joining();
  const work = device.work();
  await vi.waitFor(() => expect(visits).toHaveLength(1), 5000);
  device.pause(true);
  await vi.waitFor(() => expect(states()).toContain("paused"), 5000);
  device.pause(false);
  await vi.waitFor(() => expect(visits).toHaveLength(2), 5000);
  device.leave();
  await work;
  expect(states()).toEqual(["connecting", "paused", "connecting", "left"]);
});

test("it comes again, later each time, and a wrong package is one line", async () => {
  await serves(await packageOf({}, (manifest) => Object.assign(manifest, { format: 2 })));
  const device = await joining();
  const work = device.work();
  await vi.waitFor(() => expect(visits).toHaveLength(2), 8000);
  device.leave();
  await work;
  expect(details()).toContain("not taking part: manifest.json: its format is 2; this device reads 1");
  expect(details().split("\n").filter(Boolean).every((line) => line.endsWith(" s"))).toBe(true);
}, 15_000);

test("rows that can't be trained on end it: coming again would change nothing", async () => {
  await serves(
    await packageOf({}, (manifest) =>
      Object.assign(manifest, { task: { inputs: "images", label_names: ["a"], images: { channels: 1, size: [2, 2] } } }),
    ),
  );
  await expect((await joining()).work()).rejects.toThrow("file \"rows.npz\" cannot be read");
  expect(visits).toHaveLength(1);
});

test("what is wrong with rows is said on the page alone: the gateway hears no word of it", async () => {
  await serves(
    await packageOf({}, (manifest) =>
      Object.assign(manifest, { task: { inputs: "images", label_names: ["a"], images: { channels: 1, size: [1, 1] } } }),
    ),
  );
  const reasons: string[] = [];
  server.on("connection", (line) => line.on("close", (code, reason) => reasons.push(`${code} ${reason.toString()}`)));
  const file = npzOf({
    images: { descr: "<f4", shape: [1, 1, 1, 1], data: floats(1) },
    labels: { descr: "<U6", shape: [1], data: characters(6, "SECRET") },
  });
  const device = await joining({ rows: { kind: "arrays", file: new File([file], "SECRET.npz") } });
  await expect(device.work()).rejects.toThrow('"SECRET"');
  await vi.waitFor(() => expect(reasons).toEqual(["1000 "]), 3000);
});

test.each([
  [{ protocol: 2 }, "server: welcome.protocol: 2 came, 1 is allowed"],
  [{ place: -1 }, "server: welcome.place: -1 came, 0 or more is allowed"],
  [{ more: 1 }, "kind, package, place, protocol are due"],
  [{ package: { digest: "x", files: [] } }, "package.files: 1 to 4097 are allowed"],
])("a welcome that is wrong ends the connection", async (changes, said) => {
  await serves(await packageOf(), (told) => Object.assign(told, changes));
  const device = await joining();
  const work = device.work();
  await vi.waitFor(() => expect(details()).toContain(said), 5000);
  device.leave();
  await work;
});

test.each([
  [{ token: "hb1.0.0" }, "this is no token"],
  [{ url: "http://there" }, "no gateway's address"],
])("what can't work is said at once", async (changes, said) => {
  await expect(joining(changes)).rejects.toThrow(DeviceError);
  await expect(joining(changes)).rejects.toThrow(said);
});
