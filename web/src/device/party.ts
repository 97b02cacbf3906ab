/** What a method on a device works with, and what it takes from the server, checked: bytes from a peer are a claim. */

import type { Batch, Feed, Inputs } from "../core/batches";
import { Diverged, PeerError } from "../core/errors";
import {
  Activations,
  Both,
  Exact,
  HeadGradient,
  History,
  Join,
  type Message,
  MiddleActivations,
  type Part,
  Turns,
  Weights,
  type Kind,
  kindsOf,
  nameOf,
} from "../core/messages";
import type { Replica } from "../core/replay";
import { type Cotangent, type Probe, type Weight, estimate } from "../core/slopes";
import { type Shape, type Tensor, described, rowsOf, sameShape, shown, sizeOf, tensor } from "../core/tensor";
import type { Head } from "./head";
import { type Bottom, type Noted, lengthsOf } from "./runtime";

export type Floats = Tensor<"float32">;
/** A round of one client: each message that it says, and the server's answer to it. */
export type Conversation<T = void> = AsyncGenerator<Message, T, Message>;
type Of<K extends Kind> = Extract<Part, { readonly kind: K }>;

/** One conversation: `steps` batches, after `first` steps of earlier rounds. */
export interface Round {
  readonly number: number;
  readonly steps: number;
  readonly first: number;
}

/** Rows of a batch that went through the bottom together: how many activations they have, and what entered blocks. */
export interface Group {
  readonly count: number;
  readonly noted: Noted;
}

/** One client. */
export class Party {
  /** Forward passes so far. */
  passes = 0;

  /**
   * `bottom`: its part of the model; `head`: what takes the loss on the device, in the U-shape; `theta`: the trained
   * parameters, moved by what is agreed on; `feed`: its batches; `probe`: how it takes slopes; `at`: the last blocks of
   * the bottom whose gradient it takes exactly, and the rows of a batch that go through it at a time, null for all.
   */
  constructor(
    readonly bottom: Bottom,
    readonly head: Head | null,
    public theta: Replica,
    readonly feed: Feed,
    readonly probe: Probe,
    private readonly at: { readonly exactBlocks: number; readonly rowsAtOnce: number | null },
  ) {}

  /** θ's parameters as they are. */
  get own(): Weight {
    return (name) => this.theta.parameters.get(name) as Floats;
  }

  /** The activations of a batch at θ, or at other weights. */
  async forward(batch: Batch, weight: Weight = this.own): Promise<Floats> {
    this.passes += 1;
    const made: Floats[] = [];
    for (const group of inGroups(batch.inputs, this.at.rowsAtOnce)) made.push(await this.bottom.forward(group, weight));
    return joined(made);
  }

  /** The activations at θ, and for each group of rows how many it has and what entered its exact blocks. */
  async noting(batch: Batch): Promise<[Floats, Group[]]> {
    this.passes += 1;
    const [made, groups]: [Floats[], Group[]] = [[], []];
    for (const group of inGroups(batch.inputs, this.at.rowsAtOnce)) {
      const [hidden, noted] = await this.bottom.noting(group, this.own, this.at.exactBlocks);
      made.push(hidden);
      groups.push({ count: hidden.shape[0] as number, noted });
    }
    return [joined(made), groups];
  }

  /** ∂⟨λ, z⟩/∂ of the exact parameters, flattened one behind the other, (d,) float32; `groups` is used up. */
  async exact(groups: Group[], gradient: Floats): Promise<Floats> {
    const whole = new Float32Array(this.theta.width(0));
    let end = gradient.shape[0] as number;
    for (let isFirst = true, group = groups.pop(); group !== undefined; isFirst = false, group = groups.pop()) {
      const found = await this.bottom.exact(group.noted, rowsOf(gradient, end - group.count, end), this.own);
      end -= group.count;
      let at = 0;
      for (const name of this.theta.exact) {
        for (const value of (found.get(name) as Floats).data) {
          whole[at] = isFirst ? value : (whole[at] as number) + value;
          at += 1;
        }
      }
    }
    return tensor("float32", [whole.length], whole);
  }
}

/** The inputs of a batch in groups of so many rows; all of them in one where that is null. */
export function inGroups(inputs: Inputs, rows: number | null): Inputs[] {
  const hasTexts = inputs["lengths"] !== undefined;
  const lengths = hasTexts ? lengthsOf(inputs) : null;
  const count = lengths?.length ?? (inputs["pixel_values"]?.shape[0] as number);
  if (rows === null || rows >= count) return [inputs];
  const ends = [0];
  for (let row = 0; row < count; row += 1) ends.push((ends[row] as number) + (lengths?.[row] ?? 1));
  const groups: Inputs[] = [];
  for (let first = 0; first < count; first += rows) {
    const last = Math.min(first + rows, count);
    const own = Object.entries(inputs).map(([name, values]): [string, Tensor] => {
      const isOfRows = name === "lengths";
      return [
        name,
        rowsOf(values, isOfRows ? first : (ends[first] as number), isOfRows ? last : (ends[last] as number)),
      ];
    });
    groups.push(Object.fromEntries(own));
  }
  return groups;
}

