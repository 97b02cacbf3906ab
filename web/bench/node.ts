/** Steps under Node: `node node.js FOLDER STEPS TOKENS THREADS`; prints figures as JSON. */

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";

import { noteMemories } from "../src/device/memory";
import { setUp } from "../src/device/runtime";
import { steps } from "./step";

const [, , folder, count, tokens, threads] = process.argv as [string, string, string, string, string, string];
noteMemories();
setUp(Number(threads), null);
const figures = await steps(
  {
    size: (name) => statSync(join(folder, name), { throwIfNoEntry: false })?.size,
    read: async (name) => new Uint8Array(readFileSync(join(folder, name))),
  },
  Number(count),
  Number(tokens),
  () => (process.cpuUsage().user + process.cpuUsage().system) / 1e6,
);
console.log(JSON.stringify({ ...figures, rss: process.memoryUsage().rss }));
process.exit(0);
