/** Messages against the recorded bytes, and what is no message: an error of one kind, and no large allocation. */

import { bytesToHex } from "@noble/hashes/utils.js";
import { afterEach, describe, expect, it, vi } from "vitest";

import { PeerError } from "../../src/core/errors";
import {
  CODES,
  Encoded,
  FIELDS,
  type Message,
  type Role,
  Slopes,
  type Value,
  made,
  ofParts,
} from "../../src/core/messages";
import { type Dtype, type Tensor, bytesEach, ofBytes, sizeOf, tensor } from "../../src/core/tensor";
import { Most, mostBytes, pack, unpack } from "../../src/core/wire";
import { Dice } from "./dice";
import { bytes, equal, message, vectors } from "./vectors";

const WIRE = vectors("wire");
const SENT: Uint8Array[] = WIRE.messages.map((kase: { hex: string }) => bytes(kase.hex));
const FLOATS: Dtype[] = ["float32", "float64", "float16", "bfloat16"];
const DTYPES: Dtype[] = [...FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool"];
const MOST = {
  activations: new Most(200, 4),
  gradient: new Most(80, 1, [5, 4]),
  slopes: new Most(64),
  weights: new Most(100, 3),
};

type Recorded = [number, number, number[] | null];

function most(recorded: Record<string, Recorded> | null): Partial<Record<Role, Most>> | null {
  if (recorded === null) return null;
  return Object.fromEntries(Object.entries(recorded).map(([role, each]) => [role, new Most(...each)]));
}

describe("vectors", () => {
  it.each<{ name: string; hex: string }>(WIRE.messages)("$name", (kase) => {
    const given = message(kase as never);
    expect(bytesToHex(pack(given))).toBe(kase.hex);
    expect(equal(unpack(bytes(kase.hex)), given)).toBe(true);
  });

  it.each<{ name: string; hex: string; field: string; most: Record<string, Recorded> | null }>(WIRE.refused)(
    "is no message: $name",
    (kase) => {
      expect(wrongField(bytes(kase.hex), most(kase.most))).toBe(kase.field);
    },
  );
});

function wrongField(data: Uint8Array, bound: Partial<Record<Role, Most>> | null): string | null {
  try {
    unpack(data, bound);
  } catch (error) {
    if (error instanceof PeerError) return error.field;
    throw error;
  }
  return null;
}

function drawn(dice: Dice): Tensor {
  const shape = Array.from({ length: dice.below(5) }, () => dice.below(5));
  const dtype = dice.choice(DTYPES);
  return ofBytes(dtype, shape, dice.bytes(sizeOf(shape) * bytesEach(dtype), dtype === "bool" ? 2 : 256).buffer);
}

function drawnMessage(dice: Dice): Message {
  const drawnValue = {
    none: (): Value => null,
    int: (): Value => dice.between(-(2 ** 30), 2 ** 30) * 2 ** 20,
    Tensor: (): Value => drawn(dice),
    tuple: (): Value => Array.from({ length: dice.below(4) }, () => drawn(dice)),
    Encoded: (): Value => new Encoded(Array.from({ length: dice.below(4) }, () => drawn(dice))),
  };
  return ofParts(
    dice.choice(CODES).map((kind) => made(kind, FIELDS[kind].map((field) => drawnValue[dice.choice(field.types)]()))),
  );
}

it("reads what it wrote, whatever it was", () => {
  const dice = new Dice(1);
  for (let turn = 0; turn < 500; turn += 1) {
    const said = drawnMessage(dice);
    expect(equal(unpack(pack(said)), said)).toBe(true);
  }
});

it("reads a message that begins in the middle of a buffer", () => {
  const [data] = SENT.slice(4);
  const shifted = new Uint8Array(1 + (data as Uint8Array).length);
  shifted.set(data as Uint8Array, 1);
  expect(bytesToHex(pack(unpack(shifted.subarray(1))))).toBe(bytesToHex(data as Uint8Array));
});

it("refuses numbers that no count has", () => {
  const data = pack(new Slopes(0, tensor("float32", [0], new Float32Array())));
  data.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], 5);
  expect(wrongField(data, null)).toBe("Slopes.step");
});

it("says how long the longest message is", () => {
  // MiddleActivations: the header, activations and weights.
  expect(mostBytes(MOST)).toBe(4 + (5 + 4 * 34 + 200) + (5 + 3 * 34 + 100));
});

/** A message, of which a few bytes are others, are missing, or are twice there. */
function mutated(dice: Dice): Uint8Array {
  let data = [...dice.choice(SENT)];
  for (let turn = dice.between(1, 4); turn > 0; turn -= 1) {
    const place = dice.below(data.length || 1);
    const how = dice.below(5);
    if (how === 0) data.splice(place, 1, dice.below(256));
    if (how === 1) data.splice(place, 4, ...dice.choice([[255, 255, 255, 255], [0, 0, 0, 0], [0, 0, 0, 128]]));
    if (how === 2) data.splice(place, dice.between(1, 8));
    if (how === 3) data.splice(place, 0, ...data.slice(place, place + dice.between(1, 8)));
    if (how === 4) data = [...data.slice(0, place), ...[...dice.choice(SENT)].slice(place)];
  }
  return Uint8Array.from(data);
}

describe("hostile bytes", () => {
  afterEach(() => vi.restoreAllMocks());

  it("are a message or one error", () => {
    const dice = new Dice(17);
    let refused = 0;
    for (let turn = 0; turn < 5000; turn += 1) {
      const data = mutated(dice);
      for (const bound of [null, MOST]) {
        if (wrongField(data, bound) === null) expect(bytesToHex(pack(unpack(data, bound)))).toBe(bytesToHex(data));
        else refused += 1;
      }
    }
    expect(refused).toBeGreaterThan(5000);
  });

  it("cut short anywhere are one error", () => {
    for (const data of SENT) {
      for (let length = 0; length < data.length; length += 1) {
        expect(wrongField(data.subarray(0, length), null)).not.toBeNull();
      }
    }
  });

  it("get no memory for what they announce", () => {
    const slices = vi.spyOn(ArrayBuffer.prototype, "slice");
    const dice = new Dice(3);
    const huge = [
      "48420204 02 00 02 ffffff7f ffffff7f", // a tensor of 2^64 bytes
      "48420204 02 00 01 00000010", // of a gigabyte
      "48420207 03 ffffffff", // 2^32 tensors
      "48420207 03 00000100", // 2^16 tensors
      "48420204 02 00 08 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff",
    ].map((hex) => Uint8Array.from([...bytes(hex.replaceAll(" ", "")), ...dice.bytes(100)]));
    for (const data of [...huge, ...Array.from({ length: 2000 }, () => mutated(dice))]) {
      const before = slices.mock.results.length;
      wrongField(data, null);
      const taken = slices.mock.results.slice(before).map((each) => (each.value as ArrayBuffer).byteLength);
      expect(taken.reduce((sum, size) => sum + size, 0)).toBeLessThanOrEqual(data.length);
    }
    for (const data of huge) expect(wrongField(data, null)).not.toBeNull();
  });
});
