/** The worker in which a page of this folder runs its steps. */

import mjs from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

import { noteMemories } from "../src/device/memory";
import type { Files } from "../src/device/package";
import { setUp } from "../src/device/runtime";
import { steps } from "./step";

export interface Wanted {
  /** Of the package's folder, and the bytes of each of its files. */
  readonly folder: string;
  readonly sizes: Record<string, number>;
  readonly count: number;
  readonly tokens: number;
  readonly threads: number;
}

noteMemories();

self.onmessage = async ({ data: { folder, sizes, count, tokens, threads } }: MessageEvent<Wanted>) => {
  setUp(threads, { mjs: new URL(mjs, self.location.href).href, wasm: new URL(wasm, self.location.href).href });
  const files: Files = {
    size: (name) => sizes[name],
    read: async (name) => new Uint8Array(await (await fetch(new URL(name, folder))).arrayBuffer()),
  };
  self.postMessage(await steps(files, count, tokens, () => 0));
};
