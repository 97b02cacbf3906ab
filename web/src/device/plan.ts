/** What a package's recipe asks of a device: read, checked, and refused in one line where a page can't do it. */

import { entries } from "../core/codecs";
import { PackageError } from "../core/errors";
import { Replica } from "../core/replay";
import { Directions, type Law, seedsUnder } from "../core/seeds";
import { Probe } from "../core/slopes";
import type { Tensor } from "../core/tensor";
import { type Falls, type Optimizer, type ScheduleShape, UpdateRule, schedule } from "../core/update";
import { type Tree, at, checkFacts, isTree, isWhole, shown } from "./facts";
import type { Manifest } from "./manifest";

export type Method = "ho_sfl" | "ho_sfl_pipelined" | "hosl" | "zo_sfl";
/** The methods that a page does, and slopes of a step where the recipe leaves them to the method. */
const DIRECTIONS: Record<Method, number> = { ho_sfl: 2, ho_sfl_pipelined: 2, hosl: 10, zo_sfl: 1 };
const U_SHAPE = ["ho_sfl"];
const EXACT = ["ho_sfl"];
const LINKS = [
  "activations_up",
  "activations_down",
  "gradient_up",
  "gradient_down",
  "slopes_up",
  "slopes_down",
] as const;
const MOST = 1_000_000_000;
/** What a package and a run must have alike; what else θ depends on, the digest of the weights says. */
export const SAME = [
  "algorithm",
  "bottom",
  "codecs",
  "seed",
  "batch_size",
  "steps",
  "steps_per_round",
  "sampled_clients",
  "model.cut",
  "model.head",
  "model.dtype",
  "top.train",
  "lora",
  "task.objective",
  "task.template",
  "task.verbaliser",
  "task.max_length",
  "task.image_size",
] as const;

/** A chain of codecs as a recipe has it. */
export type Chain = readonly (string | Tree)[];

/** A recipe as far as a device's work depends on it. */
export interface Plan {
  readonly method: Method;
  /** How it takes slopes. */
  readonly probe: Probe;
  /** The last blocks whose gradient it takes exactly, from the first that has parameters of it on. */
  readonly exactBlocks: number;
  /** How agreed slopes move θ. */
  readonly rule: UpdateRule;
  readonly law: Law;
  readonly shape: ScheduleShape;
  readonly falls: Falls;
  readonly warmup: number;
  readonly seed: number | bigint;
  readonly batchSize: number;
  readonly clients: number;
  readonly sampled: number;
  readonly steps: number;
  /** At most, of a round. */
  readonly stepsPerRound: number;
  /** The head and the labels are on the device (U-shape). */
  readonly hasHead: boolean;
  /** Rows that go through the bottom at a time; null for all. */
  readonly rowsAtOnce: number | null;
  /** The chain of each link that has one. */
  readonly codecs: Readonly<Record<string, Chain>>;
}

/** The most rows of agreed slopes that a run comes to: where clients take turns, each client's step is one. */
export function agreedRows(plan: Plan): number {
  return plan.steps * (plan.method === "hosl" ? plan.sampled : 1);
}

/**
 * Refuses a recipe that a page can't do, whatever the model is.
 *
 * @throws PackageError that names the setting.
 */
function checkRecipe(config: unknown): void {
  const name = oneOf(config, "algorithm.name", Object.keys(DIRECTIONS));
  const head = at(config, "model.head", null);
  if (head !== null && !U_SHAPE.includes(name)) {
    throw new PackageError(`model.head=${shown(head)}: of ${name} a device can't do the U-shape`);
  }
  oneOf(config, "model.dtype", ["float32"]);
  checkSecrets(config);
  if (at(config, "client.memory", null) !== null) {
    throw new PackageError("client.memory: a device counts its whole process; use client.rows_at_once");
  }
  const blocks = at(config, "algorithm.exact_blocks", 0);
  if (blocks && !EXACT.includes(name)) {
    throw new PackageError(`algorithm.exact_blocks=${shown(blocks)}: ${name} takes no exact gradients`);
  }
  for (const [link, chain] of Object.entries(codecsOf(config))) {
    if (!isChain(chain)) {
      throw new PackageError(`codecs.${link}: names of codecs, or mappings of a name and options, are allowed`);
    }
    entries(chain, `codecs.${link}`);
  }
}

