/** A client's part of one run where it runs: its model, its θ, its end of the link, and what that costs. */

import { Feed, type Split } from "../core/batches";
import { DeviceError, PackageError, PeerError, runningGraphs } from "../core/errors";
import { HiddenForm, type LinkForm, VectorForm, boundsOf } from "../core/forms";
import type { Message } from "../core/messages";
import { seedFor } from "../core/seeds";
import { type Shape, type Tensor, described, zeros } from "../core/tensor";
import { at, shown } from "./facts";
import { Head } from "./head";
import { End } from "./link";
import type { Manifest } from "./manifest";
import { peakBytes } from "./memory";
import { METHODS } from "./methods";
import { type Package, sha256 } from "./package";
import { type Conversation, Party, type Round, isFinite } from "./party";
import { type Plan, agreedRows, replicaOf } from "./plan";
import { Bottom, lengthsOf } from "./runtime";
import { type Kept, type State, checkArrays } from "./state";
import { Tally } from "./tally";

/** A round of one client: the bytes of each message that it sends, and of the answer that it gets. */
export type Talk = AsyncGenerator<Uint8Array, void, Uint8Array>;

/** One client of one run. */
export class Session {
  /** Spent in the method, and in packing and unpacking. */
  seconds = 0;
  wireSeconds = 0;
  /** Of the runtime and the package, behind rounds that were measured; and behind inference, before training. */
  peakBytes = 0;
  inferencePeakBytes = 0;
  /** Bytes that went either way. */
  readonly tally = new Tally();
  end: End;
  private hasTrained = false;

  private constructor(
    private readonly from: Package,
    readonly plan: Plan,
    readonly party: Party,
    private readonly forms: ReadonlyMap<string, LinkForm>,
    /** Digests of what it works on; a state that was left with others is of no use. */
    readonly about: string,
  ) {
    this.end = this.freshEnd();
  }

  /**
   * A client of a run, whose graphs have then run on a row.
   *
   * @throws PackageError where the runtime lacks an operator, graphs can't be run, or a codec is none that a page has.
   */
  static async begin(from: Package, plan: Plan, split: Split, client: number): Promise<Session> {
    const bottom = await Bottom.load(from);
    let head: Head | null = null;
    try {
      if (plan.hasHead) head = await Head.load(from);
      const feed = new Feed(split, plan.batchSize, seedFor(plan.seed, "order", client));
      const party = new Party(bottom, head, replicaOf(plan, from.manifest, from.theta()), feed, plan.probe, plan);
      const forms = formsOf(from, party, await rehearsed(party, split));
      const about = await sha256(new TextEncoder().encode(`${textOf(from.manifest)}\n${split.digest()}`));
      return new Session(from, plan, party, forms, about);
    } catch (error) {
      await bottom.close();
      await head?.close();
      throw error;
    }
  }

  /** Gives back what the runtime holds. */
  async close(): Promise<void> {
    await this.party.bottom.close();
    await this.party.head?.close();
  }

  private freshEnd(): End {
    const { plan, party } = this;
    const head = new Map([...(party.head?.shapes ?? [])].map(([name, shape]) => [name, zeros("float32", shape)]));
    const run = { directions: plan.probe.directions, rows: plan.batchSize, steps: agreedRows(plan) };
    return new End(plan.codecs, this.forms, boundsOf(party.theta, head, run), this.tally);
  }

  /** Goes back to where the run began. */
  restart(): void {
    this.party.theta = replicaOf(this.plan, this.from.manifest, this.from.theta());
    this.end = this.freshEnd();
  }

  /**
   * Carries the client's side of one round.
   *
   * @throws PeerError where an answer is none that this client can take; Diverged where the client's numbers, or those
   *   that it was sent, are not finite.
   */
  async *converse(round: Round, measure: boolean): Talk {
    const greeting = this.end.hello();
    if (greeting !== null) {
      const theirs = this.heard(yield this.said(greeting));
      ofServer(() => this.end.meet(theirs));
    }
    if (measure && !this.hasTrained) await this.infer(round);
    this.hasTrained = true;
    const talk = METHODS[this.plan.method](this.party, round);
    let reply: Message | null = null;
    for (;;) {
      const message: Message | null = await this.speak(talk, reply);
      if (message === null) break;
      reply = this.heard(yield this.said(message));
    }
    if (measure) this.peakBytes = peakBytes(this.from.bytes);
  }

  private said(message: Message): Uint8Array {
    return this.timed(() => this.end.send(message));
  }

  private heard(data: Uint8Array): Message {
    return this.timed(() => ofServer(() => this.end.receive(data)));
  }

