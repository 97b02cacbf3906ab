/**
 * How an agreed gradient estimate moves parameters: SGD, its sign, momentum or AdamW, in float32 and to the bit.
 *
 * JavaScript reckons in float64. Rounding each product, sum, quotient and root to float32 gives what float32 itself
 * would: float64 has more than twice its digits and two, so nothing is rounded twice to another effect. What multiplies
 * arrays is reckoned in float64 and rounded to float32 once (docs/protocol.md).
 */

import { fsum } from "./sums";

export type Schedule = (step: number) => number;
export type ScheduleShape = "constant" | "linear" | "cosine" | "multistep";

/** The schedule that leaves the learning rate as it is. */
export const constant: Schedule = () => 1;

/** The steps from which on a multistep schedule's factor is `gamma` times what it was before, in rising order. */
export interface Falls {
  readonly milestones: readonly number[];
  readonly gamma: number;
}

const NEVER: Falls = { milestones: [], gamma: 0.1 };

/**
 * Step from 0 on → factor of the learning rate.
 *
 * It rises in a line over the first `warmup` steps, and then stays at 1, or falls to 0 at step `total` in a line or a
 * half cosine, or by a factor at each milestone.
 */
export function schedule(shape: ScheduleShape, warmup: number, total: number, falls: Falls = NEVER): Schedule {
  return (step) => {
    if (step < warmup) return (step + 1) / (warmup + 1);
    if (shape === "constant") return 1;
    if (shape === "multistep") {
      return falls.milestones.reduce((factor, milestone) => (step >= milestone ? factor * falls.gamma : factor), 1);
    }
    const gone = Math.min((step - warmup) / Math.max(total - warmup, 1), 1);
    return shape === "linear" ? 1 - gone : (1 + Math.cos(Math.PI * gone)) / 2;
  };
}

export type Optimizer = "sgd" | "momentum" | "adamw" | "sign";

const MOMENTS: Readonly<Record<Optimizer, readonly string[]>> = {
  sgd: [],
  momentum: ["velocity"],
  adamw: ["mean", "square"],
  sign: [],
};

/** The settings of `bottom` in a recipe that say how θ moves. */
export interface RuleSettings {
  readonly optimizer?: Optimizer;
  readonly lr?: number;
  readonly momentum?: number;
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  readonly weightDecay?: number;
  readonly normalize?: boolean;
  readonly clip?: number | null;
}

/** How an agreed gradient estimate moves the parameters. */
export class UpdateRule {
  readonly optimizer: Optimizer;
  readonly lr: number;
  private readonly settings: Required<RuleSettings>;

  constructor(settings: RuleSettings = {}) {
    this.settings = {
      optimizer: "sgd",
      lr: 1e-3,
      momentum: 0.9,
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay: 0,
      normalize: false,
      clip: null,
      ...settings,
    };
    this.optimizer = this.settings.optimizer;
    this.lr = this.settings.lr;
  }

  /** Names of the state arrays that one parameter needs. */
  moments(): readonly string[] {
    return MOMENTS[this.optimizer];
  }

  /**
   * What each direction is multiplied by: (P) slopes → (P) coefficients of ĝ, in float64.
   *
   * `dimension`: how many values the parameters have.
   */
  coefficients(slopes: readonly number[], dimension: number): number[] {
    const { normalize, clip } = this.settings;
    const norm = Math.sqrt(fsum(slopes.map((slope) => slope * slope)));
    if (normalize) return slopes.map((slope) => (norm > 0 ? slope / norm : 0));
    let scale = 1 / slopes.length;
    const length = norm * scale * Math.sqrt(dimension);
    if (clip !== null && length > clip) scale *= clip / length;
    return slopes.map((slope) => slope * scale);
  }

  /** What an exact gradient (d) is multiplied by, so that `normalize` and `clip` mean what they mean for ĝ. */
  exactScale(gradient: Float32Array): number {
    const { normalize, clip } = this.settings;
    if (!normalize && clip === null) return 1;
    const norm = Math.sqrt(fsum(squares(gradient)));
    if (normalize) return norm > 0 ? Math.sqrt(gradient.length) / norm : 0;
    return clip !== null && norm > clip ? clip / norm : 1;
  }

  /** Step number `count`, from 1 on, of float32 values and moments, in place; `gradient` is used up. */
  step(
    values: Float32Array,
    gradient: Float32Array,
    moments: readonly Float32Array[],
    count: number,
    lr: number,
  ): void {
    const rate = Math.fround(lr);
    if (this.settings.weightDecay) scaleBy(values, Math.fround(1 - lr * this.settings.weightDecay));
    const [first, second] = moments as [Float32Array, Float32Array]; // as many as the rule has
    if (this.optimizer === "adamw") {
      this.adamw(gradient, first, second, count);
    } else if (this.optimizer === "momentum") {
      this.gather(gradient, first);
    } else if (this.optimizer === "sign") {
      for (let at = 0; at < gradient.length; at += 1) gradient[at] = signOf(gradient[at] as number);
    }
    for (let at = 0; at < values.length; at += 1) {
      values[at] = (values[at] as number) - Math.fround((gradient[at] as number) * rate);
    }
  }

  /** Momentum: v ← v · m, v ← v + ĝ; leaves v in the gradient's place. */
  private gather(gradient: Float32Array, velocity: Float32Array): void {
    const kept = Math.fround(this.settings.momentum);
    for (let at = 0; at < gradient.length; at += 1) {
      velocity[at] = Math.fround((velocity[at] as number) * kept) + (gradient[at] as number);
      gradient[at] = velocity[at] as number;
    }
  }

  /** AdamW's moments; leaves (m · c₁) / q in the gradient's place. */
  private adamw(gradient: Float32Array, mean: Float32Array, square: Float32Array, count: number): void {
    const [beta1, beta2] = this.settings.betas;
    const [kept1, new1] = [Math.fround(beta1), Math.fround(1 - beta1)];
    const [kept2, new2] = [Math.fround(beta2), Math.fround(1 - beta2)];
    const [c1, c2] = [Math.fround(1 / (1 - beta1 ** count)), Math.fround(1 / (1 - beta2 ** count))];
    const eps = Math.fround(this.settings.eps);
    for (let at = 0; at < gradient.length; at += 1) {
      const g = gradient[at] as number;
      const m = Math.fround(Math.fround((mean[at] as number) * kept1) + Math.fround(g * new1));
      const s = Math.fround(Math.fround((square[at] as number) * kept2) + Math.fround(Math.fround(g * g) * new2));
      const root = Math.fround(Math.fround(Math.sqrt(Math.fround(s * c2))) + eps);
      mean[at] = m;
      square[at] = s;
      gradient[at] = Math.fround(m * c1) / root;
    }
  }
}

function* squares(values: Float32Array): Generator<number> {
  for (const value of values) yield value * value;
}

function scaleBy(values: Float32Array, factor: number): void {
  for (let at = 0; at < values.length; at += 1) values[at] = (values[at] as number) * factor;
}

/** 0 also for what is no number. */
function signOf(value: number): number {
  return value > 0 ? 1 : value < 0 ? -1 : 0;
}
