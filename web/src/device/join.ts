/** A device that connects to a gateway by itself, works, and comes again when it was cut off, until its page leaves. */

import type { Split } from "../core/batches";
import { DeviceError, PeerError, RowError } from "../core/errors";
import { type Frame, parsed } from "../core/frames";
import { Device } from "./client";
import { ownSplit } from "./data";
import type { Rows, State, Tell } from "./events";
import { isTree, isWhole, shown } from "./facts";
import { type Ask, type Listing, Packages, bytesOf, readListing } from "./fetch";
import { BROKEN, CLOSING, type Line, Lost, TAKEN, Unwelcome, address, opened } from "./line";
import { Package } from "./package";
import { Progress } from "./progress";
import type { Store } from "./store";

const TOKEN = /^hb1\.[0-9a-f]{8}\.[A-Za-z0-9_-]{43}$/;
const LONGEST_WAIT = 60_000; // ms until it comes again; the first time it is a second
const LOOK = 1000; // ms after which it looks whether it was told something
const DUE = 120_000; // ms that a gateway has for what it was asked for
const VERSION = "web";
const NOTHING = new Uint8Array();

/** How a device takes part. */
export interface Terms {
  /** Of the page or of the gateway. */
  readonly url: string;
  /** By which the gateway knows the device. */
  readonly token: string;
  readonly rows: Rows;
  /** It takes part only in runs in which no label is sent. */
  readonly keepLabels: boolean;
}

/** The device ends the connection, for a reason of its own. */
class Leaves extends Error {}

/** A device of a gateway, from `work` until it leaves or until its token is refused. */
export class Joining {
  private readonly url: string;
  private readonly owner: string;
  private readonly packages: Packages;
  private readonly progress: Progress;
  private device: { readonly digest: string; readonly device: Device } | null = null;
  private rows: { readonly digest: string; readonly split: Split } | null = null;
  private wish: "work" | "pause" | "leave" = "work";
  private waits = 0; // for how many times it has come in vain
  private wake: () => void = () => {};

  /** DeviceError: what is wrong with the terms. */
  constructor(
    private readonly terms: Terms,
    private readonly store: Store,
    private readonly tell: Tell,
  ) {
    if (!TOKEN.test(terms.token)) throw new DeviceError("this is no token; a site gives one, as hb1.ID.SECRET");
    this.url = address(terms.url);
    this.owner = terms.token.split(".")[1] as string;
    this.packages = new Packages(store);
    this.progress = new Progress(tell);
  }

  /** Takes a rest behind the reply at hand, or goes on. */
  pause(isPaused: boolean): void {
    if (this.wish !== "leave") this.wish = isPaused ? "pause" : "work";
    this.wake();
  }

  /** Ends `work` behind the reply at hand. */
  leave(): void {
    this.wish = "leave";
    this.wake();
  }

  /**
   * Connects, works, and comes again, until it leaves, or the site closes behind a run that is finished.
   *
   * @throws Unwelcome where the token is refused; RowError where the rows can't be trained on.
   */
  async work(): Promise<void> {
    while (this.wish !== "leave") {
      if (this.wish === "pause") {
        this.state("paused");
        await this.rest(DUE);
        continue;
      }
      try {
        await this.takePart();
      } catch (error) {
        if (error instanceof Leaves) continue;
        if (error instanceof Lost && error.code === CLOSING && this.progress.isFinished) return;
        // Of a token that is refused, and of rows that can't be trained on, coming again changes nothing.
        const isFinal = error instanceof Unwelcome || error instanceof RowError;
        if (isFinal || !(error instanceof DeviceError)) throw error;
        await this.comeAgain(error);
      }
    }
    this.state("left");
  }

  private async comeAgain(error: DeviceError): Promise<void> {
    // Whoever has the place would be sent away by coming again at once.
    if (error instanceof Lost && error.code === TAKEN) this.waits = 6;
    const wait = Math.min(LONGEST_WAIT, 1000 * 2 ** this.waits) * (0.5 + 0.5 * Math.random());
    this.waits = Math.min(this.waits + 1, 6);
    this.state("connecting", `not taking part: ${error.message}; again in ${(wait / 1000).toFixed(1)} s`);
    await this.rest(wait);
  }

