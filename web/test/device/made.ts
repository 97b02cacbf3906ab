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

/** An array for `npzOf`: its kind as NumPy spells it with the byte order, its shape, its values. */
export interface Made {
  readonly descr: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array<ArrayBuffer>;
}

/** A file of NumPy's with these arrays, not compressed. */
export function npzOf(arrays: Record<string, Made>): Uint8Array<ArrayBuffer> {
  const [entries, directory]: [Uint8Array[], Uint8Array[]] = [[], []];
  let at = 0;
  for (const [name, { descr, shape, data }] of Object.entries(arrays)) {
    const told = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.map((each) => `${each},`).join(" ")}), }`;
    const magic = Uint8Array.of(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, told.length & 255, told.length >> 8);
    const size = magic.length + told.length + data.length;
    const called = TEXT.encode(`${name}.npy`);
    const [local, central] = [new DataView(new ArrayBuffer(30)), new DataView(new ArrayBuffer(46))];
    local.setUint32(0, 0x04034b50, true);
    local.setUint16(26, called.length, true);
    central.setUint32(0, 0x02014b50, true);
    central.setUint32(20, size, true);
    central.setUint16(28, called.length, true);
    central.setUint32(42, at, true);
    entries.push(new Uint8Array(local.buffer), called, magic, TEXT.encode(told), data);
    directory.push(new Uint8Array(central.buffer), called);
    at += 30 + called.length + size;
  }
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(10, Object.keys(arrays).length, true);
  end.setUint32(16, at, true);
  const parts = [...entries, ...directory, new Uint8Array(end.buffer)];
  const file = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let begin = 0;
  for (const part of parts) {
    file.set(part, begin);
    begin += part.length;
  }
  return file;
}

/** The values of an array of floats, and of texts of so many characters. */
export const floats = (...values: number[]): Uint8Array<ArrayBuffer> =>
  new Uint8Array(Float32Array.from(values).buffer);
export const characters = (width: number, ...texts: string[]): Uint8Array<ArrayBuffer> =>
  new Uint8Array(
    Uint32Array.from(texts.flatMap((text) => Array.from({ length: width }, (_, at) => text.charCodeAt(at) || 0))).buffer,
  );

/** What a manifest has beside its files and graphs where a device can take part in its run, with images of one value. */
export function recipeOf(config: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    task: { objective: "classification", label_names: ["a", "b"], inputs: "images", images: { channels: 1, size: [1, 1] } },
    weights: { format: "float32", digest: "" },
    config: {
      algorithm: { name: "ho_sfl" },
      bottom: {
        optimizer: "sgd",
        lr: 0.1,
        momentum: 0,
        weight_decay: 0,
        law: "rademacher",
        schedule: "constant",
        warmup: 0,
      },
      model: { dtype: "float32" },
      partition: { name: "iid", alpha: 1 },
      task: { name: "made", holdout: 0, train_rows: null },
      seed: 0,
      batch_size: 1,
      clients: 1,
      sampled_clients: 1,
      steps: 1,
      steps_per_round: 1,
      ...config,
    },
  };
}

/** A graph in ONNX that does one thing to a tensor of four dimensions, such as "Identity" or "Sqrt". */
export function graphOf(operator: string, input: string): Uint8Array<ArrayBuffer> {
  const number = (field: number, value: number): number[] => [field << 3, value];
  const part = (field: number, content: readonly number[] | string): number[] => {
    const data = typeof content === "string" ? [...TEXT.encode(content)] : content;
    return [(field << 3) | 2, (data.length & 127) | 128, data.length >> 7, ...data];
  };
  const dimensions = ["n", "c", "h", "w"].flatMap((name) => part(1, part(2, name)));
  const type = part(2, part(1, [...number(1, 1), ...part(2, dimensions)])); // of float32
  const node = [...part(1, input), ...part(2, "out"), ...part(4, operator)];
  const ends = [...part(11, [...part(1, input), ...type]), ...part(12, [...part(1, "out"), ...type])];
  const graph = [...part(1, node), ...part(2, "made"), ...ends];
  return Uint8Array.from([...number(1, 8), ...part(7, graph), ...part(8, [...part(1, ""), ...number(2, 13)])]);
}
