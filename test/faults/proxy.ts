import { createServer, type Server, type Socket } from "node:net";
import { type Random, seededRandom } from "../support/random.ts";
import { errorAnswer, listingWithout, lyingDeleteAnswer, parseS3Request, type S3Operation } from "./proxy-s3.ts";
import {
  answerFraming,
  ConnectionEnded,
  decodeBody,
  encodeAnswer,
  type HttpHead,
  parseHead,
  readBody,
  requestFraming,
  statusOf,
  Wire,
} from "./proxy-wire.ts";

/**
 * What goes wrong with one request of HTTP:
 * - `refuse`: a reset before anything of it reached the server
 * - `cut-request`: a reset after part of its body reached the server; as `refuse` when it has none
 * - `lose-answer`: the server does it and answers, and the client gets a reset
 * - `cut-head`, `cut-body`: a reset within the answer's head or body
 * - `truncate`: the answer's body ends early, in good order
 * - `error-500`, `error-503`, `error-429`: these, in S3's words, and the server hears nothing of it
 * - `hang`: never answered, and the server hears nothing of it
 * - `stall`: the answer stops in the middle of its body, and the connection stays
 *   (all three in the head where the answer has no body)
 * - `slow`: a pause before the server hears of it
 * - `lie`: a deletion that is confirmed and did not happen; other requests pass
 */
export type ProxyFault =
  | "refuse"
  | "cut-request"
  | "lose-answer"
  | "cut-head"
  | "cut-body"
  | "truncate"
  | "error-500"
  | "error-503"
  | "error-429"
  | "hang"
  | "stall"
  | "slow"
  | "lie";

export interface ProxyOptions {
  /** Of the real server on 127.0.0.1. */
  readonly targetPort: number;
  /** "http" reads requests and answers as they pass, so that each may meet a fault of its own; "tcp" only bytes. */
  readonly protocol?: "http" | "tcp";
  readonly seed?: number;
}

/** One request as it passed, in the order in which they began. */
export interface ProxiedRequest {
  readonly operation: S3Operation;
  readonly method: string;
  readonly path: string;
  readonly key: string;
  readonly fault: ProxyFault | null;
  readonly atMs: number;
  /** Of the answer that the client was sent, or was about to be sent when it was cut; null: none. */
  status: number | null;
  /** Bytes of bodies on the wire: from the client, and to it. */
  sentBytes: number;
  receivedBytes: number;
}

export interface FaultSelection {
  readonly times?: number;
  readonly operation?: S3Operation | readonly S3Operation[];
  readonly matches?: (key: string) => boolean;
  /** Pass so many of those that are selected first. */
  readonly skip?: number;
}

/** Bytes of one connection in one direction until something happens to it, for any protocol. */
export interface CutOptions {
  readonly afterBytes: number;
  readonly direction: "to-server" | "to-client";
  readonly how: "reset" | "end" | "stall";
}

export type FaultRates = Partial<Record<ProxyFault, number>>;

interface Script {
  readonly fault: ProxyFault;
  readonly selects: (operation: S3Operation, key: string) => boolean;
  skip: number;
  left: number;
}

const SLOW_MAX_MS = 1000;
const THROTTLE_STEP_MS = 50;
/** `\r\n0\r\n\r\n`, after the last byte of the body. */
const CHUNKED_END_BYTES = 7;

/**
 * Stands in front of a real server on 127.0.0.1 and spoils what passes. Clients use `port` instead of the server's;
 * heads pass as they were sent, the signed Host among them. Scripted faults (`failNext`) come before drawn ones
 * (`rates`), an outage before both. What the nth request of its kind on a key meets depends on the seed alone, however
 * requests interleave.
 */
export class FaultProxy implements AsyncDisposable {
  /** Before each request reaches the server, or with TCP before each piece that the client sent. */
  latencyMs = 0;
  /** In each direction of each connection; 0: no limit. */
  bytesPerSecond = 0;
  /** The probability of each fault for each request, perhaps by what it is for; their sum is at most 1. */
  rates: FaultRates | ((operation: S3Operation, key: string) => FaultRates) = {};
  readonly requests: ProxiedRequest[] = [];
  readonly #options: ProxyOptions;
  readonly #server: Server;
  readonly #wires = new Set<Wire>();
  readonly #scripts: Script[] = [];
  readonly #cuts: CutOptions[] = [];
  readonly #drawCounts = new Map<string, number>();
  #port = 0;
  #connectionCount = 0;
  #sentBytes = 0;
  #receivedBytes = 0;
  #outage: { readonly how: "refuse" | "hang"; readonly over: Promise<void>; readonly end: () => void } | null = null;
  /** Keys stored since the listings froze; null: they are not frozen. */
  #hiddenKeys: Set<string> | null = null;
  #disposed = false;