/**
 * Refuses a recipe whose server is to learn sums alone, or by which clients clip or add noise to what they say of a
 * step: a page would say its own slopes, as they are.
 *
 * @throws PackageError that names the setting.
 */
export function checkSecrets(config: unknown): void {
  if (at(config, "secure.sum", false)) {
    throw new PackageError("secure.sum=true: a page has no keys for it; it would say its slopes as they are");
  }
  for (const [name, value] of [["unit", "client"], ["where", "distributed"]] as const) {
    if (at(config, `privacy.${name}`) === value) {
      throw new PackageError(`privacy.${name}=${value}: a page clips rows, not all that it says, and adds no noise`);
    }
  }
}

/**
 * Refuses a client whose part of the model is not the package's, which has so many blocks.
 *
 * @throws PackageError that says which cuts there are.
 */
export function checkCut(config: unknown, client: number, blocks: number): void {
  const cuts = at(config, "model.cut");
  if (Array.isArray(cuts) && cuts.length && cuts[client % cuts.length] !== blocks) {
    throw new PackageError(`the package has ${blocks} blocks, and client ${client} of model.cut=${shown(cuts)} others`);
  }
}

/**
 * The plan of a package.
 *
 * @throws PackageError that names the setting that a page can't do, or that is none, or what else the manifest says
 *   wrongly.
 */
export function planOf(manifest: Manifest): Plan {
  checkFacts(manifest);
  const config = at(manifest, "config");
  checkRecipe(config);
  const method = at(config, "algorithm.name") as Method;
  const head = at(config, "model.head", null);
  if (head !== null && !isTree(at(manifest, "graphs.head"))) {
    throw new PackageError(`model.head=${shown(head, 20)}: the manifest's graphs have no head`);
  }
  const blocks = at(config, "algorithm.exact_blocks", 0);
  if (blocks !== "all") wholeAt(config, "algorithm.exact_blocks", 0, manifest.model.cut, 0);
  if (Boolean(blocks) !== manifest.exact.length > 0) {
    const came = `but the manifest's exact names ${manifest.exact.length} parameters`;
    throw new PackageError(`algorithm.exact_blocks=${shown(blocks, 20)}, ${came}`);
  }
  const rowsAtOnce = at(config, "client.rows_at_once", null);
  return {
    method,
    probe: probeOf(config, method, blocks ? 0 : 1),
    exactBlocks: notedBlocks(manifest),
    rule: ruleOf(config),
    law: oneOf(config, "bottom.law", ["rademacher", "gaussian"]) as Law,
    shape: oneOf(config, "bottom.schedule", ["constant", "linear", "cosine", "multistep"]) as ScheduleShape,
    falls: fallsOf(config),
    warmup: wholeAt(config, "bottom.warmup", 0),
    seed: seedOf(config),
    batchSize: wholeAt(config, "batch_size", 1),
    clients: wholeAt(config, "clients", 1),
    sampled: wholeAt(config, "sampled_clients", 1),
    steps: wholeAt(config, "steps", 1),
    stepsPerRound: wholeAt(config, "steps_per_round", 1),
    hasHead: head !== null,
    rowsAtOnce: rowsAtOnce === null ? null : wholeAt(config, "client.rows_at_once", 1),
    codecs: codecsOf(config),
  };
}

/** Of the run; beyond 2^53 it is no number of JavaScript's. */
function seedOf(config: unknown): number | bigint {
  const seed = at(config, "seed");
  if (isWhole(seed) || (typeof seed === "bigint" && seed > 0n && seed < 1n << 63n)) return seed;
  throw new PackageError(`seed=${shown(seed, 40)}: 0 to ${(1n << 63n) - 1n} are allowed`);
}

/** How many of the last blocks exact gradients go through: below the first that is trained no block has a graph. */
function notedBlocks(manifest: Manifest): number {
  const exact = new Set(manifest.exact.map((name) => `0.${name}`));
  const first = manifest.graphs.blocks.findIndex((block) => block.weights.some((name) => exact.has(name)));
  return first < 0 ? 0 : manifest.graphs.blocks.length - first;
}

