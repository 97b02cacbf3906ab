/** A package's manifest, by its kinds: others wrote it, so nothing of it is relied on before it is looked at here. */

import { PackageError } from "../core/errors";
import { type Tensor, sameShape } from "../core/tensor";
import { type Tree, isTree, shown } from "./facts";
import { MOST_BYTES, WEIGHTS, isSize, json, shapeOf } from "./safetensors";

export const FORMAT = 1;
export const MANIFEST = "manifest.json";
export const SCALE = ".scale";
const MOST_FILES = 4096;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$/;
const KINDS = ["encoder", "decoder", "image"];

export interface GraphOf {
  readonly file: string;
  readonly weights: readonly string[];
}

export interface BlockOf {
  readonly kind: number;
  readonly weights: readonly string[];
  readonly others: { readonly [name: string]: string };
  readonly window: number | null;
}

export interface HeadOf extends GraphOf {
  readonly read: string;
  readonly sizes: readonly number[];
  readonly tensors: readonly { readonly name: string; readonly shape: readonly number[] }[];
}

/** What `checked` has looked at, by its kinds. */
export interface Manifest extends Tree {
  readonly files: { readonly [name: string]: { readonly sha256: string; readonly bytes: number } };
  readonly model: {
    readonly kind: "encoder" | "decoder" | "image";
    readonly cut: number;
    readonly longest: number;
    readonly width: number;
    readonly positions_behind?: number | null;
  } & Tree;
  readonly graphs: {
    readonly embed: GraphOf & { readonly others: readonly string[] };
    readonly kinds: readonly { readonly file: string; readonly backward?: string | null }[];
    readonly blocks: readonly BlockOf[];
    readonly head?: HeadOf | null;
  };
  readonly theta: readonly { readonly name: string; readonly shape: readonly number[] }[];
  readonly exact: readonly string[];
}

/**
 * The manifest in a file.
 *
 * @throws PackageError where it says what can't be.
 */
export function readManifest(file: Uint8Array): Manifest {
  if (file.length > MOST_BYTES) throw new PackageError(`${MANIFEST}: it has more than ${MOST_BYTES} bytes`);
  const manifest = json(file, `${MANIFEST}: it is not JSON`);
  if (!isTree(manifest)) throw new PackageError(`${MANIFEST}: it must hold names and values`);
  if (manifest["format"] !== FORMAT) {
    const cure = "make it anew, with the halfback of this page's version";
    throw new PackageError(
      `${MANIFEST}: its format is ${shown(manifest["format"], 40)}; this device reads ${FORMAT}: ${cure}`,
    );
  }
  const listed = named(manifest, "files");
  const names = Object.keys(listed);
  if (!names.length || names.length > MOST_FILES || !names.includes(WEIGHTS)) {
    throw new PackageError(`${MANIFEST}: files: 1 to ${MOST_FILES} are allowed, ${WEIGHTS} among them`);
  }
  for (const [name, entry] of Object.entries(listed)) {
    if (!NAME.test(name) || name === MANIFEST) {
      throw new PackageError(`${MANIFEST}: files: ${shown(name)} is no name of a file in this folder`);
    }
    if (!isTree(entry) || !/^[0-9a-f]{64}$/.test(String(entry["sha256"])) || !isSize(entry["bytes"])) {
      throw new PackageError(`${MANIFEST}: files: ${name}: a digest and a number of bytes are due`);
    }
  }
  checkModel(named(manifest, "model"));
  return manifest as unknown as Manifest;
}

function checkModel(model: Tree): void {
  if (typeof model["kind"] !== "string" || !KINDS.includes(model["kind"])) {
    throw new PackageError(`${MANIFEST}: model.kind is ${shown(model["kind"], 40)}; allowed are ${KINDS.join(", ")}`);
  }
  for (const name of ["cut", "longest"]) {
    if (!isSize(model[name])) throw new PackageError(`${MANIFEST}: model.${name} must be a whole number`);
  }
  if (model["kind"] !== "image" && !(isSize(model["width"]) && model["width"] && model["longest"])) {
    throw new PackageError(`${MANIFEST}: model.width and model.longest must be 1 or more where rows are texts`);
  }
  for (const name of ["pad", "positions_behind"]) {
    if (model[name] !== undefined && model[name] !== null && !isSize(model[name])) {
      throw new PackageError(`${MANIFEST}: model.${name} must be a whole number or null`);
    }
  }
}

