/** Tells a page how a device gets on: what its recipe is, steps, bytes, memory, and how the model does. */

import type { Frame } from "../core/frames";
import { peakBytes } from "./memory";
import type { Bytes, State, Tell } from "./events";
import { at, isWhole } from "./facts";
import type { Package } from "./package";
import type { Session } from "./session";

const OFTEN = 250; // ms between two that say how many bytes went

export class Progress {
  private shown: State = "connecting";
  private told = 0;
  private from: Package | null = null;
  private steps = 0;
  private isLast = false;
  private evaluated = -1; // the step behind which the last evaluation was that the page knows

  constructor(private readonly tell: Tell) {}

  /** A package was opened, for which this device has so many rows. */
  package(from: Package, rows: number): void {
    const config = from.manifest["config"];
    this.from = from;
    this.steps = at(config, "steps", 0) as number;
    const hasHead = (at(config, "model.head", null) as number | null) !== null;
    const hasExact = from.manifest.exact.length > 0;
    const labels = hasHead ? [] : ["labels"];
    const values = from.manifest.theta.reduce(
      (sum, { shape }) => sum + shape.reduce((size, each) => size * each, 1),
      0,
    );
    this.tell({
      type: "recipe",
      method: String(at(config, "algorithm.name")),
      model: String(at(config, "model.name")),
      cut: from.manifest.model.cut,
      trained: values,
      rows,
      steps: this.steps,
      batch: at(config, "batch_size", 0) as number,
      leaves: [
        "activations",
        ...labels,
        "slopes",
        ...(hasExact ? ["exact"] : []),
        ...(hasHead ? ["gradient", "weights"] : []),
      ],
      stays: [from.manifest.model.kind === "image" ? "images" : "texts", ...(hasHead ? ["labels"] : [])],
    });
  }

  /** Whether this device has done its part of the run's last step. */
  get isFinished(): boolean {
    return this.shown === "finished";
  }

  /** It is in this state, which the page has been told. */
  state(state: State): void {
    this.shown = state;
  }

  /** A question came, of which this is the header. */
  asked(header: string): void {
    const told = quietly(header);
    const kind = at(told, "kind");
    if (kind === "open" || kind === "say") this.turn("training");
    if (kind === "prepare") this.turn("preparing");
    const [round, first, count] = [at(told, "round"), at(told, "first"), at(told, "steps")];
    if (kind === "open" && isWhole(round) && isWhole(first) && isWhole(count)) {
      this.isLast = first + count >= this.steps;
      this.tell({ type: "step", round, step: first, steps: this.steps });
    }
    if (kind === "open" || kind === "save") this.evaluation(at(told, "evaluation", null));
  }

  private evaluation(told: unknown): void {
    const [step, loss, accuracy] = [at(told, "step"), at(told, "loss"), at(told, "accuracy")];
    if (!isWhole(step) || step === this.evaluated) return;
    this.evaluated = step;
    const numbers = { ...(typeof loss === "number" && { loss }), ...(typeof accuracy === "number" && { accuracy }) };
    this.tell({ type: "evaluation", step, ...numbers });
  }

  /** It was replied to with this header. */
  replied(header: string, session: Session | null): void {
    const kind = at(quietly(header), "kind");
    if (kind === "done" || kind === "ready") this.turn(kind === "done" && this.isLast ? "finished" : "waiting");
    const [now, isRest] = [Date.now(), kind === "done" || kind === "refused"];
    if (session === null || (now - this.told < OFTEN && !isRest)) return;
    this.told = now;
    const { up, down } = session.tally;
    this.tell({ type: "bytes", up: copied(up), down: copied(down) });
    this.tell({ type: "memory", bytes: peakBytes(this.from?.bytes ?? 0) });
  }

  private turn(state: State): void {
    if (state !== this.shown) this.tell({ type: "state", state });
    this.shown = state;
  }
}

function copied(bytes: Bytes): Bytes {
  return { ...bytes };
}

function quietly(header: Frame["header"]): unknown {
  try {
    return JSON.parse(header);
  } catch {
    return null;
  }
}