function joined(parts: readonly Floats[]): Floats {
  const [first] = parts;
  if (parts.length === 1 && first !== undefined) return first;
  const rows = parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
  const shape = [rows, ...(first as Floats).shape.slice(1)];
  const data = new Float32Array(sizeOf(shape));
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.data.length;
  }
  return tensor("float32", shape, data);
}

/** The message that carries one batch's activations; without `labels` they stay on the device. */
export function upload(batch: Batch, hidden: Floats, labels = true): Activations {
  const lengths = batch.inputs["lengths"] as Tensor<"int64"> | undefined;
  const own = lengths === undefined ? null : narrowed(lengths);
  return new Activations(hidden, own, labels ? narrowed(batch.labels) : null, narrowed(batch.sampleIds));
}

/** Activations of the batch whose lengths, labels and numbers were sent earlier in the step. */
export function again(hidden: Floats): Activations {
  return new Activations(hidden, null, null, null);
}

function narrowed(values: Tensor<"int64">): Tensor<"int32"> {
  return tensor("int32", values.shape, Int32Array.from(values.data, Number));
}

/**
 * λ = ∂ℓ/∂z for the activations `hidden`, in their shape, whoever takes the loss.
 *
 * @throws PeerError where something else came than was asked for; Diverged where what came is not finite.
 */
export async function* feedback(party: Party, batch: Batch, hidden: Floats): Conversation<Floats> {
  if (party.head === null) return cutGradient(yield upload(batch, hidden), hidden.shape);
  const middle = received(yield upload(batch, hidden, false), "MiddleActivations");
  const said = await headGradient(party.head, batch, hidden.shape[0] as number, middle);
  return cutGradient(yield said, hidden.shape);
}

async function headGradient(head: Head, batch: Batch, rows: number, said: MiddleActivations): Promise<HeadGradient> {
  const hidden = checked("MiddleActivations.hidden", said.hidden as Tensor, [rows, ...head.sizes]);
  if (said.head.length !== head.shapes.size) {
    throw new PeerError("MiddleActivations.head", `${said.head.length}`, `${head.shapes.size} are allowed`, "server");
  }
  const tensors = [...head.shapes].map(([name, shape], place) =>
    checked(`MiddleActivations.head, ${name}`, said.head[place] as Tensor, shape),
  );
  if (![hidden, ...tensors].every(isFinite)) {
    const cure = "lower top.lr or clip the top (top.clip)";
    throw new Diverged("MiddleActivations", "is not finite", cure, "server");
  }
  const lengths = batch.inputs["lengths"] === undefined ? null : lengthsOf(batch.inputs);
  const { gradient, loss, ofHead } = await head.loss(hidden, tensors, lengths, batch.labels, batch.scored);
  return new HeadGradient(gradient, tensor("float32", [1], Float32Array.of(loss)), ofHead);
}

/** How ⟨λ, z⟩ changes along each direction of agreed row `row`, by forward passes: (P,) float32. */
export async function feedbackSlopes(party: Party, batch: Batch, cotangent: Cotangent, row: number): Promise<Floats> {
  const { theta, probe } = party;
  const measured = theta.measured;
  const run = (weight: Weight): Promise<Floats> => party.forward(batch, weight);
  const seeds = theta.seeds(probe.directions, row);
  const slopes = await estimate(run, theta.parameters, measured, cotangent, seeds, probe.settled(measured));
  return tensor("float32", [slopes.length], Float32Array.from(slopes));
}

/** The server's message, which must be of this kind; PeerError where it is another one. */
export function received<K extends Kind>(reply: Message, kind: K): Of<K> {
  if (reply.kind === kind) return reply as Of<K>;
  throw new PeerError("", nameOf(kindsOf(reply)), `${kind} is allowed`, "server");
}

/** The two messages in the server's, which must be of these kinds; throws as `received` does. */
export function receivedBoth<A extends Kind, B extends Kind>(reply: Message, first: A, second: B): [Of<A>, Of<B>] {
  if (reply instanceof Both && reply.first.kind === first && reply.second.kind === second) {
    return [reply.first as Of<A>, reply.second as Of<B>];
  }
  throw new PeerError("", nameOf(kindsOf(reply)), `${first}And${second} is allowed`, "server");
}

/** λ for activations of this shape; PeerError for another shape or dtype, Diverged where it is not finite. */
export function cutGradient(reply: Message, shape: Shape): Floats {
  const gradient = checked("CutGradient.gradient", received(reply, "CutGradient").gradient as Tensor, shape);
  if (!isFinite(gradient)) {
    throw new Diverged("CutGradient.gradient", "is not finite", "lower top.lr or clip the top (top.clip)", "server");
  }
  return gradient;
}

/** The loss that answers a probe; PeerError where it is no single float32, Diverged where it is not finite. */
export function lossValue(reply: Message): number {
  const values = checked("Losses.values", received(reply, "Losses").values, [1]);
  if (!isFinite(values)) {
    const cure = "lower the learning rates (top.lr, bottom.lr)";
    throw new Diverged("Losses.values", "is not finite", cure, "server");
  }
  return values.data[0] as number;
}

