/** JSON whose numbers stay as they are spelt, with the position at which each value begins. */

/** What a text holds: numbers are their spelling, objects keep the order of their names. */
export type Json = string | boolean | null | Json[] | Map<string, Json>;

/** A text is no JSON from `at` on. */
export class JsonError extends Error {
  constructor(
    message: string,
    readonly at: number,
  ) {
    super(message);
  }
}

const BLANKS = /[ \t\r\n]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const WORD = /true|false|null|NaN|-?Infinity/y;
const WORDS: Record<string, Json> = { true: true, false: false, null: null, NaN: null };
const DEEPEST = 200;

/** A value, and the position at which it begins. */
export interface Placed {
  readonly start: number;
  readonly value: Json;
}

/**
 * The values of a list, or one value after another; with `oneALine`, and where it is no list, one in each line.
 *
 * @throws JsonError with the position.
 */
export function* objectsOf(text: string, oneALine: boolean): Generator<Placed> {
  const reader = new Reader(text);
  reader.passBlanks();
  if (text[reader.at] === "[") {
    reader.at += 1;
    reader.passBlanks();
    if (text[reader.at] === "]") {
      reader.at += 1;
    } else {
      for (;;) {
        yield { start: reader.at, value: reader.value(0) };
        reader.passBlanks();
        const end = reader.one(",", "]");
        reader.passBlanks();
        if (end === "]") break;
      }
    }
    reader.passBlanks();
    if (reader.at < text.length) throw new JsonError("more stands behind its end", reader.at);
    return;
  }
  while (reader.at < text.length) {
    const start = reader.at;
    yield { start, value: reader.value(0, oneALine) };
    const before = reader.at;
    reader.passBlanks();
    if (oneALine && reader.at < text.length && !/[\r\n]/.test(text.slice(before, reader.at))) {
      throw new JsonError("more stands behind its end", reader.at);
    }
  }
}

class Reader {
  at = 0;

  constructor(private readonly text: string) {}

  passBlanks(): void {
    this.matched(BLANKS);
  }

  /** One of these characters, which is due. */
  one(...allowed: string[]): string {
    const found = this.text[this.at];
    if (found === undefined || !allowed.includes(found)) {
      throw new JsonError(`${allowed.join(" or ")} is due`, this.at);
    }
    this.at += 1;
    return found;
  }

  /** The next value; with `here`, it may not go on behind the end of its line. */
  value(depth: number, here = false): Json {
    if (depth > DEEPEST) throw new JsonError("it is nested too deep", this.at);
    const first = this.text[this.at];
    if (first === '"') return this.string();
    if (first === "[") return this.list(depth, here);
    if (first === "{") return this.object(depth, here);
    const word = this.matched(WORD);
    if (word !== null) return word[0] in WORDS ? (WORDS[word[0]] as Json) : word[0];
    const number = this.matched(NUMBER);
    if (number === null) throw new JsonError("a value is due", this.at);
    return number[0];
  }

  private list(depth: number, here: boolean): Json[] {
    const found: Json[] = [];
    this.at += 1;
    this.pass(here);
    if (this.text[this.at] === "]") {
      this.at += 1;
      return found;
    }
    do {
      this.pass(here);
      found.push(this.value(depth + 1, here));
      this.pass(here);
    } while (this.one(",", "]") === ",");
    return found;
  }

  private object(depth: number, here: boolean): Map<string, Json> {
    const found = new Map<string, Json>();
    this.at += 1;
    this.pass(here);
    if (this.text[this.at] === "}") {
      this.at += 1;
      return found;
    }
    do {
      this.pass(here);
      const begin = this.at;
      const name = this.string();
      if (found.has(name)) throw new JsonError("an object names a key twice", begin);
      this.pass(here);
      this.one(":");
      this.pass(here);
      found.set(name, this.value(depth + 1, here));
      this.pass(here);
    } while (this.one(",", "}") === ",");
    return found;
  }

  private string(): string {
    const begin = this.at;
    if (this.text[begin] !== '"') throw new JsonError("a text in quotes is due", begin);
    let end = begin + 1;
    while (end < this.text.length && this.text[end] !== '"') end += this.text[end] === "\\" ? 2 : 1;
    try {
      const found = JSON.parse(this.text.slice(begin, end + 1)) as string;
      this.at = end + 1;
      return found;
    } catch {
      throw new JsonError("a text that opens here is none", begin);
    }
  }

  private pass(here: boolean): void {
    const before = this.at;
    this.passBlanks();
    if (here && /[\r\n]/.test(this.text.slice(before, this.at))) throw new JsonError("the line ends here", before);
  }

  private matched(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found !== null) this.at = pattern.lastIndex;
    return found;
  }
}
