/**
 * Estimators of a slope: the derivative of ⟨λ, z(θ)⟩ along a seeded direction u, from forward passes alone.
 *
 * * `forward`: ⟨λ, z(θ+μu) − z(θ)⟩ / μ, one pass a direction beside the base.
 * * `central`: ⟨λ, z(θ+μu) − z(θ−μu)⟩ / 2μ, two passes.
 */

import { Perturbed } from "./directions";
import type { Parameters } from "./replay";
import type { Seeds } from "./seeds";
import { type Tensor, sizeOf } from "./tensor";

/** The name of a parameter of θ → its values. */
export type Weight = (name: string) => Tensor<"float32">;
/** A forward pass, which asks for θ's values by name when it is about to use them. */
export type Run = (weight: Weight) => Promise<Tensor<"float32">>;

/** How a device takes its slopes. */
export class Probe {
  /**
   * `directions`: how many slopes a step takes, one for each seeded direction. `radius`: μ, how far weights are moved;
   * null for the default, see `settled`. `clip`: bound on the size of each sample's slope; null for no bound.
   */
  constructor(
    readonly directions: number,
    readonly radius: number | null = null,
    readonly estimator: "forward" | "central" = "forward",
    readonly clip: number | null = null,
  ) {}

  /** With a radius: where none was chosen, the default for these parameters. */
  settled(parameters: Parameters): Probe {
    return new Probe(this.directions, this.radius ?? defaultRadius(parameters), this.estimator, this.clip);
  }

  /** The radius of a probe that is settled; RangeError of another. */
  get moved(): number {
    if (this.radius === null) throw new RangeError("a probe is settled before it moves anything");
    return this.radius;
  }
}

/** The default of μ for the parameters that directions move: 1e-4, or less for millions of them. */
export function defaultRadius(parameters: Parameters): number {
  const dimension = [...parameters.values()].reduce((sum, each) => sum + sizeOf(each.shape), 0);
  return Math.min(1e-4, 0.25 / Math.sqrt(Math.max(dimension, 1)));
}

/** What a slope is the slope of: ⟨λ, z(θ)⟩ as a function of θ. */
export class Cotangent {
  /**
   * `of`: λ, the gradient of the loss with respect to z: (B, …), or (N, H) for the N tokens of B texts. `base`: ⟨λ,
   * z(θ)⟩ of the unperturbed z, sample by sample, (B). `lengths`: of the texts, (B); null where each row is a sample.
   */
  constructor(
    readonly of: Tensor<"float32">,
    readonly base: Float64Array,
    readonly lengths: readonly number[] | null = null,
  ) {}

  /** Of an unperturbed result, which need not be kept while the parameters are probed. */
  static at(of: Tensor<"float32">, result: Tensor<"float32">, lengths: readonly number[] | null = null): Cotangent {
    return new Cotangent(of, inner(of, result, lengths), lengths);
  }
}

/**
 * Measures how ⟨λ, run(weight)⟩ changes along each direction: one slope a seed.
 *
 * `theta`: name → values, never changed; `measured`: those of them that directions move.
 */
export async function estimate(
  run: Run,
  theta: Parameters,
  measured: Parameters,
  cotangent: Cotangent,
  seeds: Seeds,
  probe: Probe,
): Promise<Float64Array> {
  const moved = async (place: number, by: number): Promise<Float64Array> =>
    inner(cotangent.of, await run(perturbed(theta, measured, seeds, place, by)), cotangent.lengths);

  const radius = probe.moved;
  const isForward = probe.estimator === "forward";
  const slopes = new Float64Array(seeds.length);
  for (let place = 0; place < seeds.length; place += 1) {
    const ahead = await moved(place, radius);
    const behind = isForward ? cotangent.base : await moved(place, -radius);
    const apart = isForward ? radius : 2 * radius;
    const each = ahead.map((value, sample) => (value - (behind[sample] as number)) / apart);
    slopes[place] = clipped(each, probe.clip).reduce((sum, value) => sum + value, 0);
  }
  return slopes;
}

/** θ + `radius`·u of the direction at `place`; a negative radius is the other side, what isn't measured stays. */
export function perturbed(
  theta: Parameters,
  measured: Parameters,
  seeds: Seeds,
  place: number,
  radius: number,
): Weight {
  const moved = new Perturbed(measured, seeds, place, radius);
  return (name) => {
    if (moved.has(name)) return moved.of(name);
    const values = theta.get(name);
    if (values === undefined) throw new RangeError(`there is no parameter ${name}`);
    return values;
  };
}

/** (B) parts of the slope of a batch's mean loss, with each sample's own slope bounded by `clip`. */
function clipped(slopes: Float64Array, clip: number | null): Float64Array {
  if (clip === null) return slopes;
  const bound = clip / slopes.length; // a sample's part is its own slope over the number of samples
  return slopes.map((slope) => Math.min(Math.max(slope, -bound), bound));
}

/**
 * ⟨λ, z⟩ of each sample: (B), from (B, …); or from (N, H) of the tokens of texts of these lengths (B).
 *
 * Summed in float64, where the difference of two such sums is as exact as the sum of differences: what is left is the
 * rounding of z itself. So a device need not keep z beside λ while it probes.
 */
export function inner(
  cotangent: Tensor<"float32">,
  result: Tensor<"float32">,
  lengths: readonly number[] | null = null,
): Float64Array {
  const rows = cotangent.shape[0] as number;
  const width = sizeOf(cotangent.shape.slice(1));
  const counts = lengths ?? Array.from({ length: rows }, () => 1);
  const sums = new Float64Array(counts.length);
  let at = 0;
  counts.forEach((count, sample) => {
    const stop = at + count * width;
    sums[sample] = product(cotangent.data.subarray(at, stop), result.data.subarray(at, stop));
    at = stop;
  });
  return sums;
}

function product(one: Float32Array, other: Float32Array): number {
  let sum = 0;
  for (let at = 0; at < one.length; at += 1) sum += (one[at] as number) * (other[at] as number);
  return sum;
}
