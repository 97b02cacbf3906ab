import { type IncomingMessage, type Server, createServer } from "node:http";
import type { AddressInfo } from "node:net";

import { WebSocket, WebSocketServer } from "ws";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { DeviceError, PeerError } from "../../src/core/errors";
import { MAX_HEADER } from "../../src/core/frames";
import { Line, Lost, PIECE, Unwelcome, address, opened, unpacked } from "../../src/device/line";

const TOKEN = `hb1.00000000.${"a".repeat(43)}`;
Object.assign(globalThis, { WebSocket });

let server: Server;
let sockets: WebSocketServer;
let url: string;
let asked: IncomingMessage[];
let status: number;

beforeEach(async () => {
  [asked, status] = [[], 426];
  server = createServer((request, reply) => {
    asked.push(request);
    reply.writeHead(status).end("this token is not good here\n");
  });
  sockets = new WebSocketServer({
    noServer: true,
    handleProtocols: (offered) => (offered.has("halfback") ? "halfback" : false),
  });
  server.on("upgrade", (request, socket, head) => {
    asked.push(request);
    if (status !== 426) socket.end(`HTTP/1.1 ${status} No\r\nContent-Length: 0\r\n\r\n`);
    else sockets.handleUpgrade(request, socket, head, (line) => sockets.emit("connection", line));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/halfback/1`;
});

afterEach(() => {
  for (const each of sockets.clients) each.terminate();
  server.close();
  server.closeAllConnections();
});

function packed(header: string, body = 0): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(Buffer.byteLength(header));
  return Buffer.concat([length, Buffer.from(header), Buffer.alloc(body, 7)]);
}

async function both(): Promise<[Line, WebSocket]> {
  const coming = new Promise<WebSocket>((resolve) => sockets.once("connection", resolve));
  return [await opened(url, TOKEN), await coming];
}

/** What a line says of what came, and with which code it closed. */
async function came(send: (other: WebSocket) => void): Promise<[unknown, number]> {
  const [line, other] = await both();
  const closed = new Promise<number>((resolve) => other.on("close", resolve));
  send(other);
  const error: unknown = await line.receive(5000).catch((reason: unknown) => reason);
  return [error, await closed];
}

describe("a connection", () => {
  test("offers the token as a second protocol, and carries frames both ways", async () => {
    const [line, other] = await both();
    expect(asked[0]?.headers["sec-websocket-protocol"]).toBe(`halfback,${TOKEN}`);
    const heard = new Promise<Buffer>((resolve) => other.on("message", (data) => resolve(data as Buffer)));
    line.send({ header: '{"kind":"hello"}', body: Uint8Array.of(1, 2) });
    expect(unpacked(new Uint8Array(await heard))).toEqual({ header: '{"kind":"hello"}', body: Uint8Array.of(1, 2) });
    other.send(packed("{}", 3));
    expect(await line.receive(5000)).toEqual({ header: "{}", body: Uint8Array.of(7, 7, 7) });
    expect(await line.receive(10)).toBeNull();
  });

  test("refuses what is longer than it takes, and looks into none of it", async () => {
    const [error, code] = await came((other) => other.send(Buffer.alloc(4 + MAX_HEADER + PIECE + 1)));
    expect(error).toBeInstanceOf(PeerError);
    expect((error as Error).message).toBe("server: message: 5242885 bytes came, at most 5242884 are allowed");
    expect(code).toBe(4009);
  });

  test("takes what it has said that it takes", async () => {
    const [line, other] = await both();
    line.take(PIECE + 10);
    other.send(packed("{}", PIECE + 10));
    expect((await line.receive(5000))?.body).toHaveLength(PIECE + 10);
    other.send(Buffer.alloc(4 + MAX_HEADER + PIECE + 11));
    await expect(line.receive(5000)).rejects.toThrow("at most");
  });

  test("holds one message: a flood of them ends it, while the page computes", async () => {
    const [line, other] = await both();
    const closed = new Promise<number>((resolve) => other.on("close", resolve));
    for (let count = 0; count < 3; count += 1) other.send(packed("{}", PIECE));
    expect(await closed).toBe(4008);
    await expect(line.receive(3000)).rejects.toThrow("server: message: another one came");
  });

  test("ends with text", async () => {
    const [error, code] = await came((other) => other.send("text"));
    expect(error).toBeInstanceOf(PeerError);
    expect(code).toBe(4008);
  });

  test.each([
    [4003, Unwelcome, "doesn't take this token any more: so"],
    [4001, Lost, "it closed the connection (4001: so)"],
    [1000, Lost, "it closed the connection (1000: so)"],
  ])("that is closed with %i", async (code, kind, said) => {
    const [error] = await came((other) => other.close(code, "so"));
    expect(error).toBeInstanceOf(kind);
    expect((error as Error).message).toContain(said);
  });

  test("that is cut is lost, and nothing more is sent on it", async () => {
    const [line, other] = await both();
    other.terminate();
    await expect(line.receive(5000)).rejects.toThrow("the connection was cut");
    expect(() => line.send({ header: "{}", body: new Uint8Array() })).toThrow(Lost);
  });
});

describe("a gateway that turns a device away", () => {
  test("for good: the page asks once more, in a way in which it is told", async () => {
    status = 401;
    await expect(opened(url, TOKEN)).rejects.toThrow(Unwelcome);
    expect(asked.at(-1)?.headers.authorization).toBe(`Bearer ${TOKEN}`);
  });

  test("for now", async () => {
    status = 503;
    const error: unknown = await opened(url, TOKEN).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(Lost);
    expect((error as Error).message).toBe("it says 503: this token is not good here");
  });

  test("because it is none", async () => {
    sockets.options.handleProtocols = () => false;
    await expect(opened(url, TOKEN)).rejects.toThrow(Lost);
    await expect(opened("ws://127.0.0.1:1/", TOKEN)).rejects.toThrow("nobody replies there");
  });
});

test.each([
  ["wss://there:8443", "wss://there:8443/halfback/1"],
  ["wss://[::1]:1/behind/a/proxy", "wss://[::1]:1/behind/a/proxy"],
  ["https://there:8443/", "wss://there:8443/halfback/1"],
  ["https://there/index.html#hb1.0", "wss://there/halfback/1"],
  ["https://there/behind/index.html?a", "wss://there/behind/halfback/1"],
])("the address %s", (given, whole) => {
  expect(address(given)).toBe(whole);
});

test.each(["", "ws://a", "http://a", "wss://", "wss://a:99999", "wss://u:p@a", "https://u@a/", "wss://a/#b"])(
  "no address: %s",
  (given) => {
    expect(() => address(given)).toThrow(DeviceError);
  },
);

test.each([
  [new Uint8Array(3), "3 bytes came"],
  [Uint8Array.of(9, 0, 0, 0, 1), "a header of 9 bytes in a message of 5"],
  [Uint8Array.of(255, 255, 255, 255), "a header of 4294967295 bytes"],
  [Uint8Array.of(1, 0, 0, 0, 0xff), "its header is no text"],
])("what is no message", (message, said) => {
  expect(() => unpacked(message)).toThrow(said);
});
