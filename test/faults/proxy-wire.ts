import { connect, type Socket } from "node:net";

const HEAD_END = Buffer.from("\r\n\r\n");
const LINE_END = Buffer.from("\r\n");
const MAX_HEAD_BYTES = 64 * 1024;

/** Thrown where the other side went away; the connection is of no more use. */
export class ConnectionEnded extends Error {
  override readonly name = "ConnectionEnded";
}

/** A TCP connection that is read when somebody asks, with what was read too much kept for the next reader. */
export class Wire {
  readonly socket: Socket;
  readonly #pieces: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.socket = socket;
    // Without a listener an error would end the process; readers and writers learn of it by themselves.
    socket.on("error", () => {});
    socket.setNoDelay(true);
    this.#pieces = socket[Symbol.asyncIterator]();
  }

  static async connect(port: number): Promise<Wire> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    socket.once("connect", resolve);
    socket.once("error", reject);
    await promise;
    return new Wire(socket);
  }

  /** The next bytes, as they came; null at the end. */
  async read(): Promise<Buffer | null> {
    if (this.#rest.length > 0) {
      const rest = this.#rest;
      this.#rest = Buffer.alloc(0);
      return rest;
    }
    try {
      const { value, done } = await this.#pieces.next();
      return done === true ? null : value;
    } catch {
      return null;
    }
  }

  /** Up to the empty line that ends the head of a message, that line included; null when nothing came before the end. */
  async readHead(): Promise<Buffer | null> {
    return await this.#readThrough(HEAD_END);
  }

  async readLine(): Promise<Buffer> {
    const line = await this.#readThrough(LINE_END);
    if (line === null) throw new ConnectionEnded("in the middle of a body");
    return line;
  }

  /** Exactly so many bytes, piece by piece. */
  async *readExactly(lengthBytes: number): AsyncGenerator<Buffer, void> {
    let left = lengthBytes;
    while (left > 0) {
      const piece = await this.read();
      if (piece === null) throw new ConnectionEnded("in the middle of a body");
      if (piece.length > left) this.#rest = piece.subarray(left);
      yield piece.subarray(0, left);
      left -= Math.min(left, piece.length);
    }
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.socket.destroyed || this.socket.writableEnded) throw new ConnectionEnded("before a write");
    if (this.socket.write(bytes)) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.socket.once("drain", resolve);
    this.socket.once("close", resolve);
    await promise;
    this.socket.off("drain", resolve);
    this.socket.off("close", resolve);
  }

  /** An end in good order, after all that was written. */
  end(): void {
    this.socket.end();
  }

  /** RST, as when the other side's program or machine died. */
  reset(): void {
    if (!this.socket.destroyed) this.socket.resetAndDestroy();
  }

  async #readThrough(mark: Buffer): Promise<Buffer | null> {
    let got = Buffer.alloc(0);
    for (;;) {
      const at = got.indexOf(mark);
      if (at !== -1) {
        this.#rest = got.subarray(at + mark.length);
        return got.subarray(0, at + mark.length);
      }
      if (got.length > MAX_HEAD_BYTES) throw new Error("a head without an end went through the proxy");
      const piece = await this.read();
      if (piece === null) {
        if (got.length === 0) return null;
        throw new ConnectionEnded("in the middle of a head");
      }
      got = Buffer.concat([got, piece]);
    }
  }
}

/** The first line and the fields of a message, as they were sent. */
export interface HttpHead {
  readonly bytes: Buffer;
  readonly firstLine: string;
  /** Names in lower case. */
  readonly fields: ReadonlyMap<string, string>;
}

export function parseHead(bytes: Buffer): HttpHead {
  const [firstLine = "", ...lines] = bytes.toString("latin1").trimEnd().split("\r\n");
  const fields = lines.map((line): [string, string] => {
    const at = line.indexOf(":");
    return [line.slice(0, at).trim().toLowerCase(), line.slice(at + 1).trim()];
  });
  return { bytes, firstLine, fields: new Map(fields) };
}

/** How long the body after a head is, or how its end is found. Source: RFC 9112 section 6.3. */
export type BodyFraming =
  | { readonly kind: "length"; readonly lengthBytes: number }
  | { readonly kind: "chunked" }
  | { readonly kind: "until-close" };

export function requestFraming(head: HttpHead): BodyFraming {
  return framing(head) ?? { kind: "length", lengthBytes: 0 };
}

export function answerFraming(head: HttpHead, method: string): BodyFraming {
  const status = statusOf(head);
  if (method === "HEAD" || status < 200 || status === 204 || status === 304) return { kind: "length", lengthBytes: 0 };
  return framing(head) ?? { kind: "until-close" };
}

export function statusOf(head: HttpHead): number {
  return Number(head.firstLine.split(" ")[1] ?? 0);
}

/** The body as it is on the wire, chunk sizes included. */
export async function* readBody(wire: Wire, framing: BodyFraming): AsyncGenerator<Buffer, void> {
  switch (framing.kind) {
    case "length":
      return yield* wire.readExactly(framing.lengthBytes);
    case "chunked":
      return yield* readChunks(wire);
    case "until-close":
      for (let piece = await wire.read(); piece !== null; piece = await wire.read()) yield piece;
  }
}

/** What a body on the wire means. */
export function decodeBody(onWire: Buffer, framing: BodyFraming): Buffer {
  if (framing.kind !== "chunked") return onWire;
  const parts: Buffer[] = [];
  for (let offset = 0; offset < onWire.length; ) {
    const lineEnd = onWire.indexOf(LINE_END, offset);
    const size = Number.parseInt(onWire.toString("latin1", offset, lineEnd), 16);
    if (size === 0) break;
    const start = lineEnd + LINE_END.length;
    parts.push(onWire.subarray(start, start + size));
    offset = start + size + LINE_END.length;
  }
  return Buffer.concat(parts);
}

/** A whole message with this body, for an answer that is not the server's. */
export function encodeAnswer(status: number, body: string, fields: Readonly<Record<string, string>> = {}): Buffer {
  const lines = [
    `HTTP/1.1 ${status} ${status === 200 ? "OK" : "Injected"}`,
    `Content-Length: ${status === 204 ? 0 : Buffer.byteLength(body)}`,
    `Date: ${new Date().toUTCString()}`,
    ...Object.entries(fields).map(([name, value]) => `${name}: ${value}`),
  ];
  return Buffer.from(`${lines.join("\r\n")}\r\n\r\n${status === 204 ? "" : body}`);
}

function framing(head: HttpHead): BodyFraming | null {
  if (head.fields.get("transfer-encoding")?.toLowerCase().endsWith("chunked") === true) return { kind: "chunked" };
  const length = head.fields.get("content-length");
  return length === undefined ? null : { kind: "length", lengthBytes: Number(length) };
}

async function* readChunks(wire: Wire): AsyncGenerator<Buffer, void> {
  for (;;) {
    const line = await wire.readLine();
    yield line;
    const size = Number.parseInt(line.toString("latin1"), 16);
    if (!Number.isSafeInteger(size)) throw new Error(`no chunk size: ${JSON.stringify(line.toString("latin1"))}`);
    if (size === 0) break;
    yield* wire.readExactly(size + LINE_END.length);
  }
  // Fields after the last chunk, up to an empty line.
  for (let line = await wire.readLine(); ; line = await wire.readLine()) {
    yield line;
    if (line.length === LINE_END.length) return;
  }
}
