/** Arrays in a file of NumPy's (.npz): whole numbers, floats and texts, and nothing that would be run as a program. */

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const LOCAL = 0x04034b50;
const STORED = 0;
const DEFLATED = 8;

/** An array: its kind as NumPy spells it, its shape, and its values. */
export interface Npy {
  /** `f4`, `f8`, `i8`, `u1`, `U5` and the like, without the byte order. */
  readonly kind: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array<ArrayBuffer>;
}

/**
 * The arrays of a file by their names.
 *
 * @throws Error where it is none, or of a kind that isn't read here.
 */
export async function readNpz(file: Blob): Promise<Map<string, Npy>> {
  const data = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(data.buffer);
  const [count, begin] = directory(view);
  const found = new Map<string, Npy>();
  let at = begin;
  for (let entry = 0; entry < count; entry += 1) {
    if (at + 46 > data.length || view.getUint32(at, true) !== ENTRY) throw new Error("its directory is damaged");
    const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
    const [size, name] = [view.getUint32(at + 20, true), view.getUint16(at + 28, true)];
    const local = view.getUint32(at + 42, true);
    const called = new TextDecoder().decode(data.subarray(at + 46, at + 46 + name)).replace(/\.npy$/, "");
    if (flags & 1) throw new Error("it is encrypted");
    found.set(called, npy(await unpacked(data, view, { local, size, method })));
    at += 46 + name + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return found;
}

/** How many entries the directory has, and where it begins. */
function directory(view: DataView): [number, number] {
  const last = view.byteLength - 22;
  for (let at = last; at >= Math.max(0, last - 0xffff); at -= 1) {
    if (view.getUint32(at, true) === END) return [view.getUint16(at + 10, true), view.getUint32(at + 16, true)];
  }
  throw new Error("it is no .npz");
}

interface Stored {
  readonly local: number;
  readonly size: number;
  readonly method: number;
}

async function unpacked(
  data: Uint8Array<ArrayBuffer>,
  view: DataView,
  stored: Stored,
): Promise<Uint8Array<ArrayBuffer>> {
  const { local, size, method } = stored;
  if (local + 30 > data.length || view.getUint32(local, true) !== LOCAL) throw new Error("an entry is damaged");
  const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  if (begin + size > data.length) throw new Error("an entry is cut off");
  const packed = data.subarray(begin, begin + size);
  if (method === STORED) return packed;
  if (method !== DEFLATED) throw new Error(`compression ${method} is not read here`);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** An array of the .npy format: a magic, a version, the length of a header, the header, the values. */
function npy(file: Uint8Array<ArrayBuffer>): Npy {
  if (file.length < 12 || String.fromCharCode(...file.subarray(1, 6)) !== "NUMPY")
    throw new Error("an entry is no array");
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const [length, begin] = (file[6] as number) < 2 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const header = new TextDecoder("latin1").decode(file.subarray(begin, begin + length));
  const descr = /'descr': '([<>|=])(\w\d+)'/.exec(header);
  const shape = /'shape': \(([\d, ]*)\)/.exec(header);
  if (descr === null || shape === null || !header.includes("'fortran_order': False")) {
    throw new Error("an array is of a kind that is not read here");
  }
  if (descr[1] === ">") throw new Error("an array is big-endian");
  const sizes = (shape[1] as string)
    .split(",")
    .filter((part) => part.trim())
    .map(Number);
  const [kind, each] = [descr[2] as string, bytesEach(descr[2] as string)];
  if (!each) throw new Error("an array is of values without a byte");
  const data = file.slice(begin + length);
  if (data.length !== sizes.reduce((product, size) => product * size, each)) throw new Error("an array is cut off");
  return { kind, shape: sizes, data };
}

function bytesEach(kind: string): number {
  const count = Number(kind.slice(1));
  return kind[0] === "U" ? 4 * count : count;
}

/** The values of a list of whole numbers or texts, as texts; undefined where they are of another kind. */
export function textsOf(array: Npy): string[] | undefined {
  const view = new DataView(array.data.buffer, array.data.byteOffset, array.data.byteLength);
  const each = bytesEach(array.kind);
  const count = array.data.byteLength / each;
  const reads: Record<string, (at: number) => string> = {
    i1: (at) => String(view.getInt8(at)),
    i2: (at) => String(view.getInt16(at, true)),
    i4: (at) => String(view.getInt32(at, true)),
    i8: (at) => String(view.getBigInt64(at, true)),
    u1: (at) => String(view.getUint8(at)),
    u2: (at) => String(view.getUint16(at, true)),
    u4: (at) => String(view.getUint32(at, true)),
    u8: (at) => String(view.getBigUint64(at, true)),
  };
  const ofText = (at: number): string => {
    const points = Array.from({ length: each / 4 }, (_, place) => view.getUint32(at + 4 * place, true));
    return points.map((point) => String.fromCodePoint(point)).join("").replace(/\0+$/, "");
  };
  const read = array.kind[0] === "U" ? ofText : reads[array.kind];
  return read === undefined ? undefined : Array.from({ length: count }, (_, place) => read(place * each));
}
