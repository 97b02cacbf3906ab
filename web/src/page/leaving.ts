/** What leaves this machine and what never does, with the bytes of each as they come and go. */

import type { Bytes, Facts } from "../device/events";
import { byId, bytes, made } from "./dom";

/** What each kind of value is, in words for who owns the rows. */
const ABOUT: Readonly<Record<string, string>> = {
  activations: "what the first part of the model makes of your rows. A server that wants to can read much of them back",
  labels: "the class of each row",
  lengths: "how many tokens each text has",
  sample_ids: "a number for each row, the same whenever it comes again",
  slopes: "a few numbers a step: how the loss changes as the model does",
  gradient: "of the loss by what the server's part made, where the last layer runs here",
  exact: "gradients of the last blocks that run here",
  head: "gradients of the last layer, which runs here",
  losses: "the loss of a batch, one number",
  weights: "values that were trained",
  steps: "where this device is in the run",
  caches: "digests of what both sides remember",
  masks: "keys and shares of a sum in secret",
  framing: "what says where a message begins and ends",
};
/** Before a run has said what it is. */
const LEAVES = ["activations", "labels", "slopes"];
const STAYS = ["texts", "images", "names"];
const KEPT: Readonly<Record<string, string>> = {
  texts: "your texts",
  images: "your images",
  labels: "the classes of your rows",
  names: "the names of your files and columns",
};

interface Line {
  readonly size: HTMLElement;
  readonly item: HTMLElement;
}

/** The panel beside the form and the run. */
export class Leaving {
  private readonly lines = new Map<string, Line>();
  private keeps = false;

  constructor(
    private readonly leaves = byId("leaves"),
    private readonly stays = byId("stays"),
    private readonly totals = byId("totals"),
  ) {
    this.begin(LEAVES, STAYS);
  }

  /** Whether the owner lets no label go. */
  keepLabels(keeps: boolean): void {
    this.keeps = keeps;
    this.lines.get("labels")?.item.toggleAttribute("hidden", keeps);
  }

  /** What a run's recipe says. */
  recipe(facts: Facts): void {
    this.begin(facts.leaves, [...facts.stays, "names"]);
  }

  /** Bytes so far, by what was sent and received. */
  count(up: Bytes, down: Bytes): void {
    for (const [kind, size] of Object.entries(up)) {
      if (!this.lines.has(kind) && size > 0) this.line(kind);
      const line = this.lines.get(kind);
      if (line !== undefined) line.size.textContent = bytes(size);
    }
    this.totals.textContent = `Sent ${bytes(sum(up))}, received ${bytes(sum(down))} in all.`;
  }

  private begin(leaves: readonly string[], stays: readonly string[]): void {
    this.lines.clear();
    this.leaves.replaceChildren();
    for (const kind of leaves) this.line(kind);
    this.stays.replaceChildren(...stays.map((each) => made("li", KEPT[each] ?? each)));
    this.totals.textContent = "";
    this.keepLabels(this.keeps);
  }

  private line(kind: string): void {
    const size = made("output", "", "size");
    size.setAttribute("aria-live", "off");
    const name = made("b", kind.replaceAll("_", " "));
    const item = made("li", [made("span", [name, new Text(ABOUT[kind] ? `: ${ABOUT[kind]}` : "")]), size]);
    this.lines.set(kind, { size, item });
    this.leaves.append(item);
  }
}

/** Bytes of all kinds. */
export function sum(kinds: Bytes): number {
  return Object.values(kinds).reduce((total, size) => total + size, 0);
}
