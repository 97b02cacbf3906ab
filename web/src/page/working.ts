/** The worker in which the device runs, as the page holds it. */

import type { Event, Order, State, Tell } from "../device/events";

const PATIENCE = 5000; // ms that a device has to leave by itself
const OVER: readonly State[] = ["failed", "left", "finished"];

/** A worker that hears orders and tells events, until it is ended. */
export class Working {
  private ending: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly worker: Worker,
    private readonly hear: Tell,
  ) {
    worker.onmessage = ({ data }: MessageEvent<Event>) => this.heard(data);
    worker.onerror = (event) => {
      const detail = event.message || "the device could not be started; load the page anew";
      this.heard({ type: "state", state: "failed", detail });
    };
  }

  /**
   * Tells it something. One that doesn't leave in a few seconds is ended: it hears orders between two replies alone, and
   * a package's tokenizer has regular expressions, of which one may never be through with a text.
   */
  tell(order: Order): void {
    this.worker.postMessage(order);
    if (order.type !== "leave") return;
    clearTimeout(this.ending);
    this.ending = setTimeout(() => {
      this.end();
      this.hear({ type: "state", state: "left" });
    }, PATIENCE);
  }

  /** Ends it, whatever it does. */
  end(): void {
    clearTimeout(this.ending);
    this.worker.terminate();
  }

  private heard(event: Event): void {
    if (event.type === "state" && OVER.includes(event.state)) clearTimeout(this.ending);
    this.hear(event);
  }
}
