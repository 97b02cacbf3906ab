/**
 * The byte layout of a message (docs/protocol.md), written and read without trusting the other side.
 *
 * Every length, dtype, shape and count is checked against what is left of the buffer before anything is allocated.
 */

import { PeerError } from "./errors";
import {
  CODES,
  Encoded,
  FIELDS,
  type Kind,
  type Message,
  type Part,
  type Role,
  type Type,
  type Value,
  kindsOf,
  made,
  nameOf,
  ofParts,
  partsOf,
  valuesOf,
} from "./messages";
import { type Dtype, type Shape, type Tensor, bytesEach, bytesOf, ofBytes, shown, sizeOf } from "./tensor";

export const VERSION = 2;
export const MAX_BYTES = 2 ** 31;
export const MAX_DIMENSIONS = 8;
/** In one field: an empty tensor takes six bytes here and hundreds in memory. */
export const MAX_TENSORS = 1 << 16;

const MAGIC = [0x48, 0x42] as const; // HB
const HEADER = 4;
const [NONE, INTEGER, TENSOR, TENSORS, ENCODED] = [0, 1, 2, 3, 4];
/** The number on the wire is the place here. */
const DTYPES: readonly Dtype[] = [
  "float32",
  "float64",
  "float16",
  "bfloat16",
  "int64",
  "int32",
  "int16",
  "int8",
  "uint8",
  "bool",
];

/**
 * The most that a field may hold: bytes of values in so many tensors.
 *
 * With a `shape`, its one tensor has no more dimensions than this and is in none of them longer.
 */
export class Most {
  constructor(
    readonly bytes: number,
    readonly tensors = 1,
    readonly shape: Shape | null = null,
  ) {}
}

/** What the fields of a message may hold, by role; a role that is not there holds nothing. */
export type Bound = Readonly<Partial<Record<Role, Most>>>;
const NOTHING = new Most(0, 0);

/** Bytes of the longest message whose fields hold no more than this. */
export function mostBytes(most: Bound): number {
  const ofKind = (kind: Kind): number =>
    FIELDS[kind].reduce((sum, field) => sum + mostOfField(most[field.role] ?? NOTHING), 0);
  return Math.max(...CODES.map((kinds) => kinds.reduce((sum, kind) => sum + ofKind(kind), HEADER)));
}

function mostOfField(most: Most): number {
  return Math.max(9, 5 + most.tensors * (2 + 4 * MAX_DIMENSIONS) + most.bytes); // an integer, or tensors
}

/** The bytes of a message. */
export function pack(message: Message): Uint8Array<ArrayBuffer> {
  const kinds = nameOf(kindsOf(message));
  const code = CODES.findIndex((each) => nameOf(each) === kinds);
  if (code < 0) throw new RangeError(`no message is ${kinds}`);
  const pieces: Uint8Array[] = [Uint8Array.of(...MAGIC, VERSION, code)];
  for (const part of partsOf(message)) {
    for (const value of valuesOf(part)) packField(pieces, value);
  }
  const data = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    data.set(piece, at);
    at += piece.length;
  }
  return data;
}

function packField(pieces: Uint8Array[], value: Value): void {
  if (value === null) {
    pieces.push(Uint8Array.of(NONE));
  } else if (typeof value === "number") {
    const piece = new DataView(new ArrayBuffer(9));
    piece.setUint8(0, INTEGER);
    piece.setBigInt64(1, BigInt(value), true);
    pieces.push(new Uint8Array(piece.buffer));
  } else if ("dtype" in value) {
    pieces.push(Uint8Array.of(TENSOR));
    packTensor(pieces, value);
  } else {
    const tensors = value instanceof Encoded ? value.parts : value;
    const piece = new DataView(new ArrayBuffer(5));
    piece.setUint8(0, value instanceof Encoded ? ENCODED : TENSORS);
    piece.setUint32(1, tensors.length, true);
    pieces.push(new Uint8Array(piece.buffer));
    for (const each of tensors) packTensor(pieces, each);
  }
}

function packTensor(pieces: Uint8Array[], values: Tensor): void {
  const form = new DataView(new ArrayBuffer(2 + 4 * values.shape.length));
  form.setUint8(0, DTYPES.indexOf(values.dtype));
  form.setUint8(1, values.shape.length);
  values.shape.forEach((length, place) => form.setUint32(2 + 4 * place, length, true));
  pieces.push(new Uint8Array(form.buffer), bytesOf(values));
}

/**
 * Reads a message back; its arrays are fresh.
 *
 * `most`: what fields may hold, as for `mostBytes`; without it, whatever these bytes do. PeerError where the bytes are
 * no message of this version, or hold more; it names the field, what came and what is allowed.
 */
export function unpack(data: Uint8Array, most: Bound | null = null): Message {
  if (data.length > MAX_BYTES) {
    throw new PeerError("message", `${data.length} bytes`, `at most ${MAX_BYTES} are allowed`);
  }
  const reader = new Reader(data);
  const [first, second, version, code] = reader.bytes(HEADER, "header");
  if (first !== MAGIC[0] || second !== MAGIC[1] || version !== VERSION) {
    const came = `bytes ${first}, ${second} and version ${version}`;
    throw new PeerError("header", came, `HB version ${VERSION} is allowed`);
  }
  const kinds = CODES[code ?? -1];
  if (kinds === undefined) {
    throw new PeerError("header", `message kind ${code}`, `0 to ${CODES.length - 1} are allowed`);
  }
  const parts = kinds.map((kind) => partOf(reader, kind, most));
  if (reader.left > 0) {
    throw new PeerError(nameOf(kinds), `${reader.left} bytes follow the last field, none are allowed`);
  }
  return ofParts(parts);
}

