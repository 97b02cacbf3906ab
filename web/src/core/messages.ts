/** The message kinds of docs/protocol.md: classes with a role for each field, which the wire reads from `FIELDS`. */

import type { Tensor } from "./tensor";

export type Role =
  | "activations"
  | "lengths"
  | "labels"
  | "sample_ids"
  | "gradient"
  | "slopes"
  | "losses"
  | "weights"
  | "steps"
  | "caches"
  | "thresholds"
  | "groups"
  | "masks";

/** In the place of a tensor field: what the codecs of the field's link made of it. */
export class Encoded {
  constructor(readonly parts: readonly Tensor[]) {}
}

/** An answer without content: the exchange itself is the signal. */
export class Nothing {
  readonly kind = "Nothing";
}

/** Up, first in a round: how many agreed rows of slopes the device has replayed. */
export class Join {
  readonly kind = "Join";
  constructor(readonly position: number) {}
}

/** Down: agreed slopes, the rows from number `first` on, (steps, P) float32; P for each group of θ in turn. */
export class History {
  readonly kind = "History";
  constructor(
    readonly first: number,
    readonly slopes: Tensor,
  ) {}
}

/**
 * Up: what the server needs for the loss of one batch. What was sent earlier in the step is null.
 *
 * `hidden`: (N, H) for the N tokens of B texts one behind the other, or (B, C, H, W). `lengths`: (B,) int32, null for
 * images. `labels`: (B,) or (N,) int32, null in the U-shape. `sampleIds`: (B,) int32.
 */
export class Activations {
  readonly kind = "Activations";
  constructor(
    readonly hidden: Tensor | Encoded,
    readonly lengths: Tensor | null,
    readonly labels: Tensor | null,
    readonly sampleIds: Tensor | null,
  ) {}
}

/** Down: λ = ∂ℓ/∂z, in the shape of the activations that it answers. */
export class CutGradient {
  readonly kind = "CutGradient";
  constructor(readonly gradient: Tensor | Encoded) {}
}

/** Up: the device's slopes (P,) float32 of agreed row `step`; down: that row. */
export class Slopes {
  readonly kind = "Slopes";
  constructor(
    readonly step: number,
    readonly values: Tensor,
  ) {}
}

/** Down: the loss of a batch, (1,) float32. */
export class Losses {
  readonly kind = "Losses";
  constructor(readonly values: Tensor) {}
}

/** Both ways: trainable tensors in the order of their names. */
export class Weights {
  readonly kind = "Weights";
  constructor(readonly tensors: readonly Tensor[]) {}
}

/** From one device to the next: trainable tensors in the order of their names. */
export class HandOver {
  readonly kind = "HandOver";
  constructor(readonly tensors: readonly Tensor[]) {}
}

/** Down, in the U-shape: activations at the second cut, and the head's trainable tensors. */
export class MiddleActivations {
  readonly kind = "MiddleActivations";
  constructor(
    readonly hidden: Tensor | Encoded,
    readonly head: readonly Tensor[],
  ) {}
}

/** Up, in the U-shape: the loss (1,) float32, and its gradients by the second cut's activations and by the head. */
export class HeadGradient {
  readonly kind = "HeadGradient";
  constructor(
    readonly gradient: Tensor | Encoded,
    readonly loss: Tensor,
    readonly head: readonly Tensor[],
  ) {}
}

/**
 * Both ways, first in a round where links remember samples.
 *
 * `digests`: of what this end remembers, (links,) int64. `thresholds`: down alone, (links,) float32.
 */
export class Caches {
  readonly kind = "Caches";
  constructor(
    readonly digests: Tensor,
    readonly thresholds: Tensor | null,
  ) {}
}

/** Down: agreed slopes as in `History`, and the group of θ that the device measures in this round. */
export class Share {
  readonly kind = "Share";
  constructor(
    readonly first: number,
    readonly slopes: Tensor,
    readonly group: number,
  ) {}
}

/** Down, behind a `History` whose rows are not numbered as the run's steps: the step of each, (rows,) int32. */
export class Turns {
  readonly kind = "Turns";
  constructor(readonly steps: Tensor) {}
}

/**
 * Gradients of the exact parameters, (d,) float32, in the order of these in θ.
 *
 * Behind `Slopes`, both ways; down also behind `History`, those of its rows one behind the other, (rows · d,).
 */
export class Exact {
  readonly kind = "Exact";
  constructor(readonly values: Tensor | Encoded) {}
}

/**
 * Both ways, around a message of which a sum alone is told: keys, sealed shares, opened shares (`phase` 0 to 2).
 *
 * clients: that the rows of `values` are of, or are for, (n,) int64. values: (n, bytes of each) uint8.
 */
export class Masking {
  readonly kind = "Masking";
  constructor(
    readonly phase: number,
    readonly clients: Tensor,
    readonly values: Tensor,
  ) {}
}

