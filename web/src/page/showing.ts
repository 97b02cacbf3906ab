/** A run as it goes: how far it is, how well the model does, and what it costs this machine. */

import type { Event, Facts, State } from "../device/events";
import { Curve } from "./chart";
import { byId, bytes, counted, lasting } from "./dom";
import { type Leaving, sum } from "./leaving";

type Told<Kind extends Event["type"]> = Extract<Event, { type: Kind }>;

const STATES: Readonly<Record<State, string>> = {
  connecting: "connecting",
  fetching: "fetching the model",
  preparing: "preparing",
  waiting: "waiting for the others",
  training: "training",
  paused: "paused",
  left: "left",
  failed: "stopped",
  finished: "finished",
};
const OVER: ReadonlySet<State> = new Set(["left", "failed", "finished"]);
const LASTS = 3000; // milliseconds that the wait between two rounds may take until it is shown
const LINES = 200; // of what the device says

/** The part of the page that is there once somebody has joined. */
export class Showing {
  state: State | null = null;
  private began = 0; // when the first step was seen, and which it was
  private first = 0;
  private later = 0; // of a state that is shown if it lasts
  private readonly log: string[] = [];
  private readonly progress = byId<HTMLProgressElement>("progress");
  private readonly accuracy = new Curve(byId("accuracy"), { name: "Accuracy in percent", digits: 1, least: 0, most: 100 });
  private readonly loss = new Curve(byId("loss"), { name: "Loss", digits: 3, least: 0 });

  constructor(private readonly leaving: Leaving) {}

  /** Forgets an earlier run. */
  begin(): void {
    this.began = this.log.length = 0;
    this.accuracy.clear();
    this.loss.clear();
    for (const tile of byId("tiles").querySelectorAll("dd")) tile.textContent = "–";
    byId("log").textContent = byId("about").textContent = "";
    this.wait("Connecting …");
    byId("pause").hidden = byId("leave").hidden = false;
    byId("again").hidden = byId("tiles").hidden = byId("charts").hidden = true;
  }

  /** Shows what the device tells. */
  hear(event: Event): void {
    switch (event.type) {
      case "state":
        return this.turn(event);
      case "package":
        return this.fetched(event);
      case "recipe":
        return this.recipe(event);
      case "step":
        return this.step(event);
      case "bytes":
        this.leaving.count(event.up, event.down);
        byId("tile-sent").textContent = bytes(sum(event.up));
        byId("tile-received").textContent = bytes(sum(event.down));
        return;
      case "evaluation":
        return this.evaluated(event);
      case "memory":
        byId("tile-memory").textContent = bytes(event.bytes);
        return;
      case "log":
        this.note(event.line);
    }
  }

  private turn({ state, detail }: Told<"state">): void {
    const isBetween = state === "waiting" && this.state === "training"; // two rounds, nearly always
    if (detail) this.note(detail);
    clearTimeout(this.later);
    if (isBetween) this.later = window.setTimeout(() => this.name(state), LASTS);
    else this.name(state);
    if (isBetween) return;
    const pause = byId("pause");
    pause.textContent = state === "paused" ? "Resume" : "Pause";
    const isOver = OVER.has(state);
    pause.hidden = byId("leave").hidden = isOver;
    byId("again").hidden = !isOver;
    if (state === "finished") this.done();
    if (state === "failed" && !this.progress.hasAttribute("value")) this.progress.value = 0;
    if (state === "failed") byId("progress-text").textContent = "Stopped.";
    if (state === "finished" || state === "left") byId("progress-text").textContent = detail || ENDS[state];
    const isWaiting = state === "connecting" || state === "preparing" || (state === "waiting" && !this.began);
    if (isWaiting) this.wait(detail || WAITS[state]);
    if (state !== "training") this.began = 0;
  }

  private done(): void {
    this.progress.value = this.progress.max;
    byId("tile-step").textContent = `${counted(this.progress.max)} / ${counted(this.progress.max)}`;
  }

  /** Says the state, aloud where it is a new one. */
  private name(state: State): void {
    const said = byId("state");
    if (said.dataset["state"] !== state) said.textContent = STATES[state];
    said.dataset["state"] = state;
    this.state = state;
  }

  private wait(text: string): void {
    this.progress.removeAttribute("value");
    byId("progress-text").textContent = text;
  }

  private fetched({ done, total }: Told<"package">): void {
    [this.progress.max, this.progress.value] = [Math.max(total, 1), done];
    byId("progress-text").textContent = `The model: ${bytes(done)} of ${bytes(total)}. It is kept for the next time.`;
  }

  private recipe(facts: Facts): void {
    this.leaving.recipe(facts);
    this.accuracy.begin(facts.steps);
    this.loss.begin(facts.steps);
    const blocks = facts.cut === 1 ? "the first block runs" : `the first ${facts.cut} blocks run`;
    byId("about").textContent =
      `${facts.model} by ${facts.method}: ${blocks} here, with ${counted(facts.trained)} values that are trained; ` +
      `${counted(facts.rows)} rows, ${facts.batch} in a batch.`;
  }

  private step({ step, steps }: Told<"step">): void {
    byId("tiles").hidden = byId("charts").hidden = false;
    const now = performance.now();
    if (!this.began) [this.began, this.first] = [now, step];
    [this.progress.max, this.progress.value] = [Math.max(steps, 1), step];
    byId("tile-step").textContent = `${counted(step)} / ${counted(steps)}`;
    const each = (now - this.began) / 1000 / Math.max(step - this.first, 1);
    const left = step > this.first && step < steps ? `, about ${lasting(each * (steps - step))} left` : "";
    byId("progress-text").textContent = `Step ${counted(step)} of ${counted(steps)}${left}`;
  }

  private evaluated({ step, loss, accuracy }: Told<"evaluation">): void {
    if (accuracy !== undefined) {
      this.accuracy.add(step, accuracy);
      byId("tile-accuracy").textContent = `${accuracy.toFixed(1)} %`;
    }
    if (loss !== undefined) {
      this.loss.add(step, loss);
      byId("tile-loss").textContent = loss.toFixed(3);
    }
  }

  private note(line: string): void {
    this.log.push(`${new Date().toLocaleTimeString("en-GB")}  ${line}`);
    this.log.splice(0, Math.max(0, this.log.length - LINES));
    byId("log").textContent = this.log.join("\n");
  }
}

const WAITS: Readonly<Record<"connecting" | "preparing" | "waiting", string>> = {
  connecting: "Connecting …",
  preparing: "Reading your rows and loading the model …",
  waiting: "Ready. The run begins when the others are there.",
};
const ENDS: Readonly<Record<"finished" | "left", string>> = {
  finished: "The run is over. What was learned is at the server; your rows are where they were.",
  left: "You have left. The run goes on without this browser; the same link lets you come back.",
};
