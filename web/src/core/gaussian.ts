/** The table of a Gaussian direction: quantiles of the normal law (Wichura, Algorithm AS 241, 1988), in float64. */

import { fsum } from "./sums";

const HALF = 32768;
/** Above this distance of the probability from a half, the quantile is that of a tail. */
const MIDDLE = 0.425;
/** Numerators and denominators of AS 241's rational functions, the highest power first: middle, tail, far tail. */
const RATIONAL = [
  [
    [
      2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
      1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.387132872796366608,
    ],
    [
      5.226495278852854561e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
      5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1,
    ],
  ],
  [
    [
      7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
      3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734,
    ],
    [
      1.05075007164441684324e-9, 5.475938084995344946e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
      6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1,
    ],
  ],
] as const;

let made: Float32Array<ArrayBuffer> | null = null;

/** (65,536) float32: quantiles of the normal law at the mid-points, scaled to unit variance. */
export function gaussianTable(): Float32Array<ArrayBuffer> {
  made ??= table();
  return made;
}

function table(): Float32Array<ArrayBuffer> {
  const half = Float64Array.from({ length: HALF }, (_, place) => quantile((place + 0.5) / (2 * HALF)));
  const scale = 1 / Math.sqrt(fsum(half.map((value) => value * value)) / HALF);
  const values = new Float32Array(2 * HALF);
  half.forEach((value, place) => {
    values[place] = value * scale;
    values[2 * HALF - 1 - place] = -value * scale;
  });
  return values;
}

/** The quantile of a probability below a half, and not below e^-25, where AS 241 goes on with a third function. */
function quantile(p: number): number {
  const off = p - 0.5;
  if (Math.abs(off) <= MIDDLE) {
    const [over, under] = polynomials(0, 0.180625 - off * off);
    return (over * off) / under;
  }
  const [over, under] = polynomials(1, Math.sqrt(-logarithm(p)) - 1.6);
  return -(over / under);
}

function polynomials(which: 0 | 1, x: number): [number, number] {
  const [over, under] = RATIONAL[which];
  return [horner(over, x), horner(under, x)];
}

function horner(factors: readonly number[], x: number): number {
  return factors.reduce((sum, factor) => sum * x + factor, 0);
}

/**
 * The natural logarithm of a number from 2^-20 to 1, by sums and products alone.
 *
 * `Math.log` may have another last bit from engine to engine, and the table must have the same bits everywhere.
 */
function logarithm(p: number): number {
  let [power, rest] = [0, p];
  while (rest < Math.SQRT1_2) {
    rest *= 2;
    power -= 1;
  }
  const t = (rest - 1) / (rest + 1); // log(rest) = 2 · (t + t³/3 + t⁵/5 + …), and |t| < 0.172
  let sum = 0;
  for (let odd = 25; odd > 1; odd -= 2) sum = (sum + 1 / odd) * t * t;
  return power * Math.LN2 + 2 * (t + sum * t);
}