export type Part =
  | Nothing
  | Join
  | History
  | Activations
  | CutGradient
  | Slopes
  | Losses
  | Weights
  | MiddleActivations
  | HeadGradient
  | Caches
  | HandOver
  | Share
  | Turns
  | Exact
  | Masking;
export type Kind = Part["kind"];

/** Two messages that go as one; which two, `CODES` says. */
export class Both {
  readonly kind = "Both";
  constructor(
    readonly first: Part,
    readonly second: Part,
  ) {}
}

export type Message = Part | Both;

/** What a message is made of, one kind or two. The number on the wire is the place here: append, never reorder. */
export const CODES: readonly (readonly Kind[])[] = [
  ["Nothing"],
  ["Join"],
  ["History"],
  ["Activations"],
  ["CutGradient"],
  ["Slopes"],
  ["Losses"],
  ["Weights"],
  ["MiddleActivations"],
  ["HeadGradient"],
  ["Caches"],
  ["HandOver"],
  ["Share"],
  ["Slopes", "Activations"],
  ["Slopes", "CutGradient"],
  ["History", "Weights"],
  ["History", "Turns"],
  ["Turns"],
  ["Slopes", "Exact"],
  ["History", "Exact"],
  ["Masking"],
];

/** What may be in a field. */
export type Type = "none" | "int" | "Tensor" | "tuple" | "Encoded";
export type Value = null | number | Tensor | readonly Tensor[] | Encoded;

/** What the wire knows of a field: the protocol's name of it, its role, and the types that it may be of. */
export interface Field {
  readonly name: string;
  readonly role: Role;
  readonly types: readonly Type[];
}

const field = (name: string, role: Role, ...types: Type[]): Field => ({ name, role, types });

/** The fields of each kind, in the order of the bytes and of the constructor. */
export const FIELDS: Readonly<Record<Kind, readonly Field[]>> = {
  Nothing: [],
  Join: [field("position", "steps", "int")],
  History: [field("first", "steps", "int"), field("slopes", "slopes", "Tensor")],
  Activations: [
    field("hidden", "activations", "Tensor", "Encoded"),
    field("lengths", "lengths", "Tensor", "none"),
    field("labels", "labels", "Tensor", "none"),
    field("sample_ids", "sample_ids", "Tensor", "none"),
  ],
  CutGradient: [field("gradient", "gradient", "Tensor", "Encoded")],
  Slopes: [field("step", "steps", "int"), field("values", "slopes", "Tensor")],
  Losses: [field("values", "losses", "Tensor")],
  Weights: [field("tensors", "weights", "tuple")],
  MiddleActivations: [field("hidden", "activations", "Tensor", "Encoded"), field("head", "weights", "tuple")],
  HeadGradient: [
    field("gradient", "gradient", "Tensor", "Encoded"),
    field("loss", "losses", "Tensor"),
    field("head", "weights", "tuple"),
  ],
  Caches: [field("digests", "caches", "Tensor"), field("thresholds", "thresholds", "Tensor", "none")],
  HandOver: [field("tensors", "weights", "tuple")],
  Share: [field("first", "steps", "int"), field("slopes", "slopes", "Tensor"), field("group", "groups", "int")],
  Turns: [field("steps", "steps", "Tensor")],
  Exact: [field("values", "slopes", "Tensor", "Encoded")],
  Masking: [field("phase", "masks", "int"), field("clients", "masks", "Tensor"), field("values", "masks", "Tensor")],
};

const CLASSES = {
  Nothing,
  Join,
  History,
  Activations,
  CutGradient,
  Slopes,
  Losses,
  Weights,
  MiddleActivations,
  HeadGradient,
  Caches,
  HandOver,
  Share,
  Turns,
  Exact,
  Masking,
} as const satisfies Record<Kind, unknown>;

/** A message of this kind, of values that have the types of its fields, in their order. */
export function made(kind: Kind, values: readonly Value[]): Part {
  return new (CLASSES[kind] as new (...values: readonly Value[]) => Part)(...values);
}

/** The values of a message's fields, in their order. */
export function valuesOf(part: Part): Value[] {
  const values = part as unknown as Record<string, Value>;
  return FIELDS[part.kind].map((each) => values[camelCase(each.name)] ?? null);
}

/** The protocol's name of a field as it is called here. */
export function camelCase(name: string): string {
  return name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** The two messages in `Both`; of another kind itself. */
export function partsOf(message: Message): readonly Part[] {
  return message instanceof Both ? [message.first, message.second] : [message];
}

/** One message of one, or `Both` of two. */
export function ofParts(parts: readonly Part[]): Message {
  const [first, second] = parts;
  if (first === undefined) throw new RangeError("a message has a part");
  return second === undefined ? first : new Both(first, second);
}

/** What a message is made of: an entry of `CODES`. */
export function kindsOf(message: Message): readonly Kind[] {
  return partsOf(message).map((part) => part.kind);
}

/** How a message of these kinds is called in what is said of it. */
export function nameOf(kinds: readonly Kind[]): string {
  return kinds.join("And");
}