function probeOf(config: unknown, method: Method, fewest: number): Probe {
  const own = method === "hosl" || method === "zo_sfl"; // whose estimator is not to be chosen
  const estimator = own ? "central" : oneOf(config, "algorithm.estimator", ["forward", "central"], "forward");
  return new Probe(
    wholeAt(config, "algorithm.directions", fewest, MOST, DIRECTIONS[method]),
    positiveAt(config, "algorithm.radius"),
    estimator === "central" ? "central" : "forward",
    own ? null : positiveAt(config, "algorithm.clip_samples"),
  );
}

function ruleOf(config: unknown): UpdateRule {
  const optimizer = oneOf(config, "bottom.optimizer", ["sgd", "momentum", "adamw", "sign"]) as Optimizer;
  const normalize = at(config, "bottom.normalize", false);
  if (typeof normalize !== "boolean") {
    throw new PackageError(`bottom.normalize=${shown(normalize, 40)}: true or false is allowed`);
  }
  return new UpdateRule({
    optimizer,
    lr: numberAt(config, "bottom.lr"),
    momentum: numberAt(config, "bottom.momentum"),
    weightDecay: numberAt(config, "bottom.weight_decay"),
    normalize,
    clip: positiveAt(config, "bottom.clip"),
  });
}

function fallsOf(config: unknown): Falls {
  const [milestones, gamma] = [at(config, "bottom.milestones", []), at(config, "bottom.gamma", 0.1)];
  if (!Array.isArray(milestones) || !milestones.every(isWhole)) {
    throw new PackageError(`bottom.milestones=${shown(milestones)}: a list of steps is allowed`);
  }
  if (typeof gamma !== "number" || !(gamma > 0 && gamma <= 1)) {
    throw new PackageError(`bottom.gamma=${shown(gamma, 40)}: above 0, up to 1, is allowed`);
  }
  return { milestones, gamma };
}

/** θ as a run begins with it, and what moves it. */
export function replicaOf(plan: Plan, manifest: Manifest, theta: ReadonlyMap<string, Tensor<"float32">>): Replica {
  const groups = (manifest["groups"] ?? null) as readonly (readonly string[])[] | null;
  return new Replica(
    theta,
    plan.rule,
    new Directions(seedsUnder(plan.seed, "direction", "bottom"), plan.law),
    schedule(plan.shape, plan.warmup, plan.steps, plan.falls),
    { groups, exact: manifest.exact },
  );
}

/** The chain of each link that has one, as the recipe has it. */
function codecsOf(config: unknown): Record<string, Chain> {
  const found: Record<string, Chain> = {};
  for (const link of LINKS) {
    const chain = at(config, `codecs.${link}`, null);
    if (chain !== null && !(Array.isArray(chain) && !chain.length)) found[link] = chain as Chain;
  }
  return found;
}

/** Whether it is a list of names, or of mappings that have one. */
function isChain(chain: unknown): chain is Chain {
  return Array.isArray(chain) && chain.every((each) => typeof (isTree(each) ? each["name"] : each) === "string");
}

function oneOf(config: unknown, path: string, allowed: readonly string[], otherwise?: string): string {
  const value = at(config, path, otherwise);
  if (typeof value !== "string" || !allowed.includes(value)) {
    throw new PackageError(`${path}=${shown(value)}: a device can do ${allowed.join(", ")}`);
  }
  return value;
}

function wholeAt(config: unknown, path: string, least: number, most = MOST, otherwise?: number): number {
  const value = at(config, path, otherwise);
  if (!isWhole(value) || value < least || value > most) {
    throw new PackageError(`${path}=${shown(value, 40)}: ${least} to ${most} are allowed`);
  }
  return value;
}

function numberAt(config: unknown, path: string): number {
  const value = at(config, path);
  if (typeof value !== "number" || !(value >= 0 && value <= 1e4)) {
    throw new PackageError(`${path}=${shown(value, 40)}: a number from 0 to 10000 is allowed`);
  }
  return value;
}

function positiveAt(config: unknown, path: string): number | null {
  const value = at(config, path, null);
  if (value === null) return null;
  if (typeof value !== "number" || !(value > 0 && value < 1e300)) {
    throw new PackageError(`${path}=${shown(value, 40)}: a positive number or null is allowed`);
  }
  return value;
}
