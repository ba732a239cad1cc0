import { constants, Database } from "bun:sqlite";
import { assert, BakeliteError, describeError } from "../util/errors.ts";
import { workerUrl } from "../util/worker-url.ts";

export type IntegrityMode = "quick" | "full";

export interface IntegrityRequest {
  readonly path: string;
  readonly mode: IntegrityMode;
}

/** `failed`: SQLite could not carry out the check at all. */
export type IntegrityAnswer =
  | { readonly outcome: "sound" }
  | { readonly outcome: "damaged"; readonly problems: readonly string[] }
  | { readonly outcome: "failed"; readonly reason: string };

const MAX_PROBLEMS = 20;
/** Helps where indexes are looked up in another order than their tables. */
const CACHE_KIB = 32 * 1024;

/**
 * Runs SQLite's `PRAGMA integrity_check` (`full`) or `quick_check` on a staged file that nobody else has open, in a thread of
 * its own, for it may take minutes. The file is opened as immutable: nothing is written, neither to it nor beside it,
 * although its header says WAL mode. Rejects with the signal's reason as soon as it is aborted; the thread ends with
 * SQLite's next answer or with the process.
 */
export async function checkIntegrity(request: IntegrityRequest, signal?: AbortSignal): Promise<IntegrityAnswer> {
  signal?.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<IntegrityAnswer>();
  const worker = new Worker(workerUrl("replica/restore-check.worker.ts").href);
  const onAbort = () => reject(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  worker.onmessage = ({ data }: MessageEvent<IntegrityAnswer>) => resolve(data);
  worker.onerror = ({ message }: ErrorEvent) =>
    reject(new BakeliteError("internal", `the thread that checks the restored database failed: ${message}`));
  worker.postMessage(request);
  try {
    return await promise;
  } finally {
    signal?.removeEventListener("abort", onAbort);
    worker.terminate();
  }
}

/** The check itself, in this thread. */
export function runIntegrityCheck({ path, mode }: IntegrityRequest): IntegrityAnswer {
  try {
    using database = new Database(immutableUri(path), constants.SQLITE_OPEN_READONLY | constants.SQLITE_OPEN_URI);
    database.run(`PRAGMA cache_size = -${CACHE_KIB}`);
    const pragma = mode === "full" ? "integrity_check" : "quick_check";
    const problems = database.query(`PRAGMA ${pragma}(${MAX_PROBLEMS})`).all().map(firstColumn);
    return problems.length === 1 && problems[0] === "ok" ? { outcome: "sound" } : { outcome: "damaged", problems };
  } catch (error) {
    return { outcome: "failed", reason: describeError(error) };
  }
}

function firstColumn(row: unknown): string {
  assert(typeof row === "object" && row !== null, "SQLite answers with rows");
  return String(Object.values(row)[0]);
}

/** Source: https://sqlite.org/uri.html. */
function immutableUri(path: string): string {
  return `file:${path.split("/").map(encodeURIComponent).join("/")}?immutable=1`;
}
