/** What a manifest says of the task, the rows and the client, checked before anything relies on it: others wrote it. */

import { PackageError, oneLine } from "../core/errors";

export const TOKENIZER = "tokenizer.json";
const MANY = 2 ** 31;

/** Names and values, as JSON has them. */
export type Tree = { readonly [name: string]: unknown };
type Holds = (value: unknown) => boolean;

/** Whether a value has names, and is neither null nor a list. */
export function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Whether a value is a whole number from 0 on that is exact in float64. */
export function isWhole(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

/** A value as it stands in a message, one line and no longer than `most` characters. */
export function shown(value: unknown, most = 60): string {
  let text: string | undefined;
  try {
    text = typeof value === "bigint" ? String(value) : JSON.stringify(value);
  } catch {
    text = typeof value;
  }
  return oneLine((text ?? String(value)).slice(0, most));
}

/** What a tree has at a dotted path; `otherwise` where it has nothing there. */
export function at(tree: unknown, path: string, otherwise: unknown = undefined): unknown {
  let found = tree;
  for (const key of path.split(".")) {
    if (!isTree(found) || !Object.hasOwn(found, key)) return otherwise;
    found = found[key];
  }
  return found;
}

const isSmall: Holds = (value) => isWhole(value) && value < MANY;
const isTruth: Holds = (value) => typeof value === "boolean";
const isText: Holds = (value) => typeof value === "string";
const isNumber: Holds = (value) => typeof value === "number" && Number.isFinite(value) && Math.abs(value) < 1e30;
const areTexts: Holds = (value) => Array.isArray(value) && value.every(isText);
const areGroups: Holds = (value) => Array.isArray(value) && value.length > 0 && value.every(areTexts);
const isAbove = (least: number, value: unknown): boolean => isNumber(value) && (value as number) > least;

function orNone(holds: Holds): Holds {
  return (value) => value === null || holds(value);
}

function among(...allowed: string[]): Holds {
  return (value) => typeof value === "string" && allowed.includes(value);
}

function numbers(count: number, holds: Holds = isNumber): Holds {
  return (value) => Array.isArray(value) && value.length === count && value.every(holds);
}

const TASK: Record<string, Holds> = {
  objective: among("classification", "causal_lm", "generation"),
  label_names: areTexts,
  inputs: among("texts", "images"),
};
const TEXTS: Record<string, Holds> = {
  max_length: (value) => isSmall(value) && value !== 0,
  longest: orNone(isSmall),
  template: orNone(isText),
  pair: isTruth,
  types: isTruth,
  continued: isTruth,
  side: among("left", "right"),
  end: orNone(isSmall),
  split_special: isTruth,
  tokens: isSmall,
};
const IMAGES: Record<string, Holds> = {
  channels: (value) => isSmall(value) && isAbove(0, value) && !isAbove(4096, value),
  size: numbers(2, (value) => isSmall(value) && isAbove(0, value) && !isAbove(1 << 16, value)),
};
const PICTURES: Record<string, Holds> = {
  resample: (value) => isSmall(value) && !isAbove(5, value),
  scale: orNone(isNumber),
  mean: numbers(3),
  std: numbers(3, (value) => isAbove(0, value)),
};
// Of a recipe, what says which rows of a file that all clients have are whose.
const SHARED: Record<string, Holds> = {
  "partition.name": among("iid", "dirichlet", "shards"),
  "partition.alpha": (value) => isAbove(0, value),
  "task.name": isText,
  "task.holdout": (value) => isNumber(value) && (value as number) >= 0 && (value as number) < 1,
  "task.train_rows": orNone((value) => isSmall(value) && value !== 0),
};

/**
 * Refuses a manifest that says what can't be.
 *
 * @throws PackageError that names the entry.
 */
export function checkFacts(manifest: Tree): void {
  check(manifest, "task", TASK);
  if (at(manifest, "task.inputs") === "texts") {
    check(manifest, "task.texts", TEXTS);
    if (at(manifest, "files") === undefined || !Object.hasOwn(manifest["files"] as Tree, TOKENIZER)) {
      throw new PackageError(`the manifest's files lack ${TOKENIZER}, by which texts become tokens`);
    }
    if (at(manifest, "task.objective") === "generation" && at(manifest, "task.texts.template") === null) {
      throw new PackageError("the manifest's task.texts.template is missing, which generation needs");
    }
  } else {
    check(manifest, "task.images", IMAGES);
    if (at(manifest, "task.images.channels") === 3) check(manifest, "task.images", PICTURES);
  }
  if ((at(manifest, "task.inputs") === "images") !== (at(manifest, "model.kind") === "image")) {
    throw new PackageError("the manifest's task.inputs are not what its model takes");
  }
  check(manifest, "weights", { format: among("float32", "int8"), digest: isText });
  check(manifest, "config", SHARED);
  const also: Record<string, Holds> = { client: orNone(isSmall), groups: orNone(areGroups) };
  for (const [name, holds] of Object.entries(also)) {
    if (!holds(at(manifest, name, null))) throw new PackageError(`the manifest's ${name} is none that is allowed`);
  }
}

function check(manifest: Tree, path: string, wanted: Record<string, Holds>): void {
  const section = at(manifest, path);
  for (const [name, holds] of Object.entries(wanted)) {
    if (!holds(at(section, name))) throw new PackageError(`the manifest's ${path}.${name} is none that is allowed`);
  }
}
