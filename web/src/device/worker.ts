/** The Web Worker in which a page's device runs: what the page orders, and what it is told (events.ts). */

import mjs from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import { DeviceError } from "../core/errors";
import type { Event, Order, State } from "./events";
import { Joining, type Terms } from "./join";
import { noteMemories } from "./memory";
import { setUp } from "./runtime";
import { Store } from "./store";

const MOST_THREADS = 4; // of which more gain little where a product is small
const page = self as unknown as {
  postMessage(event: Event): void;
  onmessage: ((event: MessageEvent<Order>) => void) | null;
};

let joining: Joining | null = null;
let isBusy = false;

noteMemories();
const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
setUp(threads, { mjs: new URL(mjs, self.location.href).href, wasm: new URL(wasm, self.location.href).href });

page.onmessage = ({ data: order }) => {
  if (order.type === "join") void join(order);
  else if (order.type === "leave") joining?.leave();
  else joining?.pause(order.type === "pause");
};

async function join(terms: Terms): Promise<void> {
  if (isBusy) return;
  isBusy = true;
  try {
    const owner = terms.token.split(".")[1] ?? "";
    await alone(`halfback-device ${owner}`, async () => {
      const store = await Store.open();
      try {
        joining = new Joining(terms, store, (event) => page.postMessage(event));
        await joining.work();
      } finally {
        store.close();
      }
    });
  } catch (error) {
    told(
      "failed",
      error instanceof DeviceError ? error.message : `${(error as Error).name}: ${(error as Error).message}`,
    );
  } finally {
    [joining, isBusy] = [null, false];
  }
}

/** Works while no other tab does with the same token. */
async function alone(name: string, work: () => Promise<void>): Promise<void> {
  await navigator.locks.request(name, { ifAvailable: true }, async (lock) => {
    if (lock === null) throw new DeviceError("another tab of this browser takes part with this link");
    await work();
  });
}

function told(state: State, detail: string): void {
  page.postMessage({ type: "state", state, detail });
}
