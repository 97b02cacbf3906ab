/**
 * A client of a run whose server is elsewhere: it replies to the server's questions, and survives a closed tab.
 *
 * Its state is good for the lineage and the rounds that it belongs to. Where the server has gone back to a checkpoint,
 * or this page is new, the newest kept state that lies on the server's way is put back; without one the client begins
 * anew and catches up from the history, bit for bit.
 */

import type { Split } from "../core/batches";
import { DeviceError, Diverged, PackageError, PeerError, RowError } from "../core/errors";
import {
  type Done,
  type Frame,
  type Open,
  type Prepare,
  type Question,
  type Save,
  frame,
  readQuestion,
  refused,
} from "../core/frames";
import { at, isTree, isWhole, shown } from "./facts";
import type { Manifest } from "./manifest";
import type { Package } from "./package";
import { SAME, checkCut, checkSecrets, planOf } from "./plan";
import { Session, type Talk } from "./session";
import { type State, States } from "./state";
import type { Store } from "./store";

/** What a device works with, whatever the run. */
export interface Means {
  readonly from: Package;
  /** Its rows, read when they are needed first. */
  readonly rows: () => Promise<Split>;
  readonly store: Store;
  /** Whose states are its own among this origin's: the token's public part. */
  readonly owner: string;
  /** It takes part only in runs in which no label is sent. */
  readonly keepLabels: boolean;
  /** Hears what no peer may: an error that may quote a row. */
  readonly log: (line: string) => void;
}

/** A device's part of one run at a time, whatever carries the frames. */
export class Device {
  private order: Prepare | null = null;
  private client: Client | null = null;

  constructor(private readonly means: Means) {}

  /** Bytes of the longest body that is read from now on. */
  get takes(): number {
    return this.client?.takes ?? 0;
  }

  /** The session of the run at hand. */
  get session(): Session | null {
    return this.client?.session ?? null;
  }

  /** Replies to one question, whatever came; one that comes twice, late or out of turn changes nothing. */
  async reply(asked: Frame): Promise<Frame> {
    try {
      const question = readQuestion(asked.header);
      if (question.kind === "prepare") return await this.prepare(question, asked.body);
      if (this.client === null) throw new PeerError("", question.kind, "prepare is due first");
      return await this.client.reply(question, asked.body);
    } catch (error) {
      if (error instanceof Diverged) return refused("diverged", error);
      if (error instanceof PeerError) return refused("peer", error);
      this.means.log(error instanceof Error ? error.message : String(error));
      if (error instanceof RowError)
        return refused("user", "what is wrong may quote a row of this device; its page says it");
      if (error instanceof DeviceError) return refused("user", error);
      // Its text may quote a row.
      return refused("failed", `${(error as Error).name}; this device's page says more`);
    }
  }

  private async prepare(order: Prepare, body: Uint8Array): Promise<Frame> {
    if (body.length) {
      const allowed = "none are allowed: a device has those of its package";
      throw new PeerError("Prepare", "weights", allowed, "server");
    }
    if (this.client === null || difference("", this.order, order) !== null) {
      const before = this.client;
      [this.order, this.client] = [null, null];
      await before?.session.close(); // two models at once may be one too many
      [this.client, this.order] = [await this.built(order), order];
    }
    return frame({ kind: "ready", fits: true, takes: this.client.takes, rows: this.client.rows });
  }

  private async built(order: Prepare): Promise<Client> {
    const { from, rows, store, owner, keepLabels } = this.means;
    const plan = planOf(from.manifest);
    checkOrder(from.manifest, order);
    if (keepLabels && (!plan.hasHead || at(from.manifest, "task.objective") === "generation")) {
      throw new DeviceError("this device keeps its labels, and this run sends them; its recipe may say model.head=0");
    }
    const session = await Session.begin(from, plan, await rows(), order.client);
    return new Client(session, new States(store, owner, order.run, order.client));
  }
}

/**
 * Refuses a run that the package is not for.
 *
 * @throws PeerError where the client's number is none; PackageError that names the setting that is another one, or says
 *   that the weights are.
 */
function checkOrder(manifest: Manifest, order: Prepare): void {
  const clients = at(order.config, "clients");
  if (!isWhole(clients) || order.client >= clients) {
    throw new PeerError("Prepare.client", String(order.client), `0 to ${shown(clients, 20)} - 1 are allowed`, "server");
  }
  const config = at(manifest, "config");
  for (const key of SAME) {
    const apart = difference(key, at(order.config, key, null), at(config, key, null));
    if (apart === null) continue;
    const said = `${apart.setting}=${shown(apart.came)} in this run, ${shown(apart.own)} in the package`;
    throw new PackageError(`${said}; package this recipe anew`);
  }
  checkSecrets(order.config);
  if (difference("", order.labelNames, at(manifest, "task.label_names")) !== null) {
    throw new PackageError("the classes of this run are not the package's; package this recipe anew");
  }
  checkCut(order.config, order.client, manifest.model.cut);
  if (order.weights !== at(manifest, "weights.digest")) {
    throw new PackageError("the weights that this run begins with are not the package's; package them anew");
  }
}

