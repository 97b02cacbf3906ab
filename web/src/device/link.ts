/**
 * The device's end of its link: encode → pack on the way up, unpack → decode on the way down.
 *
 * A link's name is its field's role and direction: `activations_up`, `gradient_down`, with a head on the device also
 * `activations_down`, `gradient_up`, and where blocks have exact gradients `slopes_up`, `slopes_down`.
 */

import { makeReceiver, makeSender } from "../core/codecs";
import { type Parts, type Receiver, Samples, type Sender, type State, finite } from "../core/codecs/protocol";
import { TemporalReceiver, TemporalSender, checkUnique } from "../core/codecs/temporal";
import { Diverged, PackageError, PeerError } from "../core/errors";
import { type Bounds, HiddenForm, type LinkForm, VectorForm } from "../core/forms";
import {
  Caches,
  Encoded,
  FIELDS,
  type Field,
  type Message,
  type Part,
  type Value,
  made,
  ofParts,
  partsOf,
  valuesOf,
} from "../core/messages";
import { type Tensor, described, sameShape, tensor } from "../core/tensor";
import { type Bound, mostBytes, pack, unpack } from "../core/wire";
import { at } from "./facts";
import type { Chain } from "./plan";
import { Tally } from "./tally";

type Floats = Tensor<"float32">;

/** The samples that are on their way between the two ends; for texts also the tokens of each. */
interface OnTheWay {
  readonly ids: readonly number[];
  readonly tokens: readonly number[] | null;
}

/** The device's side of its link. It remembers which samples the step is about, and what its codecs remember. */
export class End {
  /** Bytes of the longest message that may come. */
  readonly mostBytes: number;
  private readonly senders = new Map<string, Sender>();
  private readonly receivers = new Map<string, Receiver>();
  private readonly temporal = new Map<string, TemporalSender | TemporalReceiver>();
  private readonly most: Bound;
  private batch: OnTheWay | null = null;

  /**
   * `codecs`: the chains by link, as the recipe has them; a link without one carries its values as they are. `forms`:
   * what these links carry. `tally`: counts what goes either way.
   *
   * @throws PackageError where a chain is none that this device can work with.
   */
  constructor(
    codecs: Readonly<Record<string, Chain>>,
    private readonly forms: ReadonlyMap<string, LinkForm>,
    bounds: Bounds,
    private readonly tally = new Tally(),
  ) {
    for (const [link, chosen] of Object.entries(codecs)) {
      const form = forms.get(link);
      if (form === undefined)
        throw new PackageError(`codecs.${link}: the links of this run are ${[...forms.keys()].join(", ")}`);
      if (link.endsWith("_up")) this.senders.set(link, makeSender(chosen, form.width, `codecs.${link}`));
      else this.receivers.set(link, makeReceiver(chosen, form.width, `codecs.${link}`));
    }
    this.most = bounds.receiving(forms, this.receivers);
    this.mostBytes = mostBytes(this.most);
    for (const [name, end] of this.ends()) {
      if (!(end instanceof TemporalSender || end instanceof TemporalReceiver)) continue;
      if (forms.get(name) instanceof VectorForm) {
        throw new PackageError(`codecs.${name}: temporal is not for exact gradients`);
      }
      this.temporal.set(name, end);
    }
  }

  /** What this end remembers, to be said first in a round; null where no link remembers samples. */
  hello(): Caches | null {
    this.batch = null; // of the round before
    if (!this.temporal.size) return null;
    const digests = BigInt64Array.from([...this.temporal.values()], (link) => link.cache.digest());
    return new Caches(tensor("int64", [digests.length], digests), null);
  }

  /**
   * Forgets the samples of every link of which the server remembers something else, and takes the thresholds.
   *
   * @throws PeerError where another message came, or not one digest and threshold a link.
   */
  meet(theirs: Message): void {
    const shape = [this.temporal.size];
    if (!(theirs instanceof Caches)) {
      throw new PeerError("", `${theirs.kind} came first in a round, Caches is allowed`);
    }
    const { digests, thresholds } = theirs;
    if (digests.dtype !== "int64" || !sameShape(digests.shape, shape)) {
      throw new PeerError("Caches.digests", described(digests), `int64 (${shape[0]},) is allowed`);
    }
    if (thresholds === null) throw new PeerError("Caches.thresholds", "the server says them, and only the server");
    const fits = thresholds.dtype === "float32" && sameShape(thresholds.shape, shape);
    if (!fits || !thresholds.data.every((value) => Math.abs(value) <= 1)) {
      const allowed = `float32 (${shape[0]},) from -1 to 1 is allowed`;
      throw new PeerError("Caches.thresholds", described(thresholds), allowed);
    }
    for (const [place, link] of [...this.temporal.values()].entries()) {
      if (link instanceof TemporalSender) link.threshold = thresholds.data[place] as number;
      if (link.cache.digest() !== digests.data[place]) link.cache.clear();
    }
  }

