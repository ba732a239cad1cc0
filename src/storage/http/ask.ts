import { request as requestPlain } from "node:http";
import { request as requestTls } from "node:https";
import { systemErrorCode } from "../../util/errors.ts";
import { abortError } from "../abort.ts";

export interface HttpQuestion {
  readonly method: "GET" | "PUT" | "POST";
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  /** For all of the answer. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** `why` is a clause for people, and holds nothing of the question but its host. */
export type HttpAnswer =
  | { readonly kind: "answered"; readonly status: number; readonly body: string }
  | { readonly kind: "no-answer"; readonly why: string };

/** Every answer that we know is below 10 KB. */
const MAX_ANSWER_BYTES = 256 * 1024;

/**
 * Asks a service of this host or of its hypervisor, over a connection of its own. Never through a proxy, whatever the
 * environment says, since such an address means another service beyond a proxy, and the answer is a secret. `fetch` of Bun
 * obeys HTTP_PROXY without a way around it; node:http knows no proxies. A redirect is an answer like any other and not
 * followed. Rejects only with what `signal` says.
 */
export async function askDirectly(question: HttpQuestion): Promise<HttpAnswer> {
  const { method, url, headers = {}, body } = question;
  return await withinTime(question, (signal) => {
    const { promise, resolve, reject } = Promise.withResolvers<HttpAnswer>();
    const request = url.protocol === "https:" ? requestTls : requestPlain;
    const sent = request(url, { method, headers, agent: false, signal }, (answer) => {
      collect(answer).then((text) => {
        if (text === null) resolve(tooLarge(url));
        else resolve({ kind: "answered", status: answer.statusCode ?? 0, body: text });
        if (text === null) sent.destroy();
      }, reject);
    });
    sent.on("error", reject);
    sent.end(body);
    return promise;
  });
}

/** Asks a service of the internet: through the proxy that the environment names, if any. Else as `askDirectly`. */
export async function ask(question: HttpQuestion): Promise<HttpAnswer> {
  const { method, url, headers = {}, body } = question;
  return await withinTime(question, async (signal) => {
    const sent = { method, headers, redirect: "manual", signal, keepalive: false } as const;
    const answer = await fetch(url, body === undefined ? sent : { ...sent, body });
    const text = answer.body === null ? "" : await collect(answer.body);
    return text === null ? tooLarge(url) : { kind: "answered", status: answer.status, body: text };
  });
}

async function withinTime(
  { url, timeoutMs, signal }: HttpQuestion,
  call: (signal: AbortSignal) => Promise<HttpAnswer>,
): Promise<HttpAnswer> {
  const deadline = AbortSignal.timeout(timeoutMs);
  try {
    return await call(signal === undefined ? deadline : AbortSignal.any([signal, deadline]));
  } catch (error) {
    if (signal?.aborted) throw abortError(signal);
    // Only the code of the failure: messages of the runtime may repeat an address with a secret in it.
    const why = deadline.aborted ? `no answer within ${timeoutMs} ms` : (systemErrorCode(error) ?? "no connection");
    return { kind: "no-answer", why: `${why} from ${url.host}` };
  }
}

/** The text of an answer, or null when it is too large. */
async function collect(stream: AsyncIterable<Uint8Array>): Promise<string | null> {
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const piece of stream) {
    sizeBytes += piece.byteLength;
    if (sizeBytes > MAX_ANSWER_BYTES) return null;
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

function tooLarge(url: URL): HttpAnswer {
  return { kind: "no-answer", why: `an answer of more than ${MAX_ANSWER_BYTES / 1024} KiB from ${url.host}` };
}
