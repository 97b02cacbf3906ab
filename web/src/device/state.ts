/**
 * What a device keeps in its browser to go on from: a state for each round that was saved, the last two.
 *
 * One may be another's, damaged or made up, so all of it is checked before any of it is used.
 */

import { DeviceError } from "../core/errors";
import { type Tensor, bytesOf, described, sameShape, sizeOf } from "../core/tensor";
import { at, isTree, isWhole, shown } from "./facts";
import { sha256 } from "./package";
import { NoRoom, type Store } from "./store";

/** Arrays by name, and plain values. */
export interface Kept {
  readonly arrays: ReadonlyMap<string, Tensor>;
  readonly values: Readonly<Record<string, unknown>>;
}

/** A state that was read. */
export interface State extends Kept {
  readonly lineage: string;
  readonly rounds: number;
  /** Digests of what it was made with. */
  readonly about: string;
  readonly position: number;
  /** Of the link's codecs. */
  readonly link: unknown;
}

const KEYS = ["about", "lineage", "link", "position", "rounds"];

/** The states of one client of one run. */
export class States {
  private readonly begin: readonly string[];

  /** `owner`: whose they are among this origin's, the token's public part; `run`, `client`: of the order. */
  constructor(
    private readonly store: Store,
    owner: string,
    run: string,
    client: number,
  ) {
    this.begin = [owner, run, String(client)];
  }

  /**
   * Writes the state behind a round, and removes all but the last two, and those of later rounds.
   *
   * It is one transaction: whatever ends this page, the state is there as a whole or not at all. Where the browser has
   * no room, what this device has left of other runs goes: it takes part in one at a time.
   *
   * @throws NoRoom where the browser has none all the same.
   */
  async save(rounds: number, kept: Kept): Promise<void> {
    const arrays = [...kept.arrays].map(([name, { dtype, shape, data }]) => ({ name, dtype, shape: [...shape], data }));
    const values = JSON.stringify(kept.values);
    const earlier = (await this.rounds()).filter((each) => each < rounds).at(-1);
    const others = (await this.rounds()).filter((each) => each !== earlier && each !== rounds);
    const sum = await sumOf(kept.arrays, values);
    const remove = others.map((each) => [...this.begin, each]);
    const put: [IDBValidKey, unknown][] = [[[...this.begin, rounds], { arrays, values, sum }]];
    try {
      await this.store.change("states", put, remove);
    } catch (error) {
      const old = await this.ofOtherRuns();
      if (!(error instanceof NoRoom) || !old.length) throw error;
      await this.store.change("states", [], old);
      await this.store.change("states", put, remove);
    }
  }

  private async ofOtherRuns(): Promise<IDBValidKey[][]> {
    const [owner] = this.begin as [string, ...string[]];
    const keys = await this.store.keys("states", owner);
    return keys.filter((key) => !this.begin.every((part, place) => key[place] === part));
  }

  /** The rounds behind which there is a state, the newest last. */
  async rounds(): Promise<number[]> {
    return (await this.store.keys("states", ...this.begin)).map((key) => key.at(-1) as number);
  }

  /**
   * The state behind a round.
   *
   * @throws DeviceError where it is damaged, or none that a device has written.
   */
  async read(rounds: number): Promise<State> {
    const refusal = (why: string): DeviceError =>
      new DeviceError(`the state behind round ${rounds} can't be read: ${why}`);
    const found = await this.store.get("states", [...this.begin, rounds]);
    const [listed, text] = [at(found, "arrays"), at(found, "values")];
    if (!Array.isArray(listed) || typeof text !== "string") throw refusal("it is none");
    const arrays = new Map<string, Tensor>();
    for (const each of listed) arrays.set(String(at(each, "name")), tensorOf(each, refusal));
    if (at(found, "sum") !== (await sumOf(arrays, text))) throw refusal("it is damaged");
    const values: unknown = JSON.parse(text);
    if (!isTree(values) || Object.keys(values).sort().join() !== KEYS.join()) throw refusal("its values are none");
    const { lineage, rounds: behind, about, position, link } = values;
    if (typeof lineage !== "string" || typeof about !== "string" || !isWhole(behind) || !isWhole(position)) {
      throw refusal("its values are of other kinds");
    }
    return { arrays, values, lineage, rounds: behind, about, position, link };
  }
}

function tensorOf(told: unknown, refusal: (why: string) => DeviceError): Tensor {
  const [dtype, shape, data] = [at(told, "dtype"), at(told, "shape"), at(told, "data")];
  const isArray = ArrayBuffer.isView(data) && !(data instanceof DataView);
  if (typeof dtype !== "string" || !Array.isArray(shape) || !shape.every(isWhole) || !isArray)
    throw refusal("an array is none");
  const found = { dtype, shape, data } as unknown as Tensor;
  if (found.data.length !== sizeOf(found.shape)) throw refusal("an array is cut off");
  if (found.dtype === "float32" && !found.data.every(Number.isFinite)) throw refusal("a value is not finite");
  return found;
}

/**
 * Refuses arrays that lack one of `wanted`, have one of another form, or one that nobody asked for.
 *
 * `free`: how the names of those begin whose number and form somebody else checks.
 *
 * @throws DeviceError that names the array.
 */
export function checkArrays(
  found: ReadonlyMap<string, Tensor>,
  wanted: ReadonlyMap<string, Tensor>,
  free: string,
): void {
  for (const [name, like] of wanted) {
    const kept = found.get(name);
    if (kept === undefined || kept.dtype !== like.dtype || !sameShape(kept.shape, like.shape)) {
      throw new DeviceError(`array ${shown(name, 80)} is missing, or of another form than ${described(like)}`);
    }
  }
  const unknown = [...found.keys()].find((name) => !wanted.has(name) && !name.startsWith(free));
  if (unknown !== undefined) throw new DeviceError(`array ${shown(unknown, 80)} is there, and nothing has this name`);
}

/** A checksum: for damage and mix-ups, not against forgery. A digit of the position would move θ apart unseen. */
async function sumOf(arrays: ReadonlyMap<string, Tensor>, values: string): Promise<string> {
  const parts = await Promise.all(
    [...arrays].map(async ([name, array]) => `${name} ${described(array)} ${await sha256(copied(bytesOf(array)))}`),
  );
  return sha256(new TextEncoder().encode([...parts, values].join("\n")));
}

function copied(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(bytes);
}