  /** The message as bytes; Diverged where what a codec would take is not finite. */
  send(message: Message): Uint8Array {
    const coded = ofParts(partsOf(message).map((part) => this.encoded(part)));
    const data = pack(coded);
    this.tally.count("up", coded, data.length);
    return data;
  }

  private encoded(part: Part): Part {
    const values = valuesOf(part);
    this.turnTo(part.kind, values);
    const coded = FIELDS[part.kind].map((field, place): Value => {
      const [value, sender] = [values[place] as Value, this.senders.get(`${field.role}_up`)];
      if (sender === undefined || !isCoded(field)) return value;
      const link = `${field.role}_up`;
      const matrix = (this.forms.get(link) as LinkForm).matrix(value as Floats);
      const where = `${part.kind}.${field.name}`;
      if (!finite(matrix)) throw new Diverged(where, "is not finite", "lower the learning rates");
      return within(where, () => new Encoded(sender.encode(matrix, this.samples(part, link))));
    });
    return made(part.kind, coded);
  }

  /**
   * The message in these bytes.
   *
   * @throws PeerError where the bytes are no message, or a field is not what this link's codecs make.
   */
  receive(data: Uint8Array): Message {
    if (data.length > this.mostBytes) {
      throw new PeerError("message", `${data.length} bytes`, `at most ${this.mostBytes} are allowed`);
    }
    const message = unpack(data, this.most);
    this.tally.count("down", message, data.length);
    return ofParts(partsOf(message).map((part) => this.decoded(part)));
  }

  private decoded(part: Part): Part {
    const values = valuesOf(part);
    const plain = FIELDS[part.kind].map((field, place): Value => {
      const [value, link] = [values[place] as Value, `${field.role}_down`];
      const receiver = isCoded(field) ? this.receivers.get(link) : undefined;
      const where = `${part.kind}.${field.name}`;
      if (value instanceof Encoded !== (receiver !== undefined)) {
        const [came, allowed] =
          receiver === undefined ? ["encoded values", "a tensor"] : ["a tensor", "encoded values"];
        throw new PeerError(where, came, `${allowed} is allowed on this link`);
      }
      if (receiver === undefined || !(value instanceof Encoded)) return value;
      const matrix = within(where, () => receiver.decode(value.parts, this.samples(part, link, value.parts)));
      return (this.forms.get(link) as LinkForm).tensor(matrix);
    });
    return made(part.kind, plain);
  }

  /** From a message that names its samples on, both ends are about these; the next ones go without their ids. */
  private turnTo(kind: string, values: readonly Value[]): void {
    if (kind !== "Activations" || !(this.senders.size || this.receivers.size)) return;
    const [, lengths, , ids] = values as [Value, Tensor | null, Value, Tensor | null];
    if (ids === null) return;
    const samples = Array.from(ids.data as Int32Array);
    if (this.temporal.size) within(`${kind}.sample_ids`, () => checkUnique(samples));
    this.batch = { ids: samples, tokens: lengths === null ? null : Array.from(lengths.data as Int32Array) };
  }

  /**
   * Those of the step, without ids where the message is one of several of them.
   *
   * A vector is one by itself; so are as many of them as these `parts` have rows for.
   */
  private samples(part: Part, link: string, parts: Parts = []): Samples {
    const form = this.forms.get(link) as LinkForm;
    if (!(form instanceof HiddenForm)) {
      const rows = parts[0]?.shape[0] ?? 0;
      return new Samples([0], [Math.max(Math.floor(rows / form.rows), 1) * form.rows]);
    }
    const { batch } = this;
    if (batch === null)
      throw new PeerError("sample ids", "none were said in this round yet, they are needed to decode");
    const isRepeated = part.kind === "Activations" && part.sampleIds === null;
    return new Samples(isRepeated ? null : batch.ids, batch.tokens ?? batch.ids.map(() => form.rows));
  }

  /** All ends by their names, in order. */
  private ends(): [string, Sender | Receiver][] {
    const all: [string, Sender | Receiver][] = [...this.senders, ...this.receivers];
    return all.sort(([one], [other]) => (one < other ? -1 : 1));
  }

  /** What the codecs of this end remember, for a checkpoint. */
  state(): State {
    const arrays = new Map<string, Tensor>();
    const values: Record<string, unknown> = {};
    for (const [name, end] of this.ends()) {
      const own = end.state();
      values[name] = own.values;
      for (const [key, array] of own.arrays) arrays.set(`${name}.${key}`, array);
    }
    return { arrays, values };
  }

  /** Continues from `state`. */
  loadState(state: State): void {
    for (const [name, end] of this.ends()) {
      const own = [...state.arrays].filter(([key]) => key.startsWith(`${name}.`));
      const arrays = new Map(own.map(([key, array]) => [key.slice(name.length + 1), array]));
      end.loadState({ arrays, values: at(state.values, name) });
    }
  }
}

function isCoded(field: Field): boolean {
  return field.types.includes("Encoded");
}

/** An error of a codec says which field it is of. */
function within<T>(field: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof PeerError ? error.within(field) : error;
  }
}