/**
 * The device replays the steps that it missed.
 *
 * @throws PeerError where other steps or shapes came than were asked for; Diverged where a slope is not finite.
 */
export async function* join(theta: Replica, directions: number): Conversation {
  const reply = yield new Join(theta.position);
  if (theta.exact.length && reply instanceof Both && reply.second instanceof Exact) {
    takeExact(theta, ...receivedBoth(reply, "History", "Exact"), directions);
  } else if (theta.exact.length) {
    takeState(theta, ...receivedBoth(reply, "History", "Weights"), directions);
  } else if (reply instanceof Both) {
    const [said, turns] = receivedBoth(reply, "History", "Turns");
    replay(theta, "History", said.first, said.slopes, directions, stepsOf(turns, said.slopes.shape[0] ?? 0));
  } else {
    const said = received(reply, "History");
    replay(theta, "History", said.first, said.slopes, directions);
  }
}

/** Replays the step that the cohort has just agreed on; throws as `join` does. */
export function takeAgreed(theta: Replica, reply: Message, directions: number): void {
  const [agreed, exact] = theta.exact.length
    ? receivedBoth(reply, "Slopes", "Exact")
    : [received(reply, "Slopes"), null];
  const slopes = checked("Slopes.values", agreed.values, [directions * theta.groups.length]);
  const given = exact === null ? [] : checked("Exact.values", exact.values as Tensor, [theta.width(0)]).data;
  const whole = new Float32Array(slopes.data.length + given.length);
  whole.set(slopes.data);
  whole.set(given, slopes.data.length);
  replay(theta, "Slopes", agreed.step, tensor("float32", [1, whole.length], whole), directions);
}

function takeExact(theta: Replica, said: History, exact: Exact, directions: number): void {
  const width = directions * theta.groups.length;
  const rows = checkedRows(theta, "History", said.first, said.slopes, width);
  const count = rows.shape[0] as number;
  const each = theta.width(0);
  const given = checked("Exact.values", exact.values as Tensor, [count * each]);
  const whole = new Float32Array(count * (width + each));
  for (let row = 0; row < count; row += 1) {
    whole.set(rows.data.subarray(row * width, (row + 1) * width), row * (width + each));
    whole.set(given.data.subarray(row * each, (row + 1) * each), row * (width + each) + width);
  }
  replay(theta, "History", said.first, tensor("float32", [count, width + each], whole), directions);
}

function takeState(theta: Replica, said: History, state: Weights, directions: number): void {
  const rows = checkedRows(theta, "History", said.first, said.slopes, directions * theta.groups.length);
  const allowed = rows.shape[0] ? [...theta.exactState()] : [];
  if (state.tensors.length !== allowed.length) {
    throw new PeerError("Weights.tensors", `${state.tensors.length}`, `${allowed.length} are allowed`, "server");
  }
  const tensors = allowed.map(([name, mine], place) =>
    checked(`Weights.tensors, ${name}`, state.tensors[place] as Tensor, mine.shape),
  );
  if (!tensors.every(isFinite)) {
    throw new Diverged("Weights.tensors", "are not finite", "lower bottom.lr or top.lr", "server");
  }
  theta.takeState(said.first, rows, tensors);
}

function replay(
  theta: Replica,
  kind: string,
  first: number,
  slopes: Tensor,
  directions: number,
  steps: readonly number[] | null = null,
): void {
  theta.replay(first, checkedRows(theta, kind, first, slopes, theta.width(directions)), steps);
}

function stepsOf(said: Turns, count: number): number[] {
  const { steps } = said;
  if (steps.dtype !== "int32" || !sameShape(steps.shape, [count]) || steps.data.some((step) => step < 0)) {
    const allowed = `int32 (${count},) from 0 on are allowed`;
    throw new PeerError("Turns.steps", described(steps), allowed, "server");
  }
  return Array.from(steps.data);
}

function checkedRows(theta: Replica, kind: string, first: number, rows: Tensor, width: number): Floats {
  if (first !== theta.position) {
    throw new PeerError(kind, `step ${first}`, `${theta.position} is allowed`, "server");
  }
  const [count, came] = rows.shape;
  if (rows.dtype !== "float32" || rows.shape.length !== 2 || (count && came !== width)) {
    throw new PeerError(kind, `slopes ${described(rows)}`, `float32 with ${width} a step are allowed`, "server");
  }
  if (!isFinite(rows)) {
    const what = `${kind}: slopes from step ${first} on`;
    throw new Diverged(what, "are not finite", "lower bottom.lr or top.lr", "server");
  }
  return rows;
}

/** Refuses what isn't float32 of this shape; PeerError names the field, what came and what is allowed. */
export function checked(field: string, array: Tensor, shape: Shape): Floats {
  if (array.dtype === "float32" && sameShape(array.shape, shape)) return array;
  throw new PeerError(field, described(array), `float32 ${shown(shape)} is allowed`, "server");
}

/** Whether every value is. */
export function isFinite(array: Floats): boolean {
  return array.data.every(Number.isFinite);
}
