/** Sums of float64 that are rounded once, whatever their order (Shewchuk, 1997), as Python's `math.fsum` has them. */

/** The sum of finite numbers. */
export function fsum(values: Iterable<number>): number {
  const partials: number[] = []; // none overlaps another, the smallest first
  for (const value of values) {
    let x = value;
    let kept = 0;
    for (const partial of partials) {
      let y = partial;
      if (Math.abs(x) < Math.abs(y)) [x, y] = [y, x];
      const high = x + y;
      const low = y - (high - x);
      if (low !== 0) {
        partials[kept] = low;
        kept += 1;
      }
      x = high;
    }
    partials.length = kept;
    partials.push(x);
  }
  return rounded(partials);
}

/** The sum of partials. What is left below the first two that don't add up exactly decides a tie. */
function rounded(partials: number[]): number {
  let high = partials.pop() ?? 0;
  let low = 0;
  while (partials.length > 0 && low === 0) {
    const [x, y] = [high, partials.pop() as number];
    high = x + y;
    low = y - (high - x);
  }
  const below = partials.at(-1) ?? 0;
  if ((low < 0 && below < 0) || (low > 0 && below > 0)) {
    const twice = 2 * low;
    const moved = high + twice;
    if (moved - high === twice) return moved;
  }
  return high;
}
