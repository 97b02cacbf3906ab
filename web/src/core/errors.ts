/** The errors that a package, a peer or a page's user can cause, in one line; all else is a bug. */

/** Who said it; null where that is not known, or not yet. */
export type Peer = "server" | null;

/**
 * Base of every error whose message is one line for whoever looks at the page.
 *
 * It is one whatever it quotes: what came from elsewhere may hold ends of lines.
 */
export class DeviceError extends Error {
  constructor(message: string) {
    super(oneLine(message));
    this.name = new.target.name;
  }
}

/** A device package, or a setting in it, is none that this device can work with. */
export class PackageError extends DeviceError {}

/** The user's rows, or what was said of them, can't be trained on. */
export class RowError extends DeviceError {}

/**
 * Bytes or a message from the server are wrong; the message names the field, what came and what is allowed.
 *
 * `field` is what is wrong, `Kind.field` of a message say, and within it from the outside to the inside; `came` is what
 * came of it, or what is wrong with it where nothing else would be `allowed`; `allowed` is what is, with its verb.
 */
export class PeerError extends DeviceError {
  constructor(
    readonly field: string,
    readonly came = "",
    readonly allowed = "",
    readonly sender: Peer = null,
  ) {
    const said = allowed ? `${came} came, ${allowed}` : came;
    super([sender ?? "", field, said].filter(Boolean).join(": "));
  }

  /** The same error, which says of what larger field this one is. */
  within(field: string): PeerError {
    return new PeerError(`${field}: ${this.field}`, this.came, this.allowed, this.sender);
  }

  /** The same error, which says who sent it. */
  of(sender: Peer): PeerError {
    return new PeerError(this.field, this.came, this.allowed, sender);
  }
}

/**
 * What the device computed, or was sent, is no longer finite.
 *
 * `what` is not finite; `how` that is said, such as "is not finite"; `cure` what may help; `sender` who sent it, null
 * where the device made it.
 */
export class Diverged extends DeviceError {
  constructor(
    readonly what: string,
    readonly how = "",
    readonly cure = "",
    readonly sender: Peer = null,
  ) {
    const named = sender ? `${sender}: ${what}` : what;
    super([how ? `${named} ${how}` : named, cure].filter(Boolean).join("; "));
  }
}

/** Makes what the runtime throws, whose errors are of many kinds, one of the package. */
export async function runningGraphs<T>(run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof DeviceError) throw error;
    throw new PackageError(`the package's graphs can't be run: ${String(error).slice(0, 200)}`);
  }
}

/** What somebody else wrote, fit for one line: without ends of lines and whatever else doesn't print. */
export function oneLine(text: string): string {
  return text.replace(/[\p{C}\p{Z}]/gu, " ");
}
