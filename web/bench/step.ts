/** Steps of HO-SFL on a package, against a server that says the same λ and takes the slopes as they are. */

import { type Rows, Ragged, Split } from "../src/core/batches";
import { Activations, CutGradient, History, type Message, Slopes, partsOf } from "../src/core/messages";
import { tensor, zeros } from "../src/core/tensor";
import { pack, unpack } from "../src/core/wire";
import { peakBytes } from "../src/device/memory";
import { type Files, Package } from "../src/device/package";
import { planOf } from "../src/device/plan";
import { Session } from "../src/device/session";

export interface Figures {
  /** Of each step, without the first. */
  readonly seconds: number[];
  /** Of the processor for all of these together, where that can be told. */
  readonly cpu: number;
  /** Until the first message of the first round. */
  readonly ready: number;
  readonly bytes: number;
}

/** Texts of so many tokens each, of numbers that every vocabulary has. */
function texts(count: number, tokens: number): Split {
  const lists = Array.from({ length: count }, (_, row) =>
    Array.from({ length: tokens }, (_, at) => 1000 + ((row * 977 + at * 31) % 5000)),
  );
  const labels = BigInt64Array.from({ length: count }, (_, row) => BigInt(row % 2));
  const rows: Rows = {
    labels,
    ids: BigInt64Array.from({ length: count }, (_, row) => BigInt(row)),
    tokens: new Ragged(lists),
  };
  return new Split(rows);
}

function answer(said: Message): Message {
  const part = partsOf(said)[0];
  if (part instanceof Activations && "dtype" in part.hidden) {
    const { shape } = part.hidden;
    const lambda = zeros("float32", shape);
    for (let at = 0; at < lambda.data.length; at += 1) lambda.data[at] = ((at * 2654435761) % 2001) / 1e6 - 1e-3;
    return new CutGradient(lambda);
  }
  if (part instanceof Slopes) return part;
  return new History(0, tensor("float32", [0, 0], new Float32Array()));
}

/** The seconds of so many steps on batches of texts of so many tokens; `cpu`: seconds of the processor so far. */
export async function steps(files: Files, count: number, tokens: number, cpu: () => number): Promise<Figures> {
  const begun = performance.now();
  const from = await Package.open(files);
  const plan = planOf(from.manifest);
  const session = await Session.begin(from, plan, texts(4 * plan.batchSize, tokens), 0);
  const talk = session.converse({ number: 0, steps: count + 1, first: 0 }, false);
  const ready = (performance.now() - begun) / 1000;
  const seconds: number[] = [];
  let said = await talk.next();
  let last = performance.now();
  let spent = 0;
  while (!said.done) {
    const reply = answer(unpack(said.value));
    said = await talk.next(pack(reply));
    if (reply instanceof Slopes) {
      seconds.push((performance.now() - last) / 1000);
      if (seconds.length === 1) spent = cpu();
      last = performance.now();
    }
  }
  return { seconds: seconds.slice(1), cpu: cpu() - spent, ready, bytes: peakBytes(from.bytes) };
}
