/** The core stands alone: it imports no other room, and asks neither a page nor Node for anything. */

import { expect, it } from "vitest";

const FILES = import.meta.glob<string>("../../src/core/**/*.ts", { query: "?raw", import: "default", eager: true });

it.each(Object.entries(FILES))("%s", (path, text) => {
  const imports = [...text.matchAll(/from "([^"]+)"/g)].map(([, from]) => from as string);
  const up = path.includes("/codecs/") ? /^(\.\/|\.\.\/)[a-z0-9]+$/ : /^\.\/(codecs\/)?[a-z0-9]+$/;
  for (const from of imports) expect(from).toMatch(from.startsWith("@noble/hashes/") ? /./ : up);
  expect(text).not.toMatch(/\b(document|window|process|globalThis|fetch|eval|Function)\b[.(]/);
  expect(text.split("\n").length).toBeLessThanOrEqual(351);
});
