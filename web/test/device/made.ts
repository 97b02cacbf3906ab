/** A package made up in memory, for tests of what a page refuses. */

import { type Files, sha256 } from "../../src/device/package";

export type Named = Record<string, Uint8Array<ArrayBuffer>>;

const TEXT = new TextEncoder();

/** Bytes of a safetensors file of float32 arrays. */
export function weightsOf(arrays: Record<string, { shape: number[]; data: number[] }>): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = {};
  let at = 0;
  for (const [name, { shape, data }] of Object.entries(arrays)) {
    header[name] = { dtype: "F32", shape, data_offsets: [at, at + 4 * data.length] };
    at += 4 * data.length;
  }
  return withHeader(
    header,
    new Uint8Array(Float32Array.from(Object.values(arrays).flatMap(({ data }) => data)).buffer),
  );
}

/** A file of weights with this header, whatever it says. */
export function withHeader(header: unknown, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const told = TEXT.encode(JSON.stringify(header));
  const file = new Uint8Array(8 + told.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(told.length), true);
  file.set(told, 8);
  file.set(data, 8 + told.length);
  return file;
}

export const BLOCK = { kind: 0, weights: ["0.a"], others: {}, window: null };

/** The files of a package whose graphs are no graphs; `change` may spoil its manifest. */
export async function packageOf(
  files: Named = {},
  change: (manifest: Record<string, unknown>) => void = () => {},
): Promise<Named> {
  const all: Named = {
    "embed.onnx": TEXT.encode("embed"),
    "block0.onnx": TEXT.encode("block"),
    "weights.safetensors": weightsOf({ "0.a": { shape: [2], data: [1, 2] } }),
    ...files,
  };
  const listed: Record<string, unknown> = {};
  for (const [name, data] of Object.entries(all)) listed[name] = { sha256: await sha256(data), bytes: data.length };
  const manifest: Record<string, unknown> = {
    format: 1,
    files: listed,
    model: { kind: "image", cut: 1, longest: 0 },
    graphs: {
      embed: { file: "embed.onnx", weights: [], others: [] },
      kinds: [{ file: "block0.onnx" }],
      blocks: [BLOCK],
      head: null,
    },
    theta: [{ name: "a", shape: [2] }],
    exact: [],
  };
  change(manifest);
  return { ...all, "manifest.json": TEXT.encode(JSON.stringify(manifest)) };
}

/** Where these files are; `read` has the names that were read. */
export function filesOf(named: Named): Files & { readonly read: Files["read"]; readonly wasRead: string[] } {
  const wasRead: string[] = [];
  return {
    wasRead,
    size: (name) => named[name]?.length,
    read: async (name) => {
      wasRead.push(name);
      return (named[name] as Uint8Array<ArrayBuffer>).slice();
    },
  };
}