  private rest(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  private async takePart(): Promise<void> {
    this.state("connecting");
    const line = await opened(this.url, this.terms.token);
    const cut = (): void => line.cut("this machine is offline");
    globalThis.addEventListener?.("offline", cut);
    try {
      const device = await this.deviceOf(line, await this.welcomed(line));
      line.send({ header: '{"kind":"ready"}', body: NOTHING });
      this.state("waiting");
      for (;;) {
        const asked = await this.heard(line, null);
        this.progress.asked(asked.header);
        const reply = await device.reply(asked);
        line.take(device.takes);
        line.send(reply);
        this.progress.replied(reply.header, device.session);
        this.waits = 0;
      }
    } catch (error) {
      // The text of any other error may quote a row.
      const mayBeSaid = error instanceof PeerError || error instanceof Leaves;
      line.close(error instanceof PeerError ? BROKEN : 1000, mayBeSaid ? error.message : "");
      throw error;
    } finally {
      globalThis.removeEventListener?.("offline", cut);
    }
  }

  /**
   * What the gateway says next, for which it has so many milliseconds.
   *
   * @throws Leaves where meanwhile the page wants a rest, or leaves.
   */
  private async heard(line: Line, milliseconds: number | null): Promise<Frame> {
    const until = milliseconds === null ? Infinity : Date.now() + milliseconds;
    for (;;) {
      if (this.wish !== "work") throw new Leaves(this.wish === "pause" ? "paused" : "told to leave");
      const said = await line.receive(LOOK);
      if (said !== null) return said;
      if (Date.now() > until) throw new Lost(`it didn't say what was asked for in ${(milliseconds ?? 0) / 1000} s`);
    }
  }

  private async welcomed(line: Line): Promise<Listing> {
    const hello = { kind: "hello", protocol: 1, version: VERSION, package: await this.packages.digest() };
    line.send({ header: JSON.stringify(hello), body: NOTHING });
    const said = await this.heard(line, DUE);
    const told = parsed(said.header);
    const keys = ["kind", "package", "place", "protocol"];
    const isWelcome = isTree(told) && Object.keys(told).sort().join() === keys.join() && told["kind"] === "welcome";
    if (said.body.length || !isWelcome)
      throw new PeerError("welcome", `${keys.join(", ")} are due, and no body`, "", "server");
    if (told["protocol"] !== 1) {
      throw new PeerError("welcome.protocol", shown(told["protocol"], 20), "1 is allowed", "server");
    }
    if (!isWhole(told["place"]) || told["place"] >= 2 ** 31) {
      throw new PeerError("welcome.place", shown(told["place"], 20), "0 or more is allowed", "server");
    }
    return readListing(told["package"]);
  }

  /** The device of this package; the one of before, with what it has in memory, where that is the same. */
  private async deviceOf(line: Line, listing: Listing): Promise<Device> {
    if (this.device?.digest !== listing.digest) {
      await this.device?.device.session?.close();
      this.device = null; // two models at once may be one too many
      this.state("fetching");
      const total = bytesOf(listing);
      const told = (done: number): void => this.tell({ type: "package", done, total });
      const files = await this.packages.fetch(listing, this.asking(line), told);
      this.state("preparing");
      const from = await Package.open(files);
      const split = await this.splitOf(listing.digest, from);
      const { store, owner, terms } = this;
      const log = (said: string): void => this.tell({ type: "log", line: said });
      const device = new Device({ from, rows: async () => split, store, owner, keepLabels: terms.keepLabels, log });
      this.progress.package(from, split.length);
      this.device = { digest: listing.digest, device };
    }
    return this.device.device;
  }

  /** This device's rows for a package. */
  private async splitOf(digest: string, from: Package): Promise<Split> {
    if (this.rows?.digest !== digest) this.rows = { digest, split: await ownSplit(this.terms.rows, from) };
    return this.rows.split;
  }

  private asking(line: Line): Ask {
    return async (file, offset) => {
      line.send({ header: JSON.stringify({ kind: "piece", file, offset }), body: NOTHING });
      const said = await this.heard(line, DUE);
      const told = parsed(said.header);
      const isIt = isTree(told) && told["kind"] === "piece" && told["file"] === file && told["offset"] === offset;
      if (!isIt || Object.keys(told).length !== 3) {
        throw new PeerError("piece", `another one came than ${shown(file)} from ${offset} on`, "", "server");
      }
      return said.body;
    };
  }

  private state(state: State, detail?: string): void {
    this.progress.state(state);
    this.tell(detail === undefined ? { type: "state", state } : { type: "state", state, detail });
  }
}