  private timed<T>(work: () => T): T {
    const begun = performance.now();
    try {
      return work();
    } finally {
      this.wireSeconds += (performance.now() - begun) / 1000;
    }
  }

  private async speak(talk: Conversation, reply: Message | null): Promise<Message | null> {
    const begun = performance.now();
    try {
      const said = await (reply === null ? talk.next() : talk.next(reply));
      return said.done ? null : said.value;
    } finally {
      this.seconds += (performance.now() - begun) / 1000;
    }
  }

  /** Inference alone, on a round's batches. */
  private async infer(round: Round): Promise<void> {
    const { party } = this;
    const first = party.feed.cursor;
    for (let number = first; number < first + round.steps; number += 1) {
      await party.forward(party.feed.batch(number));
      party.passes -= 1;
    }
    this.inferencePeakBytes = peakBytes(this.from.bytes);
  }

  /** All that this client needs to go on by itself: arrays, which are not copied, and plain values. */
  state(): Kept {
    const { arrays, position } = this.party.theta.state();
    const link = this.end.state();
    const all = new Map<string, Tensor>(arrays);
    for (const [name, array] of link.arrays) all.set(`link.${name}`, array);
    return { arrays: all, values: { position, link: link.values, about: this.about } };
  }

  /**
   * Continues from what `state` gave and a browser has kept.
   *
   * @throws DeviceError where it is none that this client can go on from; it is then where the run began.
   */
  loadState(state: State): void {
    try {
      checkArrays(state.arrays, this.party.theta.state().arrays, "link.");
      const ofLink = new Map<string, Tensor>();
      for (const [name, array] of state.arrays) if (name.startsWith("link.")) ofLink.set(name.slice(5), array);
      this.end.loadState({ arrays: ofLink, values: state.link });
      // How many they are, the end alone knows, and only once it has taken them in.
      const known = this.end.state().arrays;
      const unknown = [...ofLink.keys()].find((name) => !known.has(name));
      if (unknown !== undefined) {
        throw new DeviceError(`array ${shown(`link.${unknown}`, 80)} is there, and nothing has this name`);
      }
      const own = new Map([...state.arrays].filter(([name]) => !name.startsWith("link.")));
      this.party.theta.loadState({ arrays: own as Map<string, Tensor<"float32">>, position: state.position });
    } catch (error) {
      this.restart();
      throw new DeviceError(`the state can't be gone on from: ${(error as Error).message}`);
    }
  }
}

/** A manifest as a text; whole numbers beyond 2^53 are among its values. */
function textOf(manifest: Manifest): string {
  return JSON.stringify(manifest, (_, value: unknown) => (typeof value === "bigint" ? String(value) : value));
}

/** Runs all graphs on one row: the shape of its activations, behind the dimension of the samples or tokens. */
async function rehearsed(party: Party, split: Split): Promise<Shape> {
  const batch = split.batch([0]);
  const lengths = batch.inputs["lengths"] === undefined ? null : lengthsOf(batch.inputs);
  const rows = lengths?.[0] ?? 1;
  const shape = await runningGraphs(async () => {
    const [hidden, groups] = await party.noting(batch);
    if (hidden.shape[0] !== rows || !isFinite(hidden)) {
      throw new PackageError(`the package's graphs make ${described(hidden)} of one row, or what is not finite`);
    }
    if (party.theta.exact.length) await party.exact(groups, zeros("float32", hidden.shape));
    if (party.head !== null) {
      const tensors = [...party.head.shapes.values()].map((wanted) => zeros("float32", wanted));
      const middle = zeros("float32", [rows, ...party.head.sizes]);
      await party.head.loss(middle, tensors, lengths, batch.labels, batch.scored);
    }
    return hidden.shape.slice(1);
  });
  party.passes = 0;
  return shape;
}

function formsOf(from: Package, party: Party, shape: Shape): Map<string, LinkForm> {
  const hasTexts = from.manifest.model.kind !== "image";
  const longest = hasTexts ? [at(from.manifest, "task.texts.max_length") as number] : [];
  const first = new HiddenForm([...longest, ...shape], hasTexts);
  const forms = new Map<string, LinkForm>([
    ["activations_up", first],
    ["gradient_down", first],
  ]);
  if (party.head !== null) {
    const second = new HiddenForm([...longest, ...party.head.sizes], hasTexts);
    forms.set("activations_down", second).set("gradient_up", second);
  }
  if (party.theta.exact.length) {
    const vector = new VectorForm(party.theta.width(0));
    forms.set("slopes_up", vector).set("slopes_down", vector);
  }
  return forms;
}

/** An error says that the server sent what is wrong. */
function ofServer<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof PeerError ? error.of("server") : error;
  }
}
