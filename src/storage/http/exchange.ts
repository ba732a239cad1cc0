import { abortError } from "../abort.ts";
import { MAX_XML_BYTES } from "./xml.ts";

/** Instead of the global `fetch`, for tests. */
export type Fetch = (url: string, init: BunFetchRequestInit) => Promise<Response>;

/** One request as it goes out: signed, and with everything in its URL. */
export interface SignedRequest {
  readonly method: string;
  readonly url: string;
  readonly headers: Headers;
  readonly body?: Uint8Array | undefined;
  readonly signal?: AbortSignal | undefined;
  /** A larger answer to a success is refused; `MAX_ANSWER_BYTES` by default, which always bounds a refusal. */
  readonly maxBytes?: number | undefined;
}

export interface ExchangeOptions {
  /** An exchange in which no byte moves for this long has failed. */
  readonly timeoutMs: number;
  /** PEM of the authorities to trust; undefined: those that Bun trusts. */
  readonly ca?: string | undefined;
  readonly fetch?: Fetch | undefined;
}

/** What came back, all of it. */
export interface RawAnswer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Uint8Array;
}

/** A page of a listing has at most some MiB. */
export const MAX_ANSWER_BYTES = MAX_XML_BYTES;
/** Larger bodies are streamed in pieces, so that their progress shows. */
const PIECE_BYTES = 128 * 1024;

/**
 * One request and the whole of its answer, whatever its status; a redirect is an answer and not followed. Throws
 * `abortError(signal)` when the caller stops, an Error of code `TIMEOUT` when nothing moved for `timeoutMs`, and else what
 * went wrong on the line, a body that is cut short or too large included.
 *
 * Bun's fetch sends a request a second time by itself when a kept-alive connection turns out to be dead and the body is not a
 * stream: what was sent once from here may have arrived twice.
 */
export async function exchange(request: SignedRequest, options: ExchangeOptions): Promise<RawAnswer> {
  const { body, signal, headers } = request;
  // Identity, so that lengths and ranges are those of the stored bytes.
  headers.set("accept-encoding", "identity");
  if (body !== undefined) headers.set("content-length", String(body.byteLength));
  using watch = new StallWatch(options.timeoutMs, signal);
  try {
    const response = await (options.fetch ?? fetch)(request.url, {
      method: request.method,
      headers,
      redirect: "manual",
      decompress: false,
      // Its own limit of five minutes; ours is the watch.
      timeout: false,
      signal: watch.signal,
      ...(body === undefined ? {} : { body: body.byteLength <= PIECE_BYTES ? body : streamOf(body, watch) }),
      ...(options.ca === undefined ? {} : { tls: { ca: options.ca } }),
    });
    watch.progressed();
    const bytes = await readBody(response, request, watch);
    return { status: response.status, headers: response.headers, body: bytes };
  } catch (error) {
    if (signal?.aborted) throw abortError(signal);
    throw watch.hasStalled ? Object.assign(new Error("no progress"), { code: "TIMEOUT" }) : error;
  }
}

/** Whether a status says that what was asked for was done, as `Response.ok` does. */
export function isSuccess(status: number): boolean {
  return status >= 200 && status < 300;
}

/** Aborts `signal` when the caller does, or when nothing has progressed for so long. */
class StallWatch implements Disposable {
  readonly #controller = new AbortController();
  readonly #caller: AbortSignal | undefined;
  readonly #timer: ReturnType<typeof setTimeout>;
  #hasStalled = false;

  constructor(timeoutMs: number, caller: AbortSignal | undefined) {
    this.#caller = caller;
    this.#timer = setTimeout(
      () => {
        this.#hasStalled = true;
        this.#controller.abort();
      },
      Math.min(timeoutMs, 2 ** 31 - 1),
    );
    caller?.addEventListener("abort", this.#onAbort, { once: true });
    if (caller?.aborted) this.#onAbort();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get hasStalled(): boolean {
    return this.#hasStalled;
  }

  progressed(): void {
    this.#timer.refresh();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#caller?.removeEventListener("abort", this.#onAbort);
  }

  readonly #onAbort = () => this.#controller.abort();
}

/** The body piece by piece, as the connection takes them. */
function streamOf(body: Uint8Array, watch: StallWatch): ReadableStream<Uint8Array> {
  let offset = 0;
  return new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        watch.progressed();
        const piece = body.subarray(offset, offset + PIECE_BYTES);
        offset += piece.byteLength;
        if (piece.byteLength === 0) controller.close();
        else controller.enqueue(piece);
      },
    },
    { highWaterMark: 0 },
  );
}

/** The whole body. Throws when it is larger than allowed, or not as long as the answer said. */
async function readBody(response: Response, request: SignedRequest, watch: StallWatch): Promise<Uint8Array> {
  if (request.method === "HEAD" || response.body === null) return new Uint8Array(0);
  const header = response.headers.get("content-length");
  const announced = header === null || !/^\d{1,15}$/.test(header) ? null : Number(header);
  const maxBytes = response.ok ? (request.maxBytes ?? MAX_ANSWER_BYTES) : MAX_ANSWER_BYTES;
  if (announced !== null && announced > maxBytes) {
    await response.body.cancel();
    throw new Error(`the answer is of ${announced} bytes, more than ${maxBytes}`);
  }
  if (announced !== null) return await readAnnounced(response.body, announced, watch);
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const piece of response.body) {
    watch.progressed();
    pieces.push(piece);
    sizeBytes += piece.byteLength;
    if (sizeBytes > maxBytes) throw new Error(`the answer is longer than ${maxBytes} bytes`);
  }
  return Buffer.concat(pieces, sizeBytes);
}

async function readAnnounced(
  body: AsyncIterable<Uint8Array>,
  sizeBytes: number,
  watch: StallWatch,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  let readBytes = 0;
  for await (const piece of body) {
    watch.progressed();
    if (readBytes + piece.byteLength > sizeBytes) throw new Error(`the answer is longer than its ${sizeBytes} bytes`);
    bytes.set(piece, readBytes);
    readBytes += piece.byteLength;
  }
  if (readBytes !== sizeBytes) throw new Error(`the answer ended after ${readBytes} of ${sizeBytes} bytes`);
  return bytes;
}
