/**
 * JSON as a header of the protocol has it, read more strictly than by `JSON.parse`: a key twice is an error, and 3.0 is
 * not 3. Whole numbers beyond 2^53 keep their digits.
 */

export type Json = null | boolean | number | bigint | string | Fraction | Json[] | { [key: string]: Json };
/** What JSON's numbers are for everybody who need not tell 3.0 from 3. */
export type Plain = null | boolean | number | bigint | string | Plain[] | { [key: string]: Plain };

/** A number that was written with a fraction or an exponent. */
export class Fraction {
  constructor(readonly value: number) {}
}

/** What no JSON is. */
export class JsonError extends Error {}

const DEEPEST = 500;
const LONGEST = 4000; // digits
const BLANK = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
// Each of its parts can match in one way alone, so that what has no end is found in time that grows with its length.
const TEXT = /"[^"\\\u0000-\u001f]*(?:\\(?:["\\/bfnrt]|u[\da-fA-F]{4})[^"\\\u0000-\u001f]*)*"/y;
const WORD = /true|false|null/y;

/** Reads a text; JsonError says what is wrong with it. */
export function readJson(text: string): Json {
  const reader = new Reader(text);
  const told = reader.value(0);
  reader.end();
  return told;
}

/** The same with fractions as numbers. */
export function plain(told: Json): Plain {
  if (told instanceof Fraction) return told.value;
  if (Array.isArray(told)) return told.map(plain);
  if (!isObject(told)) return told;
  return Object.fromEntries(Object.entries(told).map(([key, value]) => [key, plain(value)]));
}

export function isObject(told: Json): told is { [key: string]: Json } {
  return typeof told === "object" && told !== null && !Array.isArray(told) && !(told instanceof Fraction);
}

class Reader {
  private at = 0;

  constructor(private readonly text: string) {}

  value(depth: number): Json {
    if (depth > DEEPEST) throw new JsonError("it is nested too deep");
    this.take(BLANK);
    const next = this.text[this.at];
    if (next === "{") return this.object(depth);
    if (next === "[") return this.array(depth);
    if (next === '"') return this.string();
    const word = this.take(WORD);
    if (word !== null) return word[0] === "null" ? null : word[0] === "true";
    return this.number();
  }

  end(): void {
    this.take(BLANK);
    if (this.at < this.text.length) throw this.wrong();
  }

  private object(depth: number): Json {
    const entries = new Map<string, Json>();
    this.listed("}", () => {
      this.take(BLANK);
      const key = this.string();
      this.expect(":");
      if (entries.has(key)) throw new JsonError("an object names a key twice");
      entries.set(key, this.value(depth + 1));
    });
    return Object.fromEntries(entries); // also of a key such as __proto__
  }

  private array(depth: number): Json {
    const values: Json[] = [];
    this.listed("]", () => values.push(this.value(depth + 1)));
    return values;
  }

  /** What stands between the bracket here and the one that closes it. */
  private listed(close: string, read: () => void): void {
    this.at += 1;
    this.take(BLANK);
    if (this.text[this.at] === close) {
      this.at += 1;
      return;
    }
    for (;;) {
      read();
      this.take(BLANK);
      if (this.text[this.at] === close) break;
      this.expect(",");
    }
    this.at += 1;
  }

  private string(): string {
    const found = this.take(TEXT);
    if (found === null) throw this.wrong();
    const read = JSON.parse(found[0]) as string;
    if (/\p{Cs}/u.test(read)) throw new JsonError("half of a character stands alone");
    return read;
  }

  private number(): Json {
    const found = this.take(NUMBER);
    if (found === null) throw this.wrong();
    const [all, fraction, exponent] = found;
    const number = Number(all);
    if (fraction !== undefined || exponent !== undefined) {
      if (!Number.isFinite(number)) throw new JsonError(`${all.slice(0, 40)} is too large`);
      return new Fraction(number);
    }
    if (all.length > LONGEST) throw new JsonError("a number has thousands of digits");
    return Number.isSafeInteger(number) ? number + 0 : BigInt(all); // -0 is 0
  }

  private expect(mark: string): void {
    this.take(BLANK);
    if (this.text[this.at] !== mark) throw this.wrong();
    this.at += 1;
  }

  private take(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found !== null) this.at = pattern.lastIndex;
    return found;
  }

  private wrong(): JsonError {
    return new JsonError(this.at < this.text.length ? `what stands at character ${this.at}` : "it breaks off");
  }
}
