/**
 * A device package: files from the server's side with all that a device needs, and nothing of it trusted before.
 *
 * `manifest.json` says what is in it and holds the digest of every other file; `*.onnx` are the graphs, and
 * `weights.safetensors` is what the device holds of the model when a run begins. Nothing of it is run as code.
 */

import { PackageError } from "../core/errors";
import type { Tensor } from "../core/tensor";
import { MANIFEST, type Manifest, checkGraphs, checkTheta, readManifest } from "./manifest";
import { MOST_BYTES, WEIGHTS, views } from "./safetensors";

/** Where the files of a package are. */
export interface Files {
  /** How many bytes a file has; undefined where there is none of the name. */
  size(name: string): number | undefined;
  /** All of a file. */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
}

/** A package whose files and manifest `open` has checked. */
export class Package {
  /** Weights by name: float32, or int8 and the scales of its channels at `name + SCALE`; views of one buffer. */
  readonly weights: ReadonlyMap<string, Tensor>;
  readonly manifest: Manifest;
  readonly files: Files;

  private constructor(files: Files, manifest: Manifest, weights: ReadonlyMap<string, Tensor>) {
    this.files = files;
    this.manifest = manifest;
    this.weights = weights;
  }

  /**
   * Reads and checks a package.
   *
   * @throws PackageError where a file is missing, not the one that the manifest means, or says what cannot be.
   */
  static async open(files: Files): Promise<Package> {
    const size = files.size(MANIFEST);
    if (size === undefined) throw new PackageError(`${MANIFEST}: there is no such file in the package`);
    if (size > MOST_BYTES) throw new PackageError(`${MANIFEST}: it has more than ${MOST_BYTES} bytes`);
    const manifest = readManifest(await files.read(MANIFEST));
    let held: Uint8Array<ArrayBuffer> | undefined;
    for (const name of Object.keys(manifest.files)) {
      const data = await checkedFile(files, name, manifest);
      if (name === WEIGHTS) held = data;
    }
    const weights = views(held as Uint8Array<ArrayBuffer>);
    checkTheta(manifest, weights);
    checkGraphs(manifest, weights);
    return new Package(files, manifest, weights);
  }

  /** Bytes of weights that are held. */
  get bytes(): number {
    return this.manifest.files[WEIGHTS]?.bytes ?? 0;
  }

  /** The parameters that the device trains, as a run begins with them: name → an array of the caller's own. */
  theta(): Map<string, Tensor<"float32">> {
    const found = new Map<string, Tensor<"float32">>();
    for (const { name, shape } of this.manifest.theta) {
      const held = this.weights.get(`0.${name}`) as Tensor;
      found.set(name, { dtype: "float32", shape: [...shape], data: (held.data as Float32Array<ArrayBuffer>).slice() });
    }
    return found;
  }

  /**
   * A graph's file, whose digest is taken again: what is loaded is what was checked.
   *
   * @throws PackageError where it is another one by now, refers to files beside it, or has a loop.
   */
  async graph(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const data = await checkedFile(this.files, name, this.manifest);
    // A tensor of a graph may name a file, under this key alone.
    if (holds(data, "location")) throw new PackageError(`${name}: it refers to a file of this machine`);
    // The operator that may never end; no block of a model has one.
    if (holds(data, "Loop")) throw new PackageError(`${name}: it has a loop, which may never end`);
    return data;
  }
}

/** Whole numbers times the scale of their channel: the floats that the reference trains with, to the bit. */
export function dequantised(values: Tensor, scale: Tensor): Tensor {
  const data = new Float32Array(values.data.length);
  const [whole, scales] = [values.data as Int8Array, scale.data as Float32Array];
  const strides = stridesOf(scale.shape);
  const place = new Array<number>(values.shape.length).fill(0);
  let from = 0;
  for (let i = 0; i < data.length; i++) {
    data[i] = (whole[i] as number) * (scales[from] as number);
    for (let d = place.length - 1; d >= 0; d--) {
      place[d] = (place[d] as number) + 1;
      from += strides[d] as number;
      if ((place[d] as number) < (values.shape[d] as number)) break;
      from -= (strides[d] as number) * (values.shape[d] as number);
      place[d] = 0;
    }
  }
  return { dtype: "float32", shape: [...values.shape], data };
}

/** How far two neighbours along a dimension are apart; 0 where there is one value for all of them. */
function stridesOf(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length).fill(0);
  let step = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    strides[d] = shape[d] === 1 ? 0 : step;
    step *= shape[d] as number;
  }
  return strides;
}

/** SHA-256 of bytes, in hexadecimal. */
export async function sha256(data: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function holds(data: Uint8Array, text: string): boolean {
  const wanted = new TextEncoder().encode(text);
  for (let from = data.indexOf(wanted[0] as number); from >= 0; from = data.indexOf(wanted[0] as number, from + 1)) {
    let same = 1;
    while (same < wanted.length && data[from + same] === wanted[same]) same++;
    if (same === wanted.length) return true;
  }
  return false;
}

async function checkedFile(files: Files, name: string, manifest: Manifest): Promise<Uint8Array<ArrayBuffer>> {
  const wanted = manifest.files[name] as { sha256: string; bytes: number };
  const size = files.size(name);
  if (size === undefined) throw new PackageError(`${name}: there is no such file in the package`);
  if (size !== wanted.bytes) {
    throw new PackageError(`${name}: it has ${size} bytes, and the manifest says ${wanted.bytes}`);
  }
  const data = await files.read(name);
  if (data.length !== wanted.bytes || (await sha256(data)) !== wanted.sha256) {
    throw new PackageError(`${name}: its digest is not the manifest's`);
  }
  return data;
}