function partOf(reader: Reader, kind: Kind, most: Bound | null): Part {
  const values = FIELDS[kind].map((field) => {
    const allowed = most === null ? new Most(MAX_BYTES, MAX_TENSORS) : (most[field.role] ?? NOTHING);
    const value = reader.field(`${kind}.${field.name}`, allowed);
    if (!field.types.includes(typeOf(value))) {
      throw new PeerError(`${kind}.${field.name}`, typeOf(value), `${field.types.join(" or ")} is allowed`);
    }
    return value;
  });
  return made(kind, values);
}

function typeOf(value: Value): Type {
  if (value === null) return "none";
  if (typeof value === "number") return "int";
  if (value instanceof Encoded) return "Encoded";
  return "dtype" in value ? "Tensor" : "tuple";
}

function isWithin(shape: Shape, most: Shape): boolean {
  return shape.length <= most.length && shape.every((length, place) => length <= (most[place] ?? 0));
}

/** A cursor over the buffer that refuses to read past its end. */
class Reader {
  private readonly view: DataView;
  private at = 0;

  constructor(private readonly data: Uint8Array) {
    this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  }

  get left(): number {
    return this.data.length - this.at;
  }

  /** The next bytes, as a view. */
  bytes(count: number, name: string): Uint8Array {
    const at = this.passed(count, name);
    return this.data.subarray(at, at + count);
  }

  private passed(count: number, name: string): number {
    if (count > this.left) throw new PeerError(name, `${this.left} bytes are left, ${count} are needed`);
    const at = this.at;
    this.at += count;
    return at;
  }

  field(name: string, most: Most): Value {
    const code = this.view.getUint8(this.passed(1, name));
    if (code === NONE) return null;
    if (code === INTEGER) return this.integer(name);
    if (code === TENSOR) return this.tensor(name, most);
    if (code === TENSORS) return this.tensors(name, most);
    if (code === ENCODED) return new Encoded(this.tensors(name, most));
    throw new PeerError(name, `field type ${code}`, `0 to ${ENCODED} are allowed`);
  }

  private integer(name: string): number {
    const value = this.view.getBigInt64(this.passed(8, name), true);
    const number = Number(value);
    if (!Number.isSafeInteger(number)) throw new PeerError(name, `${value}`, "less than 2^53 is allowed");
    return number;
  }

  private tensors(name: string, most: Most): Tensor[] {
    const count = this.view.getUint32(this.passed(4, name), true);
    const announced = `${count} tensors announced`;
    if (count > MAX_TENSORS) throw new PeerError(name, `${announced}, at most ${MAX_TENSORS} are allowed`);
    // A tensor takes at least two bytes.
    if (count * 2 > this.left) throw new PeerError(name, `${announced}, but only ${this.left} bytes are left`);
    if (count > most.tensors) throw new PeerError(name, `${announced}, at most ${most.tensors} are allowed`);
    const tensors: Tensor[] = [];
    let left = most;
    for (let place = 0; place < count; place += 1) {
      const each = this.tensor(`${name}[${place}]`, left);
      tensors.push(each);
      left = new Most(left.bytes - each.data.byteLength);
    }
    return tensors;
  }

  private tensor(name: string, most: Most): Tensor {
    const form = this.passed(2, name);
    const code = this.view.getUint8(form);
    const dimensions = this.view.getUint8(form + 1);
    const dtype = DTYPES[code];
    if (dtype === undefined) throw new PeerError(name, `dtype ${code}`, `0 to ${DTYPES.length - 1} are allowed`);
    if (dimensions > MAX_DIMENSIONS) {
      throw new PeerError(name, `${dimensions} dimensions`, `at most ${MAX_DIMENSIONS} are allowed`);
    }
    const lengths = this.passed(4 * dimensions, name);
    const shape = Array.from({ length: dimensions }, (_, place) => this.view.getUint32(lengths + 4 * place, true));
    // A product of eight lengths is below 2^256, which a number holds well enough to be compared.
    const size = sizeOf(shape) * bytesEach(dtype);
    this.checkSize(name, dtype, shape, size, most);
    const start = this.data.byteOffset + this.passed(size, name);
    const raw = new Uint8Array(this.data.buffer.slice(start, start + size) as ArrayBuffer);
    if (dtype === "bool" && raw.some((byte) => byte > 1)) {
      throw new PeerError(name, "a byte other than 0 and 1 came in a bool tensor");
    }
    return ofBytes(dtype, shape, raw.buffer);
  }

  private checkSize(name: string, dtype: Dtype, shape: Shape, size: number, most: Most): void {
    const came = `${dtype} ${shown(shape)}`;
    if (size > this.left) throw new PeerError(name, `${came} needs ${size} bytes, but only ${this.left} are left`);
    if (size > most.bytes) throw new PeerError(name, came, `at most ${most.bytes} bytes are allowed`);
    if (most.shape !== null && !isWithin(shape, most.shape)) {
      throw new PeerError(name, came, `up to ${shown(most.shape)} is allowed`);
    }
    if (size === 0 && sizeOf(shape.map((length) => Math.max(length, 1))) > MAX_BYTES) {
      throw new PeerError(name, `empty shape ${shown(shape)}`, `other lengths up to ${MAX_BYTES} in all are allowed`);
    }
  }
}
