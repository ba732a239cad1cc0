import { STORAGE_FORMAT_VERSION } from "../format/header.ts";
import { buildInfo } from "../util/build-info.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import { BakeliteError, describeError, systemErrorCode } from "../util/errors.ts";
import { formatListenAddress, type ListenAddress } from "../util/listen-address.ts";
import type { Logger } from "../util/logger.ts";
import { printable } from "../util/printable.ts";
import { type DaemonView, type DatabaseReport, viewDaemon } from "./http-view.ts";
import { metricFamilies } from "./metrics.ts";
import { readProcessFigures } from "./metrics-process.ts";
import { encodeMetrics, METRICS_CONTENT_TYPE } from "./metrics-text.ts";
import { VerifyMarkers } from "./metrics-verify.ts";
import { STATUS_PAGE_POLICY, statusPage } from "./status-page.ts";

export interface HttpServerInputs {
  /** Every database that the daemon follows at this moment. */
  readonly reports: () => readonly DatabaseReport[];
  readonly startedMs: number;
  /** `$BAKELITE_STATE_DIR`. */
  readonly stateDirectory: string | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

type Listener = ReturnType<typeof Bun.serve>;

interface Answer {
  readonly status: number;
  readonly type: string;
  readonly body: string;
  readonly policy?: string;
}

const TEXT = "text/plain; charset=utf-8";

/** Answers younger than this are given again, so that whoever asks without end costs little more than whoever asks once. */
const REUSE_MS = 200;
/** What an answer waits for the verify markers, which a slow disk may keep back: then those of the last look are told. */
const MARKER_PATIENCE_MS = 50;
/** Between two requests of a connection. One whose request does not come to an end is closed by Bun after 12 s. */
const IDLE_SECONDS = 10;

/**
 * `GET /metrics` for Prometheus, `/healthz` for load balancers, `/` for a person. It only tells: nothing can be changed from
 * here, and there is no password, so whoever reaches the address reads the names of databases, their paths and errors.
 */
export class HttpServer implements Disposable {
  readonly #inputs: HttpServerInputs;
  readonly #markers: VerifyMarkers;
  readonly #recent = new Map<string, { readonly atMs: number; readonly answer: Promise<Answer> }>();
  #listening: { readonly address: ListenAddress; readonly listener: Listener } | null = null;
  #hasFailed = false;

  constructor(inputs: HttpServerInputs) {
    this.#inputs = inputs;
    this.#markers = new VerifyMarkers(inputs);
  }

