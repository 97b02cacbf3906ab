/** Bytes that go either way, by what is sent: values under their role, and the rest of a message as `framing`. */

import { Encoded, FIELDS, type Message, type Role, type Value, partsOf, valuesOf } from "../core/messages";
import type { Bytes } from "./events";

export type Way = "up" | "down";

export class Tally {
  readonly up: Bytes = {};
  readonly down: Bytes = {};

  /** Counts a message that has so many bytes in all. */
  count(way: Way, message: Message, bytes: number): void {
    let left = bytes;
    for (const part of partsOf(message)) {
      for (const [place, value] of valuesOf(part).entries()) {
        const size = sizeOfValue(value);
        const { role } = FIELDS[part.kind][place] as { role: Role };
        if (size) this.add(way, part.kind === "Exact" ? "exact" : role, size);
        left -= size;
      }
    }
    this.add(way, "framing", left);
  }

  private add(way: Way, name: string, bytes: number): void {
    this[way][name] = (this[way][name] ?? 0) + bytes;
  }
}

/** Bytes of values; a whole number is eight. */
function sizeOfValue(value: Value): number {
  if (value === null) return 0;
  if (typeof value === "number") return 8;
  const tensors = value instanceof Encoded ? value.parts : "dtype" in value ? [value] : value;
  return tensors.reduce((sum, each) => sum + each.data.byteLength, 0);
}
