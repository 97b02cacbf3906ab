/**
 * NumPy's random generator on Philox4x64-10, as far as the order of batches and a sketch's signs need it.
 *
 * The streams are those of `numpy.random.Generator(numpy.random.Philox(…))` and of its `SeedSequence` (O'Neill's
 * seed_seq_fe); a permutation is its shuffle of the numbers from 0 on.
 */

const MASK = 0xffffffffffffffffn;
const HALF = 0xffffffffn;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n] as const;
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn] as const;
const ROUNDS = 10;

/** The stream of one key. */
export class Random {
  private block = 0n;
  private readonly words: number[] = [];

  /** `key`: two numbers of 64 bits. */
  constructor(private readonly key: readonly [bigint, bigint]) {}

  /** The stream of a `SeedSequence` of these numbers, 0 or more each. */
  static of(...entropy: readonly (number | bigint)[]): Random {
    return new Random(keyOf(entropy.flatMap(wordsOf)));
  }

  /** `integers(0, count)`, count below 2^32: Lemire, "Fast Random Integer Generation in an Interval" (2019). */
  below(count: number): number {
    let product = BigInt(this.word()) * BigInt(count);
    const threshold = BigInt(2 ** 32 % count);
    while ((product & HALF) < threshold) product = BigInt(this.word()) * BigInt(count);
    return Number(product >> 32n);
  }

  /** A place of a shuffle, from 0 to `most`, which is below 2^32: the first draw of as many bits that is no larger. */
  private upTo(most: number): number {
    if (most === 0) return 0;
    const mask = 0xffffffff >>> Math.clz32(most);
    let drawn = (this.word() & mask) >>> 0;
    while (drawn > most) drawn = (this.word() & mask) >>> 0;
    return drawn;
  }

  /** The numbers from 0 to `count` - 1 in a random order. */
  permutation(count: number): number[] {
    const order = Array.from({ length: count }, (_, place) => place);
    for (let last = count - 1; last > 0; last -= 1) {
      const other = this.upTo(last);
      [order[last], order[other]] = [order[other] as number, order[last] as number];
    }
    return order;
  }

  /** The next 32 bits: a block has four numbers of 64, the low half of each comes first. */
  private word(): number {
    if (this.words.length === 0) this.draw();
    return this.words.pop() as number;
  }

  private draw(): void {
    this.block += 1n; // NumPy counts before it draws
    let [c0, c1, c2, c3] = [this.block & MASK, this.block >> 64n, 0n, 0n];
    let [k0, k1] = this.key;
    for (let round = 0; round < ROUNDS; round += 1) {
      const [a, b] = [MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2];
      [c0, c1, c2, c3] = [(b >> 64n) ^ c1 ^ k0, b & MASK, (a >> 64n) ^ c3 ^ k1, a & MASK];
      k0 = (k0 + WEYL[0]) & MASK;
      k1 = (k1 + WEYL[1]) & MASK;
    }
    for (const drawn of [c3, c2, c1, c0]) this.words.push(Number(drawn >> 32n), Number(drawn & HALF));
  }
}

/** A whole number in words of 32 bits, the lowest first. */
function wordsOf(number: number | bigint): number[] {
  const found: number[] = [];
  for (let rest = BigInt(number); rest > 0n || found.length === 0; rest >>= 32n) found.push(Number(rest & HALF));
  return found;
}

const POOL = 4;

/** The key that a `SeedSequence` of these words gives Philox. */
function keyOf(entropy: readonly number[]): [bigint, bigint] {
  const mixed = hasher(0x43b0d7e5, 0x931e8875);
  const pool = Array.from({ length: POOL }, (_, place) => mixed(entropy[place] ?? 0));
  for (let from = 0; from < Math.max(POOL, entropy.length); from += 1) {
    for (let to = 0; to < POOL; to += 1) {
      if (from !== to) pool[to] = mix(pool[to] as number, mixed((from < POOL ? pool : entropy)[from] as number));
    }
  }
  const drawn = hasher(0x8b51f9dd, 0x58f38ded);
  const [a, b, c, d] = pool.map((word) => BigInt(drawn(word))) as [bigint, bigint, bigint, bigint];
  return [a | (b << 32n), c | (d << 32n)];
}

/** A hash of words, in which each is mixed with another constant than the one before it. */
function hasher(start: number, factor: number): (word: number) => number {
  let constant = start;
  return (word) => {
    const opened = word ^ constant;
    constant = Math.imul(constant, factor);
    const value = Math.imul(opened, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
}

function mix(one: number, other: number): number {
  const value = (Math.imul(0xca01f9dd, one) - Math.imul(0x4973f715, other)) | 0;
  return (value ^ (value >>> 16)) >>> 0;
}