  /** `http://127.0.0.1:9090`, with the port that the system chose if that was left to it; undefined while nobody is listened to. */
  get url(): string | undefined {
    if (this.#listening === null) return undefined;
    const { address, listener } = this.#listening;
    return `http://${formatListenAddress({ ...address, port: listener.port ?? address.port })}`;
  }

  /**
   * Listens there from now on and nowhere else; undefined: nowhere at all. Throws `io` when that is not possible, and then
   * listens where it did before. Nothing happens when it is the same address.
   */
  listen(address: ListenAddress | undefined): void {
    const before = this.#listening;
    if (isSame(before?.address, address)) return;
    // On the same port the old address may be in the way of the new one, as that of every interface is.
    if (before?.address.port === address?.port) this.#close();
    try {
      const opened = address === undefined ? null : { address, listener: this.#open(address) };
      this.#close();
      this.#listening = opened;
    } catch (error) {
      if (before !== null && this.#listening === null)
        this.#listening = { address: before.address, listener: this.#open(before.address) };
      throw error;
    }
  }

  /** Open connections are cut off. */
  [Symbol.dispose](): void {
    this.#close();
  }

  #close(): void {
    void this.#listening?.listener.stop(true);
    this.#listening = null;
  }

  #open(address: ListenAddress): Listener {
    try {
      return Bun.serve({
        hostname: address.host,
        port: address.port,
        development: false,
        idleTimeout: IDLE_SECONDS,
        // Nobody has anything to send here.
        maxRequestBodySize: 1024,
        fetch: async (request) => respond(request, () => this.#answer(pathOf(request.url))),
        error: (error) => this.#failed(error),
      });
    } catch (error) {
      throw cannotListen(address, error);
    }
  }

  async #answer(path: string): Promise<Answer> {
    const nowMs = this.#inputs.clock.monotonicMs();
    const recent = this.#recent.get(path);
    if (recent !== undefined && nowMs - recent.atMs < REUSE_MS) return await recent.answer;
    const make = PAGES.get(path);
    if (make === undefined) return plain(404, "not found: there are /, /metrics and /healthz\n");
    const answer = this.#view().then(make);
    this.#recent.set(path, { atMs: nowMs, answer });
    return await answer;
  }

  async #view(): Promise<DaemonView> {
    const { reports, startedMs, clock } = this.#inputs;
    const owners = () => reports().map(({ status }) => ({ name: status.database, path: status.path }));
    await Promise.race([this.#markers.look(owners), delay(MARKER_PATIENCE_MS)]);
    return viewDaemon(reports(), { nowMs: clock.nowMs(), startedMs, verifyOf: (name) => this.#markers.of(name) });
  }

  /** A bug in here must not end a daemon whose backups are fine, and is told once. */
  #failed(error: unknown): Response {
    const { log } = this.#inputs;
    if (!this.#hasFailed) log.error("cannot answer a request for metrics", { error: describeError(error) });
    this.#hasFailed = true;
    return toResponse(plain(500, "internal error: the log of the daemon has it\n"));
  }
}

const PAGES: ReadonlyMap<string, (view: DaemonView) => Answer> = new Map([
  [
    "/",
    (view) => ({
      status: 200,
      type: "text/html; charset=utf-8",
      policy: STATUS_PAGE_POLICY,
      body: statusPage(view, buildInfo),
    }),
  ],
  ["/metrics", (view) => ({ status: 200, type: METRICS_CONTENT_TYPE, body: metricsText(view) })],
  ["/healthz", health],
]);

function metricsText(view: DaemonView): string {
  const program = {
    build: buildInfo,
    storageFormat: STORAGE_FORMAT_VERSION,
    process: readProcessFigures(view.startedMs),
  };
  return encodeMetrics(metricFamilies(view, program));
}

/** 503 with a line for each database for which `status --check` would fail, as it prints them. */
function health({ databases }: DaemonView): Answer {
  if (databases.length === 0) return plain(503, "no database is followed yet\n");
  const bad = databases.filter(({ troubles }) => troubles.length > 0);
  if (bad.length === 0) return plain(200, "ok\n");
  const lines = bad.map(
    ({ status, troubles }) => `${status.database}: ${printable(troubles.map(({ message }) => message).join("; "))}\n`,
  );
  return plain(503, lines.join(""));
}

async function respond(request: Request, answer: () => Promise<Answer>): Promise<Response> {
  if (request.method !== "GET" && request.method !== "HEAD")
    return toResponse(plain(405, "only GET and HEAD\n"), { Allow: "GET, HEAD" });
  return toResponse(await answer());
}

function toResponse({ status, type, body, policy }: Answer, more: Record<string, string> = {}): Response {
  return new Response(body, {
    status,
    headers: {
      "Content-Type": type,
      "Content-Security-Policy": policy ?? "default-src 'none'; frame-ancestors 'none'",
      "X-Content-Type-Options": "nosniff",
      "Cross-Origin-Resource-Policy": "same-origin",
      "Referrer-Policy": "no-referrer",
      "Cache-Control": "no-store",
      ...more,
    },
  });
}

function plain(status: number, body: string): Answer {
  return { status, type: TEXT, body };
}

/** Of `http://host/path?query`. The host is whatever the client says, which no URL parser need accept. */
function pathOf(url: string): string {
  return url.replace(/^[a-z]+:\/\/[^/]*/i, "").replace(/[?#].*$/s, "");
}

function isSame(a: ListenAddress | undefined, b: ListenAddress | undefined): boolean {
  return a?.host === b?.host && a?.port === b?.port;
}

function cannotListen(address: ListenAddress, error: unknown): BakeliteError {
  const subject = formatListenAddress(address);
  const what = "cannot serve metrics";
  switch (systemErrorCode(error)) {
    case "EADDRINUSE":
      return new BakeliteError("io", `${what}: another program listens at the address`, {
        subject,
        hint: `choose another \`metrics_addr\` or \`--metrics-addr\`; \`ss -ltnp 'sport = :${address.port}'\` shows what listens there`,
      });
    case "EADDRNOTAVAIL":
      return new BakeliteError("io", `${what}: no interface of this host has the address`, {
        subject,
        hint: "correct `metrics_addr` or `--metrics-addr`; `0.0.0.0` and `[::]` stand for every interface",
      });
    case "ENOENT":
    case "ENOTFOUND":
      return new BakeliteError("io", `${what}: the host name is not known`, {
        subject,
        hint: "give an IP address in `metrics_addr` or `--metrics-addr`",
      });
    case "EACCES":
    case "EPERM":
      return new BakeliteError("io", `${what}: this user may not listen there`, {
        subject,
        hint: "choose a port above 1023 for `metrics_addr` or `--metrics-addr`",
      });
    default:
      return new BakeliteError("io", `${what}: ${describeError(error)}`, {
        subject,
        hint: "choose another `metrics_addr` or `--metrics-addr`",
        cause: error,
      });
  }
}
