/** Codecs: what a link does to a float field's values before packing; a recipe chooses a chain for each link. */

import { PackageError } from "../errors";
import type { Dtype } from "../tensor";
import { Chain } from "./chain";
import { FeedbackSender, Plain } from "./ends";
import type { Receiver, Sender, Stage } from "./protocol";
import { Cast, Int4, Int8, Sign } from "./stages";
import { Temporal, TemporalReceiver, TemporalSender } from "./temporal";

export type Options = Readonly<Record<string, unknown>>;
/** A chain as a recipe has it: a codec's name, or a mapping with its `name` and options. */
export type Chosen = readonly (string | Options)[];

interface Kind {
  /** The options that it takes. */
  readonly options: readonly string[];
  readonly make: (width: number, before: Dtype, options: Options) => Stage;
}

const STAGES: ReadonlyMap<string, Kind> = new Map<string, Kind>([
  ["cast", { options: ["dtype"], make: (width, before, { dtype }) => new Cast(width, before, dtype as "float16") }],
  ["int8", { options: [], make: (width) => new Int8(width) }],
  ["int4", { options: [], make: (width) => new Int4(width) }],
  ["sign", { options: ["feedback"], make: (width) => new Sign(width) }],
]);

/**
 * The name and the options of each codec of a chain; `where`: the link, for messages. PackageError names what this
 * device has no codec for.
 */
export function entries(chosen: Chosen, where: string): [string, Options][] {
  const found = chosen.map((entry): [string, Options] => {
    const { name, ...options } = typeof entry === "string" ? { name: entry } : entry;
    if (typeof name !== "string" || (name !== "temporal" && !STAGES.has(name))) {
      const known = [...STAGES.keys(), "temporal"].join(", ");
      throw new PackageError(`${where}: codec ${String(name).slice(0, 100)}: a page has ${known}`);
    }
    return [name, options];
  });
  if (found.slice(1).some(([name]) => name === "temporal")) {
    throw new PackageError(`${where}: temporal must be the first of its chain, and there only once`);
  }
  return found;
}

interface Made {
  /** The chain behind `temporal`. */
  readonly chain: Chain;
  readonly feedback: boolean;
  readonly temporal: Temporal | null;
}

function chainOf(chosen: Chosen, width: number, where: string): Made {
  const stages: Stage[] = [];
  let columns = width;
  let values: Dtype = "float32";
  let feedback = false;
  let temporal: Temporal | null = null;
  for (const [name, options] of entries(chosen, where)) {
    if (name === "temporal") {
      temporal = within(where, () => new Temporal(options));
      continue;
    }
    if (values === "int8" || values === "uint8") {
      throw new PackageError(`${where}: ${name} takes floats; what comes before it gives ${values}`);
    }
    const kind = STAGES.get(name) as Kind;
    const unknown = Object.keys(options).find((option) => !kind.options.includes(option));
    if (unknown !== undefined) throw new PackageError(`${where}: codec ${name} has no option ${unknown}`);
    if (name === "sign") feedback = Boolean(options["feedback"] ?? true);
    const stage = stageOf(kind, columns, values, options, where);
    stages.push(stage);
    columns = stage.width;
    values = stage.dtype;
  }
  return { chain: new Chain(stages, width), feedback, temporal };
}

function stageOf(kind: Kind, columns: number, values: Dtype, options: Options, where: string): Stage {
  return within(where, () => kind.make(columns, values, options));
}

/** Says of which link an error in a package is. */
function within<T>(where: string, make: () => T): T {
  try {
    return make();
  } catch (error) {
    if (error instanceof PackageError) throw new PackageError(`${where}: ${error.message}`);
    throw error;
  }
}

/**
 * The sending end of a link for rows of `width` float32 values.
 *
 * PackageError where a codec is none that this device has, or can't take what the one before it gives.
 */
export function makeSender(chosen: Chosen, width: number, where: string): Sender {
  const { chain, feedback, temporal } = chainOf(chosen, width, where);
  const inner = feedback ? new FeedbackSender(chain) : new Plain(chain);
  return temporal === null ? inner : new TemporalSender(temporal, inner, chain);
}

/** The receiving end; throws as `makeSender` does. */
export function makeReceiver(chosen: Chosen, width: number, where: string): Receiver {
  const { chain, temporal } = chainOf(chosen, width, where);
  return temporal === null ? new Plain(chain) : new TemporalReceiver(temporal, new Plain(chain), chain);
}
