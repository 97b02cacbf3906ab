/** bfloat16 and float16, whose values JavaScript has as bits alone: widened to float32, and rounded to. */

import { type Tensor, tensor } from "./tensor";

const ONE = new Float32Array(1);
const BITS = new Uint32Array(ONE.buffer);

/** Rounds float32 to the nearest bfloat16, of two alike to the one whose last bit is 0. No NaN may come. */
export function toBfloat16(values: Tensor<"float32">): Tensor<"bfloat16"> {
  const bits = new Uint32Array(values.data.buffer, values.data.byteOffset, values.data.length);
  const halves = new Uint16Array(bits.length);
  for (let at = 0; at < bits.length; at += 1) {
    const one = bits[at] as number;
    halves[at] = (one + ((one >>> 16) & 1) + 0x7fff) >>> 16;
  }
  return tensor("bfloat16", values.shape, halves);
}

/** Rounds float32 to the nearest float16, of two alike to the one whose last bit is 0. No NaN may come. */
export function toFloat16(values: Tensor<"float32">): Tensor<"float16"> {
  return tensor("float16", values.shape, Uint16Array.from(values.data, float16Of));
}

function float16Of(value: number): number {
  ONE[0] = value;
  const bits = BITS[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const size = bits & 0x7fffffff;
  if (size >= 0x477ff000) return sign | 0x7c00; // rounds to more than 65,504
  if (size >= 0x38800000) return sign | ((size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13);
  // Below 2^-14 a float16 counts in steps of 2^-24; a sum with 1.5 · 2^52 rounds to whole numbers, ties to even.
  return sign | (Math.abs(value) * 2 ** 24 + 1.5 * 2 ** 52 - 1.5 * 2 ** 52);
}

function fromBfloat16(values: Tensor<"bfloat16">): Tensor<"float32"> {
  const bits = Uint32Array.from(values.data, (half) => half << 16);
  return tensor("float32", values.shape, new Float32Array(bits.buffer));
}

function fromFloat16(values: Tensor<"float16">): Tensor<"float32"> {
  return tensor("float32", values.shape, Float32Array.from(values.data, ofFloat16));
}

function ofFloat16(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 31;
  const fraction = half & 0x3ff;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Floats of any width as float32; those that have it already are not copied. RangeError for whole numbers. */
export function widened(values: Tensor): Tensor<"float32"> {
  if (values.dtype === "float32") return values;
  if (values.dtype === "bfloat16") return fromBfloat16(values);
  if (values.dtype === "float16") return fromFloat16(values);
  if (values.dtype === "float64") return tensor("float32", values.shape, Float32Array.from(values.data));
  throw new RangeError(`${values.dtype} is no float`);
}