interface Apart {
  readonly setting: string;
  readonly came: unknown;
  readonly own: unknown;
}

/** The first setting in which two values differ, with both; null where they are the same. */
function difference(setting: string, came: unknown, own: unknown): Apart | null {
  const [one, other] = [came, own].map((each) => (Array.isArray(each) ? { ...each, length: each.length } : each));
  if (!isTree(one) || !isTree(other)) return came === own ? null : { setting, came, own };
  for (const key of [...new Set([...Object.keys(one), ...Object.keys(other)])].sort()) {
    const [mine, theirs] = [at(one, key, null), at(other, key, null)];
    const found = difference(`${setting}.${key}`, mine, theirs);
    if (found !== null) return found;
  }
  return null;
}

/** One client of one run, which replies to questions. */
class Client {
  readonly rows: number;
  /** Of what is in memory: lineage and rounds; a new page looks for a kept state first. */
  private label: readonly [string, number] = ["", 1];
  private talk: Talk | null = null;
  /** Lineage, round and exchange of the last reply. */
  private turn: readonly [string, number, number] = ["", 0, 0];
  /** Forward passes and seconds before this round. */
  private told: readonly [number, number, number] = [0, 0, 0];

  constructor(
    readonly session: Session,
    private readonly states: States,
  ) {
    this.rows = session.party.feed.length;
  }

  /** Bytes of the longest body that may come. */
  get takes(): number {
    return this.session.end.mostBytes;
  }

  /** Replies to one question; throws what `Session.converse` and `Session.loadState` do. */
  async reply(question: Exclude<Question, Prepare>, body: Uint8Array): Promise<Frame> {
    if (question.kind === "open") return this.open(question);
    if (question.kind === "save") {
      if (question.lineage === this.label[0]) return this.save(question);
      return stale("save, which does not belong here");
    }
    const [lineage, round, exchange] = this.turn;
    const isDue = question.lineage === lineage && question.round === round && question.exchange === exchange;
    if (isDue && this.talk !== null) return this.next(body);
    return stale(`exchange ${question.exchange} of round ${question.round}, the client is at ${this.turn.join(", ")}`);
  }

  private async save(question: Save): Promise<Frame> {
    const { arrays, values } = this.session.state();
    const { lineage, rounds } = question;
    await this.states.save(rounds, { arrays, values: { ...values, lineage, rounds } });
    this.label = [lineage, rounds];
    return frame({ kind: "saved" });
  }

  private async open(order: Open): Promise<Frame> {
    const { plan, party } = this.session;
    if (order.steps > plan.stepsPerRound) {
      throw new PeerError("Open.steps", String(order.steps), `up to ${plan.stepsPerRound} are allowed`, "server");
    }
    const way = new Map(order.ancestry.map(({ lineage, rounds }) => [lineage, rounds]));
    way.set("", 0).set(order.lineage, order.round);
    if (this.label[1] > (way.get(this.label[0]) ?? -1)) await this.goBack(way);
    this.told = [party.passes, this.session.seconds, this.session.wireSeconds];
    party.feed.cursor = order.cursor;
    this.label = [order.lineage, order.round + 1];
    this.talk = this.session.converse({ number: order.round, steps: order.steps, first: order.first }, order.measure);
    this.turn = [order.lineage, order.round, -1];
    return this.next(null);
  }

  /** To the newest state that lies on the server's way, else to the beginning. */
  private async goBack(way: ReadonlyMap<string, number>): Promise<void> {
    for (const number of (await this.states.rounds()).reverse()) {
      const found: State = await this.states.read(number);
      if (found.about !== this.session.about) {
        const said = "the rows or the package have changed on this device since it left its state";
        throw new DeviceError(`${said}; choose what it began with, or begin a run of another name`);
      }
      if (found.rounds <= (way.get(found.lineage) ?? -1)) {
        this.session.loadState(found);
        return;
      }
    }
    this.session.restart();
  }

  private async next(body: Uint8Array | null): Promise<Frame> {
    const [lineage, round, exchange] = this.turn;
    const talk = this.talk as Talk;
    this.talk = null; // one that fails is over
    const said = await (body === null ? talk.next() : talk.next(body));
    if (said.done) return frame(this.done());
    this.talk = talk;
    this.turn = [lineage, round, exchange + 1];
    return frame({ kind: "said", lineage, round, exchange: exchange + 1 }, said.value);
  }

  private done(): Done {
    const { session, told } = this;
    return {
      kind: "done",
      lineage: this.turn[0],
      round: this.turn[1],
      cursor: session.party.feed.cursor,
      forwardPasses: session.party.passes - told[0],
      clientSeconds: session.seconds - told[1],
      wireSeconds: session.wireSeconds - told[2],
      peakBytes: session.peakBytes,
      inferencePeakBytes: session.inferencePeakBytes,
      losses: [], // the server has them: of no method that a page takes part in is it the device that does
    };
  }
}

function stale(what: string): Frame {
  return refused("stale", `a question came late or twice: ${what}`);
}
