/**
 * A page's connection to a gateway: messages on a WebSocket over TLS (docs/protocol.md).
 *
 * A page can say nothing in the request but subprotocols, so the token is the second of them. It can send no ping
 * either, nor see one; the browser replies to those of the gateway.
 */

import { DeviceError, PeerError, oneLine } from "../core/errors";
import { type Frame, MAX_HEADER } from "../core/frames";
import { shown } from "./facts";

export const PATH = "/halfback/1";
/** Bytes of a file in one message. */
export const PIECE = 1 << 20;
/** Why a connection is closed. */
export const [TAKEN, CLOSING, REVOKED, BROKEN, LONG] = [4001, 4002, 4003, 1008, 1009];
const SPOKEN = "halfback";
const OPENS = 20_000; // ms that a connection has to be opened
const SILENT = 40_000; // ms in which nothing of what is to be sent goes, until the gateway is given up
const LOOK = 1000; // ms after which that is looked at
/** Browsers let a page close a connection with 1000 and from 3000 on: to the protocol's codes so much is added. */
const OWN = 3000;

/** There is no connection, or none any more; `code`: with which the gateway closed it, 0 where it said none. */
export class Lost extends DeviceError {
  constructor(
    why: string,
    readonly code = 0,
  ) {
    super(why);
  }
}

/** The token is not good at this gateway, and won't be: there is no use in coming again. */
export class Unwelcome extends DeviceError {}

/** A connection. */
export class Line {
  private waiting: Uint8Array<ArrayBuffer> | null = null; // a gateway says one thing at a time
  private wake: () => void = () => {};
  private ended: DeviceError | null = null;
  private most = roomFor(0);
  private left = 0; // bytes that were still to be sent when that was last looked at
  private moved = 0; // when that had become less

  constructor(private readonly socket: WebSocket) {
    socket.onmessage = (event: MessageEvent<unknown>) => this.came(event.data);
    socket.onclose = (event) => this.end(closed(event.code, event.reason));
    socket.onerror = () => this.end(new Lost("the connection was cut"));
  }

  /** Bodies of up to so many bytes are read from now on, or of a piece: longer ones close the connection. */
  take(body: number): void {
    this.most = roomFor(body);
  }

  /** Sends a message; Lost where the connection is. */
  send(said: Frame): void {
    if (this.ended !== null) throw this.ended;
    const header = new TextEncoder().encode(said.header);
    const message = new Uint8Array(4 + header.length + said.body.length);
    new DataView(message.buffer).setUint32(0, header.length, true);
    message.set(header, 4);
    message.set(said.body, 4 + header.length);
    this.socket.send(message);
    [this.left, this.moved] = [this.socket.bufferedAmount, Date.now()];
  }

  /**
   * The next message; null if it isn't there after so many milliseconds.
   *
   * @throws PeerError where what came is no message; Lost where the connection is.
   */
  async receive(milliseconds: number): Promise<Frame | null> {
    if (this.waiting === null && this.ended === null) await this.change(Math.min(milliseconds, LOOK));
    const message = this.waiting;
    this.waiting = null;
    if (message !== null) return unpacked(message);
    if (this.ended !== null) throw this.ended;
    this.checkGoes();
    return null;
  }