/** Refuses trained parameters that are not among the weights. */
export function checkTheta(manifest: Manifest, weights: ReadonlyMap<string, Tensor>): void {
  const names = new Set<string>();
  for (const entry of list(manifest, "theta")) {
    const [name, shape] = isTree(entry) ? [entry["name"], shapeOf(entry["shape"])] : [];
    if (typeof name !== "string" || shape === undefined || names.has(name)) {
      throw new PackageError(`${MANIFEST}: theta: ${shown(name, 80)}: a name of its own and a shape are due`);
    }
    const found = weights.get(`0.${name}`);
    if (found === undefined || found.dtype !== "float32" || !sameShape(found.shape, shape)) {
      throw new PackageError(`${WEIGHTS}: ${shown(name, 80)}: float32 values of shape [${shape}] are due`);
    }
    names.add(name);
  }
  if (!texts(manifest, "exact").every((name) => names.has(name))) {
    throw new PackageError(`${MANIFEST}: exact: only names of theta are allowed`);
  }
}

/** Refuses graphs that are no files, or take what is not among the weights. */
export function checkGraphs(manifest: Manifest, weights: ReadonlyMap<string, Tensor>): void {
  const graphs = named(manifest, "graphs");
  const embed = named(graphs, "embed");
  texts(embed, "others");
  const [kinds, blocks] = [list(graphs, "kinds"), list(graphs, "blocks")];
  if (blocks.length !== manifest.model.cut || !blocks.length) {
    throw new PackageError(`${MANIFEST}: graphs: ${manifest.model.cut} blocks are due`);
  }
  const head = graphs["head"] === undefined || graphs["head"] === null ? [] : [named(graphs, "head")];
  for (const piece of [embed, ...kinds, ...head]) {
    for (const key of ["file", "backward"]) {
      const name = isTree(piece) ? piece[key] : 0;
      if (key === "backward" && (name === undefined || name === null)) continue;
      if (typeof name !== "string" || !Object.hasOwn(manifest.files, name)) {
        throw new PackageError(`${MANIFEST}: graphs: ${shown(name)} is none of the files`);
      }
    }
  }
  for (const piece of [embed, ...blocks, ...head]) {
    if (!isTree(piece)) throw new PackageError(`${MANIFEST}: graphs: names and values are due`);
    for (const name of texts(piece, "weights")) {
      const found = weights.get(name);
      if (found === undefined || (found.dtype === "int8" && !isScaled(found, weights.get(name + SCALE)))) {
        throw new PackageError(`${WEIGHTS}: ${shown(name, 80)} is missing, or the scales of its channels are`);
      }
    }
  }
  for (const each of head) checkHead(each);
  for (const block of blocks as Tree[]) {
    if (!Object.values(named(block, "others")).every((source) => typeof source === "string")) {
      throw new PackageError(`${MANIFEST}: graphs: what a block takes beside must have names`);
    }
    if (!isSize(block["kind"]) || block["kind"] >= kinds.length) {
      throw new PackageError(`${MANIFEST}: graphs: a block's kind is none of the ${kinds.length} kinds`);
    }
    if (block["window"] !== undefined && block["window"] !== null && !(isSize(block["window"]) && block["window"])) {
      throw new PackageError(`${MANIFEST}: graphs: a block's window must be 1 or more, or null`);
    }
  }
}

function checkHead(head: Tree): void {
  if (typeof head["read"] !== "string" || !["first", "last", "scored", "all"].includes(head["read"])) {
    throw new PackageError(`${MANIFEST}: graphs: what the head reads is not known`);
  }
  if (!shapeOf(head["sizes"])?.length) {
    throw new PackageError(`${MANIFEST}: graphs: the sizes of what the head takes are due`);
  }
  for (const entry of list(head, "tensors")) {
    if (!isTree(entry) || typeof entry["name"] !== "string" || shapeOf(entry["shape"]) === undefined) {
      throw new PackageError(`${MANIFEST}: graphs: the head's tensors must have names and shapes`);
    }
  }
}

function isScaled(values: Tensor, scale: Tensor | undefined): boolean {
  if (scale === undefined || scale.dtype !== "float32" || scale.shape.length !== values.shape.length) return false;
  return scale.shape.every((size, place) => size === 1 || size === values.shape[place]);
}

function named(tree: Tree, name: string): Tree {
  const found = tree[name];
  if (!isTree(found)) throw new PackageError(`${MANIFEST}: ${name} must be names and values`);
  return found;
}

function list(tree: Tree, name: string): unknown[] {
  const found = tree[name];
  if (!Array.isArray(found)) throw new PackageError(`${MANIFEST}: ${name} must be a list`);
  return found;
}

function texts(tree: Tree, name: string): string[] {
  const found = list(tree, name);
  if (!found.every((each) => typeof each === "string")) {
    throw new PackageError(`${MANIFEST}: ${name} must be a list of names`);
  }
  return found as string[];
}