  private constructor(options: ProxyOptions) {
    this.#options = options;
    this.#server = createServer({ allowHalfOpen: true }, (socket) => void this.#serve(socket));
  }

  static async start(options: ProxyOptions): Promise<FaultProxy> {
    const proxy = new FaultProxy(options);
    await proxy.#listen(0);
    const address = proxy.#server.address();
    if (address === null || typeof address === "string") throw new Error("the proxy listens on no port");
    proxy.#port = address.port;
    return proxy;
  }

  get port(): number {
    return this.#port;
  }

  /** The endpoint for clients of HTTP. */
  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  get connectionCount(): number {
    return this.#connectionCount;
  }

  /** All bytes that reached the server, and the client. */
  get bytes(): { readonly toServer: number; readonly toClient: number } {
    return { toServer: this.#sentBytes, toClient: this.#receivedBytes };
  }

  /** How many requests of each operation passed or met a fault, since `from` of them had. */
  counts(from = 0): Partial<Record<S3Operation, number>> {
    const counts: Partial<Record<S3Operation, number>> = {};
    for (const { operation } of this.requests.slice(from)) counts[operation] = (counts[operation] ?? 0) + 1;
    return counts;
  }

  /** How many met each fault. */
  faultCounts(): Partial<Record<ProxyFault, number>> {
    const counts: Partial<Record<ProxyFault, number>> = {};
    for (const { fault } of this.requests) if (fault !== null) counts[fault] = (counts[fault] ?? 0) + 1;
    return counts;
  }

  /** The next requests that are selected meet this fault. */
  failNext(fault: ProxyFault, { times = 1, operation, matches = () => true, skip = 0 }: FaultSelection = {}): void {
    const operations: readonly S3Operation[] | undefined = typeof operation === "string" ? [operation] : operation;
    this.#scripts.push({
      fault,
      skip,
      left: times,
      selects: (each, key) => (operations === undefined || operations.includes(each)) && matches(key),
    });
  }

  /** With TCP: the next connection meets this, and only that one. */
  cutNext(cut: CutOptions): void {
    this.#cuts.push(cut);
  }

  /** Forgets what `failNext` and `cutNext` asked for and nothing met yet. */
  clearScripts(): void {
    this.#scripts.length = 0;
    this.#cuts.length = 0;
  }

  /** From now on listings do not show what is stored through the proxy, until `thawListings`. */
  freezeListings(): void {
    this.#hiddenKeys = new Set();
  }

  thawListings(): void {
    this.#hiddenKeys = null;
  }

  /**
   * "refuse": every connection is reset and no new one is accepted. "hang": connections stay and are accepted, and not
   * one more byte passes; what hung goes on when the outage ends.
   */
  async beginOutage(how: "refuse" | "hang"): Promise<void> {
    const { promise: over, resolve: end } = Promise.withResolvers<void>();
    this.#outage = { how, over, end };
    if (how === "hang") return;
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const wire of this.#wires) wire.reset();
    await closed;
  }

  async endOutage(): Promise<void> {
    const outage = this.#outage;
    this.#outage = null;
    if (outage?.how === "refuse") await this.#listen(this.#port);
    outage?.end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    const listening = this.#outage?.how !== "refuse";
    this.#outage?.end();
    const closed = listening ? new Promise((resolve) => this.#server.close(resolve)) : null;
    for (const wire of this.#wires) wire.reset();
    await closed;
  }

  async #listen(port: number): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#server.once("error", reject);
    this.#server.listen(port, "127.0.0.1", () => resolve());
    await promise;
    this.#server.off("error", reject);
  }

  async #serve(socket: Socket): Promise<void> {
    this.#connectionCount++;
    const client = new Wire(socket);
    this.#wires.add(client);
    let server: Wire | null = null;
    try {
      await this.#outage?.over;
      server = await Wire.connect(this.#options.targetPort);
      this.#wires.add(server);
      if (this.#options.protocol === "tcp") await this.#serveBytes(client, server);
      else await this.#serveRequests(client, server);
    } catch (error) {
      // One side went away, or there is no server: the other side must see that, too.
      client.reset();
      server?.reset();
      if (!(error instanceof ConnectionEnded) && !isConnectionError(error) && !this.#disposed) throw error;
    } finally {
      this.#wires.delete(client);
      if (server !== null) this.#wires.delete(server);
      client.end();
      server?.end();
      // A client that keeps its half open would hold the port's server open for ever.
      client.socket.destroySoon();
      server?.socket.destroySoon();
    }
  }

  async #serveBytes(client: Wire, server: Wire): Promise<void> {
    const cut = this.#cuts.shift();
    const passing = { client, server, cut };
    await Promise.all([this.#passBytes("to-server", passing), this.#passBytes("to-client", passing)]);
  }

  async #passBytes(
    direction: CutOptions["direction"],
    { client, server, cut }: { client: Wire; server: Wire; cut: CutOptions | undefined },
  ): Promise<void> {
    const [from, to] = direction === "to-server" ? [client, server] : [server, client];
    let left = cut?.direction === direction ? cut.afterBytes : Number.POSITIVE_INFINITY;
    for (let piece = await from.read(); piece !== null; piece = await from.read()) {
      await this.#outage?.over;
      if (direction === "to-server") await this.#delay();
      await this.#write(to, piece.subarray(0, left), direction);
      left -= piece.length;
      if (left > 0) continue;
      // Who stops passing to the client leaves it to the other direction to see that the client went away.
      if (cut?.how === "stall") return direction === "to-server" ? await closed(client) : undefined;
      if (cut?.how === "end") return void [client.end(), server.end()];
      client.reset();
      server.reset();
      return;
    }
    to.end();
  }

  /** One after the other, as HTTP/1.1 clients send them on a connection. */
  async #serveRequests(client: Wire, server: Wire): Promise<void> {
    for (;;) {
      const bytes = await client.readHead();
      if (bytes === null) return;
      await this.#outage?.over;
      if ((await this.#serveRequest(parseHead(bytes), client, server)) === "close") return;
    }
  }

  async #serveRequest(head: HttpHead, client: Wire, server: Wire): Promise<"keep" | "close"> {
    const { operation, method, path, key } = parseS3Request(head.firstLine);
    const random = this.#randomFor(operation, key);
    const fault = this.#scripted(operation, key) ?? this.#drawn(operation, key, random);
    const request: ProxiedRequest = {
      ...{ operation, method, path, key, fault },
      ...{ atMs: performance.now(), status: null, sentBytes: 0, receivedBytes: 0 },
    };
    this.requests.push(request);
    const framing = requestFraming(head);
    await this.#delay();
    switch (fault) {
      case "refuse":
        throw new ConnectionEnded("injected");
      case "hang":
        await closed(client);
        return "close";
      case "slow":
        await Bun.sleep(random.integer(20, SLOW_MAX_MS));
        break;
      case "error-500":
      case "error-503":
      case "error-429": {
        for await (const piece of readBody(client, framing)) request.sentBytes += piece.length;
        request.status = Number(fault.slice("error-".length));
        await this.#write(client, errorAnswer(request.status as 429 | 500 | 503, method), "to-client");
        return "keep";
      }
      case "lie":
        if (operation !== "delete" && operation !== "delete-many") break;
        request.status = operation === "delete" ? 204 : 200;
        await client.write(
          lyingDeleteAnswer(operation, decodeBody(await collected(readBody(client, framing)), framing)),
        );
        return "keep";
    }
    await this.#forward(head, { client, server, request, random });
    return await this.#answer(request, { client, server, random });
  }

  /** The request, or part of it, to the server. */
  async #forward(head: HttpHead, { client, server, request, random }: Passing): Promise<void> {
    const framing = requestFraming(head);
    const lengthBytes = framing.kind === "length" ? framing.lengthBytes : 64 * 1024;
    const isCut = request.fault === "cut-request";
    if (isCut && lengthBytes === 0) throw new ConnectionEnded("injected, as there is no body to cut");
    let left = isCut ? random.integer(0, lengthBytes - 1) : Number.POSITIVE_INFINITY;
    await this.#write(server, head.bytes, "to-server");
    for await (const piece of readBody(client, framing)) {
      await this.#outage?.over;
      await this.#write(server, piece.subarray(0, left), "to-server");
      request.sentBytes += piece.length;
      left -= piece.length;
      if (left <= 0) throw new ConnectionEnded("injected");
    }
  }

  /** The server's answer, or part of it, to the client. */
  async #answer(
    request: ProxiedRequest,
    { client, server, random }: Omit<Passing, "request">,
  ): Promise<"keep" | "close"> {
    const head = await this.#finalHead(client, server);
    request.status = statusOf(head);
    const framing = answerFraming(head, request.method);
    this.#noteStored(request);
    if (request.fault === "lose-answer") {
      for await (const _piece of readBody(server, framing)) await this.#outage?.over;
      throw new ConnectionEnded("injected");
    }
    if (request.operation === "list" && this.#hiddenKeys !== null && request.status === 200) {
      const xml = decodeBody(await collected(readBody(server, framing)), framing).toString("utf8");
      const answer = encodeAnswer(200, listingWithout(xml, this.#hiddenKeys), { "Content-Type": "application/xml" });
      await this.#write(client, answer, "to-client");
      return "keep";
    }
    const isSpoilt = request.fault === "cut-body" || request.fault === "truncate" || request.fault === "stall";
    // Where to cut depends on the length, which only the end of a chunked body tells.
    const body = isSpoilt ? await collected(readBody(server, framing)) : null;
    if (request.fault === "cut-head" || body?.length === 0) {
      await this.#write(client, head.bytes.subarray(0, random.integer(1, head.bytes.length - 5)), "to-client");
      return await this.#spoil(request.fault, client);
    }
    await this.#write(client, head.bytes, "to-client");
    if (body !== null) {
      // Who lacks nothing but the end mark of a chunked body has got all of it.
      const endBytes = framing.kind === "chunked" ? CHUNKED_END_BYTES : 0;
      request.receivedBytes = random.integer(0, Math.max(0, body.length - endBytes - 1));
      await this.#write(client, body.subarray(0, request.receivedBytes), "to-client");
      return await this.#spoil(request.fault, client);
    }
    for await (const piece of readBody(server, framing)) {
      await this.#outage?.over;
      await this.#write(client, piece, "to-client");
      request.receivedBytes += piece.length;
    }
    const closes = head.fields.get("connection")?.toLowerCase() === "close" || framing.kind === "until-close";
    return closes ? "close" : "keep";
  }

  async #spoil(fault: ProxyFault | null, client: Wire): Promise<"close"> {
    if (fault === "cut-head" || fault === "cut-body") throw new ConnectionEnded("injected");
    if (fault === "stall") await closed(client);
    return "close";
  }

  /** Interim answers (100 Continue) pass on the way. */
  async #finalHead(client: Wire, server: Wire): Promise<HttpHead> {
    for (;;) {
      const bytes = await server.readHead();
      if (bytes === null) throw new ConnectionEnded("before an answer");
      await this.#outage?.over;
      const head = parseHead(bytes);
      if (statusOf(head) >= 200) return head;
      await this.#write(client, bytes, "to-client");
    }
  }

  #noteStored({ operation, key, status }: ProxiedRequest): void {
    if ((operation === "put" || operation === "complete-upload") && status === 200) this.#hiddenKeys?.add(key);
  }

  /** By the key and not the path: a bucket's name may be another one each time. */
  #randomFor(operation: S3Operation, key: string): Random {
    const name = `${operation} ${key}`;
    const count = (this.#drawCounts.get(name) ?? 0) + 1;
    this.#drawCounts.set(name, count);
    return seededRandom(this.#options.seed ?? 1).fork(`${name} ${count}`);
  }

  #scripted(operation: S3Operation, key: string): ProxyFault | null {
    for (const script of this.#scripts) {
      if (script.left === 0 || !script.selects(operation, key)) continue;
      if (script.skip > 0) {
        script.skip--;
        continue;
      }
      script.left--;
      return script.fault;
    }
    return null;
  }

  #drawn(operation: S3Operation, key: string, random: Random): ProxyFault | null {
    let point = random.next();
    const rates = typeof this.rates === "function" ? this.rates(operation, key) : this.rates;
    for (const [fault, rate] of Object.entries(rates)) {
      // The keys of `rates` are faults by its type; Object.entries forgets that.
      if (point < rate) return fault as ProxyFault;
      point -= rate;
    }
    return null;
  }

  async #delay(): Promise<void> {
    if (this.latencyMs > 0) await Bun.sleep(this.latencyMs);
  }

  async #write(to: Wire, bytes: Uint8Array, direction: CutOptions["direction"]): Promise<void> {
    const stepBytes = Math.max(1, Math.floor((this.bytesPerSecond * THROTTLE_STEP_MS) / 1000));
    for (let offset = 0; offset < bytes.length; ) {
      const isLimited = this.bytesPerSecond > 0;
      const piece = isLimited ? bytes.subarray(offset, offset + stepBytes) : bytes.subarray(offset);
      if (isLimited) await Bun.sleep((1000 * piece.length) / this.bytesPerSecond);
      await to.write(piece);
      offset += piece.length;
      if (direction === "to-server") this.#sentBytes += piece.length;
      else this.#receivedBytes += piece.length;
    }
  }
}

interface Passing {
  readonly client: Wire;
  readonly server: Wire;
  readonly request: ProxiedRequest;
  readonly random: Random;
}

/** Resolves when the other side has closed the connection; what it sends until then is lost. */
async function closed(wire: Wire): Promise<void> {
  for (let piece = await wire.read(); piece !== null; ) piece = await wire.read();
}

async function collected(pieces: AsyncIterable<Buffer>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(pieces));
}

function isConnectionError(error: unknown): boolean {
  return error instanceof Error && "code" in error && typeof error.code === "string" && error.code.startsWith("E");
}
