/** The page ends a worker that doesn't leave. */

import { Worker as Thread } from "node:worker_threads";

import { afterEach, beforeEach, expect, test, vi } from "vitest";

import type { Event } from "../../src/device/events";
import { Working } from "../../src/page/working";

let heard: Event[];
let exits: number;

/** A thread with a browser's worker's manners. */
class Own {
  onmessage: (event: { data: Event }) => void = () => {};
  onerror: (event: { message: string }) => void = () => {};
  private readonly thread: Thread;

  constructor(script: string) {
    this.thread = new Thread(script, { eval: true });
    this.thread.on("message", (data: Event) => this.onmessage({ data }));
    this.thread.on("error", (error: Error) => this.onerror(error));
    this.thread.on("exit", () => (exits += 1));
  }

  postMessage(order: unknown): void {
    this.thread.postMessage(order);
  }

  terminate(): void {
    void this.thread.terminate();
  }
}

function working(script: string): Working {
  return new Working(new Own(script) as unknown as Worker, (event) => heard.push(event));
}

beforeEach(() => {
  [heard, exits] = [[], 0];
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
});
afterEach(() => void vi.useRealTimers());

/** Looks until it holds, or for ever. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

const PARENT = "const { parentPort } = require('node:worker_threads');";

test("one that a regular expression has hung is ended", async () => {
  // Each further character doubles its time: it would take years.
  const device = working(`${PARENT} parentPort.postMessage({ type: "log", line: "hangs" });
    /^(a+)+$/.test("a".repeat(60) + "b");`);
  await until(() => heard.length === 1);
  device.tell({ type: "leave" });
  vi.advanceTimersByTime(4999);
  expect(heard).toHaveLength(1);
  vi.advanceTimersByTime(1);
  expect(heard[1]).toEqual({ type: "state", state: "left" });
  await until(() => exits === 1);
});

test("one that leaves has its own word", async () => {
  const device = working(`${PARENT} parentPort.on("message", () => {
    parentPort.postMessage({ type: "state", state: "left", detail: "gone" });
  });`);
  device.tell({ type: "leave" });
  await until(() => heard.length === 1);
  vi.advanceTimersByTime(60_000);
  expect(heard).toEqual([{ type: "state", state: "left", detail: "gone" }]);
  device.end();
  await until(() => exits === 1);
});

test("one that is told to rest is not ended, and one that fails says so", async () => {
  const device = working(`${PARENT} parentPort.on("message", () => { throw new Error("no room"); });`);
  device.tell({ type: "pause" });
  vi.advanceTimersByTime(60_000);
  await until(() => heard.length === 1);
  expect(heard).toEqual([{ type: "state", state: "failed", detail: "no room" }]);
});
