/** Runs steps in a worker when it is told to, and says how long they took. */

import type { Figures } from "./step";
import type { Wanted } from "./worker";

declare global {
  interface Performance {
    measureUserAgentSpecificMemory(): Promise<{ readonly bytes: number }>;
  }
  interface Window {
    /** Figures, and what the browser says that the page takes of memory. */
    measured(wanted: Wanted): Promise<Figures & { page: number }>;
  }
}

window.measured = async (wanted) => {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  const figures = await new Promise<Figures>((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<Figures>) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(wanted);
  });
  const { bytes } = await performance.measureUserAgentSpecificMemory();
  worker.terminate();
  return { ...figures, page: bytes };
};
