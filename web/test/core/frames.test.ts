/** Headers of questions and replies, and what is none. */

import { describe, expect, it } from "vitest";

import { PeerError } from "../../src/core/errors";
import { Longest, MAX_HEADER, type Reply, frame, parsed, readQuestion, refused } from "../../src/core/frames";
import { Fraction, plain, readJson } from "../../src/core/json";
import { camelCase } from "../../src/core/messages";
import { Dice } from "./dice";
import { vectors } from "./vectors";

const FRAMES = vectors("frames");
const QUESTIONS: { header: string; fields: Record<string, unknown> }[] = FRAMES.questions;

function renamed(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [camelCase(name), value]));
}

const MARKS = ["", "0", '"', "{", "}", "[", "]", ",", "\\", "e9", "ä", "\u0000"];

describe("questions", () => {
  it.each(QUESTIONS)("$header", ({ header, fields }) => {
    expect(readQuestion(header)).toEqual(renamed(fields));
  });

  it.each<string>(FRAMES.refused_questions)("refused: %s", (header) => {
    expect(() => readQuestion(header)).toThrow(PeerError);
  });

  it.each([
    ['{"kind":"save","lineage":"0123456789abcdef","rounds":3.0}', "header.save.rounds"],
    ['{"kind":"save","lineage":"0123456789abcdef","rounds":3e0}', "header.save.rounds"],
    ['{"kind":"save","lineage":"0123456789abcdef","rounds":9007199254740992}', "header.save.rounds"],
    ['{"kind":"save","lineage":"0123456789abcdef\\n","rounds":3}', "header.save.lineage"],
    ['{"kind":"save","lineage":"0123456789abcdef","rounds":3,"rounds":3}', "header"],
    ['{"kind":"constructor"}', "header.kind"],
    ['{"kind":"save","lineage":"0123456789abcdef","__proto__":{"rounds":3}}', 'header.save."__proto__"'],
    [`${"[".repeat(100_000)}`, "header"],
    [`{"kind":"prepare","config":${'{"a":'.repeat(100_000)}`, "header"],
    [`"${"a".repeat(MAX_HEADER - 2)}`, "header"],
    [`"${"\\n".repeat(MAX_HEADER / 2 - 2)}`, "header"],
    [" ".repeat(MAX_HEADER + 1), "header"],
    ["1".repeat(5000), "header"],
    ['"\\ud800"', "header"],
    ["NaN", "header"],
    ["[1e999]", "header"],
    ["[01]", "header"],
    ["[1,]", "header"],
    ['{"a":1,}', "header"],
    ["{} {}", "header"],
    ['"a\nb"', "header"],
  ])("refused: %.60s", (header, field) => {
    let wrong: unknown = null;
    try {
      readQuestion(header);
    } catch (error) {
      wrong = error;
    }
    expect(wrong).toBeInstanceOf(PeerError);
    expect((wrong as PeerError).field).toBe(field);
    expect((wrong as PeerError).message).toMatch(/^[^\n]{1,500}$/);
  });

  it("that are mutated are questions or one error", () => {
    const dice = new Dice(5);
    let read = 0;
    for (let turn = 0; turn < 5000; turn += 1) {
      const marks = [...dice.choice(QUESTIONS).header];
      for (let times = dice.between(1, 3); times > 0; times -= 1) {
        const place = dice.below(marks.length);
        marks.splice(place, dice.below(3), dice.choice(MARKS));
      }
      try {
        readQuestion(marks.join(""));
        read += 1;
      } catch (error) {
        expect(error).toBeInstanceOf(PeerError);
      }
    }
    expect(read).toBeGreaterThan(100);
  });
});

describe("JSON", () => {
  it("is read as the engine's own reader does", () => {
    const text = JSON.stringify({ a: [1, -2.5, 1e-7, "ä\n\"\\\u2028😀", null, true, { "": {} }], b: 0, c: [[]] });
    expect(plain(readJson(text))).toEqual(JSON.parse(text));
    expect(plain(readJson(JSON.stringify(JSON.parse(text), null, "\t ")))).toEqual(JSON.parse(text));
  });

  it("tells 3.0 from 3, and keeps the digits of large numbers", () => {
    expect(parsed("[3, 3.0, -0, 18446744073709551615]")).toEqual([3, new Fraction(3), 0, 18446744073709551615n]);
  });

  it("takes a key for what it is", () => {
    const read = readJson('{"__proto__": {"rounds": 1}}');
    expect(Object.keys(read as object)).toEqual(["__proto__"]);
    expect((read as { rounds?: number }).rounds).toBeUndefined();
  });
});

describe("replies", () => {
  it.each<{ header: string; fields: Record<string, unknown> }>(FRAMES.replies)("$header", ({ header, fields }) => {
    expect(frame(renamed(fields) as unknown as Reply).header).toBe(header);
  });

  it("are in ASCII, and have one line", () => {
    const { header } = refused("failed", new Error(`ä\n${"x".repeat(3000)}`));
    expect(header).toMatch(/^[\x20-\x7e]+$/);
    expect(JSON.parse(header)).toEqual({ kind: "refused", why: "failed", error: `ä ${"x".repeat(1998)}` });
  });

  it("hold finite numbers", () => {
    const done = renamed(FRAMES.replies[2].fields) as unknown as Reply;
    expect(() => frame({ ...done, losses: [NaN] } as unknown as Reply)).toThrow(RangeError);
  });
});

it("refuses a frame that is longer than may come", () => {
  new Longest(10).check(1, 10);
  expect(() => new Longest(10).check(1, 11)).toThrow(PeerError);
  expect(() => new Longest(10).check(4 * MAX_HEADER + 1, 0)).toThrow(PeerError);
});
