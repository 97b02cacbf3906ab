/**
 * Texts to tokens with the package's tokenizer, as the reference encodes them.
 *
 * A package says in its manifest how (`task.texts`):
 *
 * - `max_length`: the most tokens of a row; `longest`: the most that the model has positions for, or null.
 * - `template`, such as "{text} It was", filled with a row's text and pair, or null.
 * - `pair`: whether rows are pairs of texts. `types`: whether the model is told which token is of which.
 * - `continued`: the word behind the template counts, so nothing that the tokenizer puts behind a text is there.
 * - `side`: the side on which a row that is too long loses tokens, "left" or "right".
 * - `split_special`: special tokens in a text are plain text. `tokens`: how many the model has an embedding for.
 */

import { Tokenizer } from "@huggingface/tokenizers";

import { Ragged } from "../core/batches";
import { PackageError, RowError } from "../core/errors";
import { TOKENIZER, type Tree, at, isTree, shown } from "./facts";

const WORD = "was"; // any word that tokenizers know

/** The manifest's `task.texts`, which `checkFacts` has looked at. */
export interface How {
  readonly max_length: number;
  readonly longest: number | null;
  readonly template: string | null;
  readonly pair: boolean;
  readonly types: boolean;
  readonly continued: boolean;
  readonly side: "left" | "right";
  readonly split_special: boolean;
  readonly tokens: number;
}

/** Tokens that a tokenizer puts around texts, with their types. */
interface Around {
  readonly ids: readonly (readonly number[])[];
  readonly types: readonly (readonly number[])[];
  readonly count: number;
}

interface Row {
  readonly ids: number[];
  readonly types: number[];
}

/** A package's tokenizer, and how it is used. */
export class Encoder {
  private readonly plain: Tokenizer;
  private readonly single: Around;
  private readonly double: Around | null;

  /** `file`: the tokenizer's; PackageError where it is none. */
  constructor(
    file: Uint8Array,
    private readonly how: How,
  ) {
    const whole = ofPackage(`${TOKENIZER} of the package can't be read`, () => tokenizerOf(file, false));
    this.plain = how.split_special ? tokenizerOf(file, true) : whole;
    const word = this.bare(WORD);
    this.single = aroundOf(whole, word, false);
    this.double = how.pair && how.template === null ? aroundOf(whole, word, true) : null;
  }

  /**
   * Tokens and, where the model has them, token types of each row of a classification or language modelling task.
   *
   * @throws RowError where a text has no tokens, or more than the model has positions for; PackageError where the
   *   longest row leaves no room beside the special tokens.
   */
  rows(texts: readonly string[], pairs: readonly string[] | null): [Ragged, Ragged | null] {
    const { template, max_length: longest, continued, types } = this.how;
    const around = template === null && pairs !== null ? (this.double as Around) : this.single;
    if (longest <= around.count) {
      throw new PackageError(`task.max_length=${longest} of the package leaves no room beside special tokens`);
    }
    const filledTexts = template === null ? texts : filled(template, texts, pairs);
    const second = template === null ? pairs : null;
    const first = this.single.ids[0] as readonly number[];
    const made: Row[] = filledTexts.map((text, row) => {
      // What stands behind a text would end a prompt before its continuation.
      if (continued) return { ids: [...first, ...last(this.known(text), longest - first.length)], types: [] };
      return this.surrounded(around, text, second === null ? null : (second[row] as string));
    });
    made.forEach((row, place) => this.check(filledTexts[place] as string, row.ids));
    const kinds = second !== null && types && !continued ? new Ragged(made.map((row) => row.types)) : null;
    return [new Ragged(made.map((row) => row.ids)), kinds];
  }

  /** A row cut to the longest, the special tokens among them, the longer of two texts first. */
  private surrounded(around: Around, text: string, pair: string | null): Row {
    const room = this.how.max_length - around.count;
    const side = this.how.template !== null ? "left" : this.how.side;
    const parts = pair === null ? [this.bare(text)] : [this.bare(text), this.bare(pair)];
    const counts = cut(
      parts.map((part) => part.length),
      room,
    );
    const kept = parts.map((part, place) => {
      const count = counts[place] as number;
      return side === "left" ? last(part, count) : part.slice(0, count);
    });
    const ids: number[] = [...(around.ids[0] as readonly number[])];
    const types: number[] = [...(around.types[0] as readonly number[])];
    for (const [place, part] of kept.entries()) {
      ids.push(...part, ...(around.ids[place + 1] as readonly number[]));
      types.push(
        ...part.map(() => around.types[kept.length + 1]?.[place] ?? 0),
        ...(around.types[place + 1] as readonly number[]),
      );
    }
    return { ids, types };
  }

  private check(text: string, row: readonly number[]): void {
    const { longest, tokens } = this.how;
    const said = `the text ${shown(text.slice(0, 40))}`;
    if (!row.length) throw new RowError(`${said} has no tokens for the package's tokenizer`);
    if (longest !== null && row.length > longest) {
      throw new RowError(`${said} has ${row.length} tokens, the model takes ${longest}`);
    }
    const most = row.reduce((one, other) => Math.max(one, other), 0);
    if (most >= tokens) throw new RowError(`${said} has token ${most}, the model has ${tokens}`);
  }

  /** Tokens without special ones, of which a text has one or more. */
  private known(text: string): number[] {
    const row = this.bare(text);
    if (!row.length)
      throw new RowError(`the text ${shown(text.slice(0, 40))} has no tokens for the package's tokenizer`);
    return row;
  }

