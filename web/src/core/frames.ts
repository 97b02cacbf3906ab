/**
 * What an engine says to a client beside the algorithm's own bytes: questions and replies (docs/protocol.md).
 *
 * A frame is a header (JSON of one of these) and a body: the bytes of a packed message, or none. A question names the
 * lineage, the round and the exchange that it belongs to, so that whatever comes twice, late or out of turn is
 * recognised.
 */

import { PeerError, oneLine } from "./errors";
import { Fraction, type Json, JsonError, type Plain, isObject, plain, readJson } from "./json";
import { camelCase } from "./messages";

/** Characters; the largest holds a configuration. */
export const MAX_HEADER = 1 << 22;

/** An earlier lineage, and how many rounds of it count. */
export interface Ancestor {
  readonly lineage: string;
  readonly rounds: number;
}

/** Question, first of all: build your part of this run; in the body, weights to begin with, or none. */
export interface Prepare {
  readonly kind: "prepare";
  readonly run: string;
  readonly client: number;
  readonly config: Readonly<Record<string, Plain>>;
  readonly labelNames: readonly string[];
  readonly weights: string;
}

/** How well the server's model did after so many steps: mean loss, and accuracy in percent where it is measured. */
export interface Evaluation {
  readonly step: number;
  readonly loss: number;
  readonly accuracy: number | null;
}

/** Question: begin a round; the reply has the first message. `evaluation`: the last one, of which nothing depends. */
export interface Open {
  readonly kind: "open";
  readonly lineage: string;
  readonly ancestry: readonly Ancestor[];
  readonly round: number;
  readonly first: number;
  readonly steps: number;
  readonly cursor: number;
  readonly measure: boolean;
  readonly evaluation?: Evaluation | null;
}

/** Question: here is the answer to your last message; what do you say next? */
export interface Say {
  readonly kind: "say";
  readonly lineage: string;
  readonly round: number;
  readonly exchange: number;
}

/** Question: write down what you need to go on from here, after so many rounds. */
export interface Save {
  readonly kind: "save";
  readonly lineage: string;
  readonly rounds: number;
  readonly evaluation?: Evaluation | null;
}

/**
 * Reply to `Prepare`; `fits` is false where the weights to begin with are others.
 *
 * `takes`: bytes of the longest body that the client reads from now on. `rows`: it trains on so many.
 */
export interface Ready {
  readonly kind: "ready";
  readonly fits: boolean;
  readonly takes: number;
  readonly rows: number;
}

/** Reply: a message, in the body, of this exchange. */
export interface Said {
  readonly kind: "said";
  readonly lineage: string;
  readonly round: number;
  readonly exchange: number;
}

/** Reply: the client has said all of this round; what the round cost it, and its peaks so far. */
export interface Done {
  readonly kind: "done";
  readonly lineage: string;
  readonly round: number;
  readonly cursor: number;
  readonly forwardPasses: number;
  readonly clientSeconds: number;
  readonly wireSeconds: number;
  readonly peakBytes: number;
  readonly inferencePeakBytes: number;
  readonly losses: readonly number[];
}

/** Reply to `Save`. */
export interface Saved {
  readonly kind: "saved";
}

export type Why = "stale" | "peer" | "diverged" | "user" | "failed";

/** Reply: no, and why. `stale`: the question belongs to another time; the others are the kinds of error. */
export interface Refused {
  readonly kind: "refused";
  readonly why: Why;
  readonly error: string;
}

export type Question = Prepare | Open | Say | Save;
export type Reply = Ready | Said | Done | Saved | Refused;

/** A header as JSON text, and a body. */
export interface Frame {
  readonly header: string;
  readonly body: Uint8Array;
}

const EMPTY = new Uint8Array();
/** The keys of each reply, in their order; `kind` comes first, by which a relay knows `Ready`. */
const REPLIES: Readonly<Record<Reply["kind"], readonly string[]>> = {
  ready: ["fits", "takes", "rows"],
  said: ["lineage", "round", "exchange"],
  done: [
    "lineage",
    "round",
    "cursor",
    "forward_passes",
    "client_seconds",
    "wire_seconds",
    "peak_bytes",
    "inference_peak_bytes",
    "losses",
  ],
  saved: [],
  refused: ["why", "error"],
};

/** The frame to send; RangeError where a number in it is not finite. */
export function frame(reply: Reply, body: Uint8Array = EMPTY): Frame {
  const fields = reply as unknown as Readonly<Record<string, unknown>>;
  const told = Object.fromEntries(["kind", ...REPLIES[reply.kind]].map((name) => [name, fields[camelCase(name)]]));
  const header = JSON.stringify(told, (_, value: unknown) => {
    if (typeof value === "number" && !Number.isFinite(value)) throw new RangeError(`${value} is no number of JSON`);
    return value;
  });
  // As the reference writes it, in ASCII alone.
  const escape = (each: string): string => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return { header: header.replace(/[\u007f-\uffff]/g, escape), body };
}

/** The reply to a question that an error has ended. */
export function refused(why: Why, error: unknown): Frame {
  const said = error instanceof Error ? error.message : String(error);
  return frame({ kind: "refused", why, error: oneLine(said).slice(0, 2000) });
}

/** The longest frame that may come: bytes of its body, characters of its header. */
export class Longest {
  constructor(
    readonly body: number,
    readonly header = MAX_HEADER,
  ) {}

  /**
   * Refuses a frame of which so many bytes are announced, before anyone reads them; PeerError says what came and what
   * is allowed.
   */
  check(header: number, body: number): void {
    // A character takes up to four bytes.
    if (header <= 4 * this.header && body <= this.body) return;
    const came = `a header of ${header} bytes and a body of ${body}`;
    throw new PeerError("frame", came, `at most ${4 * this.header} and ${this.body} are allowed`);
  }
}