  private change(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  private came(data: unknown): void {
    if (this.ended !== null) return;
    if (!(data instanceof ArrayBuffer)) {
      this.refuse(BROKEN, "text came, binary messages are allowed");
    } else if (data.byteLength > this.most) {
      this.refuse(LONG, `${data.byteLength} bytes came, at most ${this.most} are allowed`);
    } else if (this.waiting !== null) {
      this.refuse(BROKEN, "another one came before this one was replied to, one at a time is allowed");
    } else {
      this.waiting = new Uint8Array(data);
      this.wake();
    }
  }

  /** Ends the connection because of what came, which nobody has looked into. */
  private refuse(code: number, why: string): void {
    this.waiting = null;
    this.end(new PeerError("message", why, "", "server"));
    this.close(code, why);
  }

  private end(why: DeviceError): void {
    this.ended ??= why;
    this.wake();
  }

  private checkGoes(): void {
    const left = this.socket.bufferedAmount;
    if (left < this.left || left === 0) [this.left, this.moved] = [left, Date.now()];
    if (Date.now() - this.moved > SILENT) {
      this.close(1000, "");
      throw new Lost(`nothing of what is to be sent goes for ${SILENT / 1000} s`);
    }
  }

  /** Ends it as when the network is gone: whoever waits hears of it. */
  cut(why: string): void {
    this.end(new Lost(why));
    this.close(1000, "");
  }

  /** Says goodbye, with one of the protocol's codes. */
  close(code: number, why: string): void {
    const reason = new TextEncoder().encode(oneLine(why)).slice(0, 120);
    this.end(new Lost("this device has ended the connection"));
    try {
      this.socket.close(
        code < OWN && code !== 1000 ? OWN + code : code,
        new TextDecoder().decode(reason).replace(/\ufffd/g, ""),
      );
    } catch {
      this.socket.close();
    }
  }
}

function roomFor(body: number): number {
  return 4 + MAX_HEADER + Math.max(body, PIECE);
}

function closed(code: number, reason: string): DeviceError {
  if (code === REVOKED) return new Unwelcome(`the gateway doesn't take this token any more: ${reason}`);
  if (code === 1006) return new Lost("the connection was cut");
  return new Lost(`it closed the connection (${code}${reason ? ": " : ""}${reason})`, code);
}

/** Header and body of a message; PeerError where it is none. */
export function unpacked(message: Uint8Array<ArrayBuffer>): Frame {
  if (message.length < 4) throw new PeerError("message", `${message.length} bytes`, "4 or more are allowed");
  const length = new DataView(message.buffer, message.byteOffset, 4).getUint32(0, true);
  if (4 + length > Math.min(message.length, 4 + MAX_HEADER)) {
    const came = `a header of ${length} bytes in a message of ${message.length}`;
    throw new PeerError("message", came, `at most ${MAX_HEADER} are allowed`);
  }
  try {
    const header = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(message.subarray(4, 4 + length));
    return { header, body: message.subarray(4 + length) };
  } catch {
    throw new PeerError("message", "its header is no text");
  }
}

/**
 * A connection to a gateway.
 *
 * @throws Unwelcome where it doesn't know the token.
 * @throws Lost where it can't be reached, or turns the device away for now.
 */
export async function opened(url: string, token: string): Promise<Line> {
  const socket = new WebSocket(url, [SPOKEN, token]);
  socket.binaryType = "arraybuffer";
  const why = await new Promise<string>((resolve) => {
    const timer = setTimeout(() => resolve(`it didn't reply in ${OPENS / 1000} s`), OPENS);
    socket.onopen = () => resolve("");
    socket.onerror = () => resolve("nobody replies there");
    socket.onclose = () => clearTimeout(timer);
  });
  if (!why && socket.protocol === SPOKEN) return new Line(socket);
  socket.close();
  await checkWelcome(url, token);
  throw new Lost(why || "what replies there is no gateway");
}

/** A page isn't told why a WebSocket was refused, so it asks once more in a way in which it is. */
async function checkWelcome(url: string, token: string): Promise<void> {
  let reply: Response;
  try {
    const asked = { headers: { Authorization: `Bearer ${token}` }, cache: "no-store", redirect: "error" } as const;
    reply = await fetch(url.replace(/^ws/, "http"), { ...asked, signal: AbortSignal.timeout(OPENS) });
  } catch {
    return; // nobody is there
  }
  const said = oneLine((await reply.text()).slice(0, 200)).trim();
  if (reply.status === 401) throw new Unwelcome(`the gateway doesn't take this token: ${said}`);
  if (reply.status !== 426) throw new Lost(`it says ${reply.status}: ${said}`);
}

/**
 * The address of a gateway: of `wss://`, with the path that it has where the URL has none; of the `https://` of a page,
 * beside that page.
 *
 * @throws DeviceError where it is none.
 */
export function address(url: string): string {
  const refusal = new DeviceError(`${shown(url, 200)} is no gateway's address; wss://HOST:PORT is allowed`);
  let parts: URL;
  try {
    parts = new URL(url);
  } catch {
    throw refusal;
  }
  const isPage = parts.protocol === "https:";
  if (
    (parts.protocol !== "wss:" && !isPage) ||
    parts.username ||
    parts.password ||
    parts.port === "0" ||
    / /.test(url)
  ) {
    throw refusal;
  }
  if (!isPage && (parts.search || parts.hash)) throw refusal;
  const folder = parts.pathname.replace(/[^/]*$/, "").replace(/\/$/, "");
  const path = isPage ? folder + PATH : parts.pathname === "/" ? PATH : parts.pathname;
  return `wss://${parts.host}${path}`;
}
