/** The protocol's vectors, as tensors and messages. */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";

import { plain, readJson } from "../../src/core/json";
import {
  Encoded,
  FIELDS,
  type Kind,
  type Message,
  type Value,
  kindsOf,
  made,
  ofParts,
  partsOf,
  valuesOf,
} from "../../src/core/messages";
import { type Dtype, type Tensor, bytesOf, ofBytes, sameShape } from "../../src/core/tensor";

const FILES = import.meta.glob<string>("../../../protocol/vectors/*.json", {
  query: "?raw",
  import: "default",
  eager: true,
});

/** A file of vectors; its fields are those that protocol/write_vectors.py names. */
export function vectors(name: string): any {
  const text = FILES[`../../../protocol/vectors/${name}.json`];
  if (text === undefined) throw new Error(`there are no vectors ${name}`);
  return plain(readJson(text)); // whose numbers of 64 bits keep their digits
}

export interface Shown {
  dtype: Dtype;
  shape: number[];
  hex: string;
  sha256?: string;
}

export function bytes(hex: string): Uint8Array<ArrayBuffer> {
  return hexToBytes(hex) as Uint8Array<ArrayBuffer>;
}

export function array(shown: Shown): Tensor {
  return ofBytes(shown.dtype, shown.shape, bytes(shown.hex).buffer);
}

export function floats(shown: Shown): Tensor<"float32"> {
  const read = array(shown);
  if (read.dtype !== "float32") throw new Error(`float32 was expected, not ${read.dtype}`);
  return read;
}

/** What was recorded of a tensor, in a form that an assertion shows well. */
export function told(shown: Shown): unknown {
  return shown.sha256 === undefined ? { dtype: shown.dtype, shape: shown.shape, hex: shown.hex } : shown.sha256;
}

/** The same of one that was made. */
export function telling(values: Tensor, shown: Shown): unknown {
  const raw = bytesOf(values);
  return shown.sha256 === undefined
    ? { dtype: values.dtype, shape: [...values.shape], hex: bytesToHex(raw) }
    : bytesToHex(sha256(raw));
}

/** The message of a case of `wire`. */
export function message(kase: { kinds: Kind[]; fields: Record<string, unknown>[] }): Message {
  return ofParts(
    kase.kinds.map((kind, place) => made(kind, FIELDS[kind].map((field) => value(kase.fields[place]?.[field.name])))),
  );
}

function value(shown: unknown): Value {
  if (shown === null || shown === undefined) return null;
  if (typeof shown === "number") return shown;
  const parts = shown as { encoded?: Shown[]; tensors?: Shown[] };
  if (parts.encoded !== undefined) return new Encoded(parts.encoded.map(array));
  return parts.tensors === undefined ? array(shown as Shown) : parts.tensors.map(array);
}

/** Whether two messages are the same in every bit. */
export function equal(one: Message, other: Message): boolean {
  const [mine, theirs] = [partsOf(one).flatMap(valuesOf), partsOf(other).flatMap(valuesOf)];
  const sameKinds = kindsOf(one).join() === kindsOf(other).join();
  return sameKinds && mine.every((each, place) => equalValues(each, theirs[place] ?? null));
}

function equalValues(one: Value, other: Value): boolean {
  if (one === null || other === null || typeof one === "number" || typeof other === "number") return one === other;
  if ("dtype" in one || "dtype" in other) return "dtype" in one && "dtype" in other && equalTensors(one, other);
  if (one instanceof Encoded !== other instanceof Encoded) return false;
  const [mine, theirs] = [one, other].map((each) => (each instanceof Encoded ? each.parts : each));
  return (
    mine?.length === theirs?.length &&
    (mine ?? []).every((each, place) => theirs?.[place] !== undefined && equalTensors(each, theirs[place]))
  );
}

function equalTensors(one: Tensor, other: Tensor): boolean {
  return (
    one.dtype === other.dtype &&
    sameShape(one.shape, other.shape) &&
    bytesToHex(bytesOf(one)) === bytesToHex(bytesOf(other))
  );
}