  private bare(text: string): number[] {
    return encoded(this.plain, text, null, false).ids;
  }
}

function tokenizerOf(file: Uint8Array, isSplit: boolean): Tokenizer {
  const told: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(file));
  const added = at(told, "added_tokens");
  if (!isTree(told) || !Array.isArray(added)) throw new TypeError("it has no added_tokens");
  const kept = isSplit ? (added as Tree[]).filter((token) => token["special"] !== true) : added;
  const [model, before] = [known(told["model"]), known(told["pre_tokenizer"])];
  return new Tokenizer({ ...told, model, pre_tokenizer: before, added_tokens: kept }, {});
}

const WORDS = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
/** Of parts that the library lacks, or knows for ASCII alone, others that do the same. */
const INSTEAD: Readonly<Record<string, Tree>> = {
  // A word is known as a whole or not at all: pieces of which none can follow another.
  WordLevel: { type: "WordPiece", continuing_subword_prefix: "\0", max_input_chars_per_word: Number.MAX_SAFE_INTEGER },
  Whitespace: { type: "Split", pattern: { Regex: `[${WORDS}]+|[^${WORDS}\\s]+` }, behavior: "Removed", invert: true },
};

function known(part: unknown): unknown {
  if (!isTree(part)) return part;
  const inner = part["pretokenizers"];
  if (Array.isArray(inner)) return { ...part, pretokenizers: inner.map(known) };
  const type = part["type"];
  return typeof type === "string" && Object.hasOwn(INSTEAD, type) ? { ...part, ...INSTEAD[type] } : part;
}

function encoded(tokenizer: Tokenizer, text: string, pair: string | null, special: boolean): Row {
  const options = { text_pair: pair, add_special_tokens: special, return_token_type_ids: true } as const;
  return ofPackage("the package's tokenizer can't encode a text", () => {
    const found = tokenizer.encode(text, options);
    if (!found.ids.every((id) => Number.isSafeInteger(id) && id >= 0)) throw new TypeError("a token has no number");
    return { ids: found.ids, types: found.token_type_ids ?? found.ids.map(() => 0) };
  });
}

/** What stands before, between and behind texts, found around a word; behind their types are those of the texts. */
function aroundOf(whole: Tokenizer, word: readonly number[], isPair: boolean): Around {
  let row = encoded(whole, WORD, isPair ? WORD : null, true);
  // The library forgets the second text where nothing is put around texts.
  if (isPair && row.ids.length === word.length) {
    row = { ids: [...word, ...word], types: [...word.map(() => 0), ...word.map(() => 1)] };
  }
  const ids: number[][] = [];
  const types: number[][] = [];
  const ofTexts: number[] = [];
  let from = 0;
  for (let text = 0; text < (isPair ? 2 : 1); text += 1) {
    const begin = find(row.ids, word, from);
    if (begin < 0) throw new PackageError(`${TOKENIZER} of the package leaves nothing of the word ${shown(WORD)}`);
    ids.push(row.ids.slice(from, begin));
    types.push(row.types.slice(from, begin));
    ofTexts.push(row.types[begin] as number);
    from = begin + word.length;
  }
  ids.push(row.ids.slice(from));
  types.push(row.types.slice(from), ofTexts);
  return { ids, types, count: ids.reduce((sum, part) => sum + part.length, 0) };
}

function find(row: readonly number[], part: readonly number[], from: number): number {
  for (let at = from; at + part.length <= row.length; at += 1) {
    if (part.length && part.every((id, place) => row[at + place] === id)) return at;
  }
  return -1;
}

/** How many tokens texts of so many keep where there is room for `most`: the longest loses first, as tokenizers do. */
function cut(counts: readonly number[], most: number): number[] {
  const [one, other] = counts as [number, number | undefined];
  if (other === undefined) return [Math.min(one, most)];
  if (one + other <= most) return [one, other];
  const [shorter, longer] = [Math.min(one, other), Math.max(one, other)];
  let kept: [number, number] = [shorter, shorter > most ? shorter : Math.max(shorter, most - shorter)];
  if (kept[0] + kept[1] > most) kept = [Math.floor(most / 2), Math.floor(most / 2) + (most % 2)];
  return one > other ? [Math.min(kept[1], longer), kept[0]] : [kept[0], Math.min(kept[1], longer)];
}

/** Says in one line what the library can't do with a package's file, without its words, which may quote a text. */
function ofPackage<T>(what: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw new PackageError(`${what} (${(error as Error).name})`);
  }
}

/** The template with each text, and its pair, in place; PackageError for one that asks for anything else. */
export function filled(template: string, texts: readonly string[], pairs: readonly string[] | null): string[] {
  const parts = template.split(/(\{\{|\}\}|\{text\}|\{pair\})/);
  if (parts.some((part, place) => place % 2 === 0 && /[{}]/.test(part))) {
    throw new PackageError(`task.template=${shown(template)} of the package may name text and pair, and nothing else`);
  }
  return texts.map((text, row) => {
    const named: Record<string, string> = { "{{": "{", "}}": "}", "{text}": text, "{pair}": pairs?.[row] ?? "" };
    return parts.map((part, place) => (place % 2 ? named[part] : part)).join("");
  });
}

function last(row: readonly number[], count: number): number[] {
  return row.slice(Math.max(row.length - count, 0));
}