/** The question in a header; PeerError names the field that is wrong. */
export function readQuestion(header: string): Question {
  if (header.length > MAX_HEADER) {
    throw new PeerError("header", `${header.length} characters`, `text of at most ${MAX_HEADER} is allowed`);
  }
  const told = parsed(header);
  if (!isObject(told)) throw new PeerError("header", "no object came");
  const { kind, ...fields } = told;
  if (typeof kind !== "string" || !Object.hasOwn(QUESTIONS, kind)) {
    const allowed = `one of ${Object.keys(QUESTIONS).join(", ")} is allowed`;
    throw new PeerError("header.kind", shownValue(kind ?? null), allowed);
  }
  const wanted = QUESTIONS[kind as Question["kind"]];
  return { kind, ...checked(fields, wanted, `header.${kind}`) } as unknown as Question;
}

/** What a header's JSON says; PeerError where it is none. */
export function parsed(header: string): Json {
  try {
    return readJson(header);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw new PeerError("header", `it is no JSON: ${error.message.slice(0, 200)}`);
  }
}

type Check = (told: Json, where: string) => unknown;

function checked(told: { [key: string]: Json }, wanted: Readonly<Record<string, Check>>, where: string): object {
  const unknown = Object.keys(told).find((name) => !Object.hasOwn(wanted, name));
  if (unknown !== undefined) throw new PeerError(`${where}.${shownValue(unknown)}`, "this field is unknown");
  const found: [string, unknown][] = [];
  for (const [name, check] of Object.entries(wanted)) {
    const value = told[name];
    if (value === undefined && OPTIONAL.has(name)) continue;
    if (value === undefined) throw new PeerError(`${where}.${name}`, "it is missing");
    found.push([camelCase(name), check(value, `${where}.${name}`)]);
  }
  return Object.fromEntries(found);
}

/** A value as it stands in a message: its kind, where it may be long. */
function shownValue(value: Json): string {
  if (typeof value === "string") return oneLine(JSON.stringify(value.slice(0, 100)));
  if (value instanceof Fraction) return `${value.value}`;
  if (typeof value === "bigint") return value.toString().slice(0, 40);
  return typeof value === "object" && value !== null ? (Array.isArray(value) ? "a list" : "an object") : `${value}`;
}

function wrong(where: string, value: Json, allowed: string): PeerError {
  return new PeerError(where, shownValue(value), allowed);
}

/** Up to 2^53 - 1: a number of JavaScript has no larger ones one by one, and no run comes so far. */
function count(value: Json, where: string): number {
  if (typeof value !== "number" || value < 0) throw wrong(where, value, "a whole number from 0 to 2^53 - 1 is allowed");
  return value;
}

function token(value: Json, where: string): string {
  const isToken = typeof value === "string" && /^[0-9a-f]{16}$/.test(value);
  if (!isToken) throw wrong(where, value, "sixteen digits of base 16 are allowed");
  return value;
}

function truth(value: Json, where: string): boolean {
  if (typeof value !== "boolean") throw wrong(where, value, "true or false is allowed");
  return value;
}

function text(value: Json, where: string): string {
  if (typeof value !== "string") throw wrong(where, value, "a text is allowed");
  return value;
}

function texts(value: Json, where: string): string[] {
  const isTexts = Array.isArray(value) && value.every((each) => typeof each === "string");
  if (!isTexts) throw wrong(where, value, "a list of texts is allowed");
  return value;
}

function tree(value: Json, where: string): Plain {
  if (!isObject(value)) throw wrong(where, value, "an object is allowed");
  return plain(value);
}

function ancestry(value: Json, where: string): Ancestor[] {
  if (!Array.isArray(value)) throw wrong(where, value, "a list is allowed");
  return value.map((each, place) => {
    const isRight = isObject(each) && Object.keys(each).sort().join() === "lineage,rounds";
    if (!isRight) throw wrong(`${where}.${place}`, each, "lineage and rounds are allowed");
    return { lineage: token(each["lineage"] ?? null, where), rounds: count(each["rounds"] ?? null, where) };
  });
}

function evaluation(value: Json, where: string): Evaluation | null {
  if (value === null) return null;
  const isRight = isObject(value) && Object.keys(value).sort().join() === "accuracy,loss,step";
  if (!isRight) throw wrong(where, value, "step, loss and accuracy are allowed");
  const [loss, accuracy] = [numberOf(value["loss"]), numberOf(value["accuracy"])];
  if (loss === null || Math.abs(loss) > LARGEST) {
    throw wrong(`${where}.loss`, value["loss"] ?? null, "a number of float32 is allowed");
  }
  if (value["accuracy"] !== null && (accuracy === null || accuracy < 0 || accuracy > 100)) {
    throw wrong(`${where}.accuracy`, value["accuracy"] ?? null, "0 to 100 is allowed");
  }
  return { step: count(value["step"] ?? null, where), loss, accuracy };
}

function numberOf(value: Json | undefined): number | null {
  if (value instanceof Fraction) return value.value;
  return typeof value === "number" || typeof value === "bigint" ? Number(value) : null;
}

const LARGEST = 3.4028235e38; // of float32
const OPTIONAL: ReadonlySet<string> = new Set(["evaluation"]);
const QUESTIONS: Readonly<Record<Question["kind"], Readonly<Record<string, Check>>>> = {
  prepare: { run: token, client: count, config: tree, label_names: texts, weights: text },
  open: {
    lineage: token,
    ancestry,
    round: count,
    first: count,
    steps: count,
    cursor: count,
    measure: truth,
    evaluation,
  },
  say: { lineage: token, round: count, exchange: count },
  save: { lineage: token, rounds: count, evaluation },
};
