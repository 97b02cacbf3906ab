/** What the page makes of names, links and numbers; the rest of it is for a real browser (tests/deploy). */

import { beforeEach, describe, expect, test, vi } from "vitest";

import { ticks } from "../../src/page/chart";
import { choiceOf } from "../../src/page/choosing";
import { bytes, lasting } from "../../src/page/dom";
import { idOf, linkOfAddress, linkOfText, unlink } from "../../src/page/link";

const TOKEN = `hb1.0123abcd.${"A".repeat(43)}`;
const found = (...paths: string[]) => paths.map((path) => ({ path, file: new File(["x"], path.split("/").at(-1) ?? "") }));

describe("links", () => {
  const kept = new Map<string, string>();
  const replaced: string[] = [];

  beforeEach(() => {
    kept.clear();
    replaced.length = 0;
    vi.stubGlobal("sessionStorage", {
      getItem: (key: string) => kept.get(key) ?? null,
      setItem: (key: string, value: string) => kept.set(key, value),
      removeItem: (key: string) => kept.delete(key),
    });
    vi.stubGlobal("history", { replaceState: (_: unknown, __: string, to: string) => replaced.push(to) });
    at("");
  });

  function at(hash: string): void {
    vi.stubGlobal("location", { hash, pathname: "/", origin: "https://gateway.example:8443", host: "gateway.example:8443" });
  }

  test("a token is taken out of the address, and found again when the tab is loaded anew", () => {
    at(`#${TOKEN}`);
    expect(linkOfAddress()).toEqual({ url: "https://gateway.example:8443", token: TOKEN });
    expect(replaced).toEqual(["/"]);
    at("");
    expect(linkOfAddress()?.token).toBe(TOKEN);
    unlink();
    expect(linkOfAddress()).toBeNull();
  });

  test("what is no token leaves the address as well", () => {
    at("#hb1.short");
    expect(linkOfAddress()).toBeNull();
    expect(replaced).toEqual(["/"]);
  });

  test.each([TOKEN, ` ${TOKEN}\n`, `https://gateway.example:8443/#${TOKEN}`])("pasted: %s", (text) => {
    expect(linkOfText(text)).toEqual({ url: "https://gateway.example:8443", token: TOKEN });
  });

  test.each([
    ["", /no token/],
    ["hb1.0123abcd.short", /no token/],
    [`https://elsewhere.example/#${TOKEN}`, /another gateway/],
    [`https://gateway.example/#${TOKEN}`, /another gateway/],
    [`javascript:alert(1)#${TOKEN}`, /another gateway/],
  ])("refused: %s", (text, why) => {
    expect(linkOfText(text)).toMatch(why);
    expect(kept.size).toBe(0);
  });

  test("the public part alone is shown", () => {
    expect(idOf(TOKEN)).toBe("0123abcd");
  });
});

describe("what was chosen", () => {
  test.each([
    ["rows.csv", "table"],
    ["rows.JSONL.gz", "table"],
    ["rows.npz", "arrays"],
  ])("%s", (name, kind) => {
    expect(choiceOf(found(name))).toMatchObject({ kind });
  });

  test("a folder of images has its classes from its subfolders, without what an editor leaves", () => {
    const chosen = choiceOf(found("pets/cat/1.png", "pets/dog/2.jpeg", "pets/.DS_Store", "pets/cat/.thumbs/1.png", "pets/a.txt"));
    expect(chosen).toMatchObject({ kind: "images", files: [{ label: "cat" }, { label: "dog" }] });
  });

  test.each([
    [[], /Nothing/],
    [["notes.txt"], /notes.txt is of no kind/],
    [["a.csv", "b.csv"], /one file/],
    [["1.png"], /no class/],
  ])("refused: %s", (paths, why) => {
    expect(choiceOf(found(...paths))).toMatch(why);
  });
});

describe("numbers", () => {
  test.each([
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 kB"],
    [62_345_678, "62.3 MB"],
    [5e15, "5000 TB"],
  ])("%d bytes", (count, text) => {
    expect(bytes(count)).toBe(text);
  });

  test.each([
    [0.2, "1 s"],
    [89, "89 s"],
    [600, "10 min"],
    [7200, "2.0 h"],
  ])("%d seconds", (seconds, text) => {
    expect(lasting(seconds)).toBe(text);
  });

  test("an axis has a few round numbers around all values", () => {
    expect(ticks(0, 100)).toEqual([0, 50, 100]);
    expect(ticks(Infinity, -Infinity)).toEqual([0, 1]);
    for (const [least, most] of [[0, 2.3], [0.611, 0.613], [-5, 1234], [7, 7], [0, 0]] as const) {
      const marks = ticks(least, most);
      expect(marks.length).toBeGreaterThan(1);
      expect(marks.length).toBeLessThan(8);
      expect(marks[0]).toBeLessThanOrEqual(least);
      expect(marks.at(-1)).toBeGreaterThanOrEqual(most);
    }
  });
});
