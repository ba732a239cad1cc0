import { BakeliteError } from "../util/errors.ts";
import { workerUrl } from "../util/worker-url.ts";
import { type FileIdentity, readFileIdentity } from "./control.ts";

/** What the thread is asked for. */
export interface PassiveRequest {
  readonly databasePath: string;
  readonly file: FileIdentity;
}

/** An idle thread is given back after this, with its memory. */
const IDLE_MS = 30_000;

/**
 * Copies a large WAL into its database in a thread of its own, so that no other database waits meanwhile: a PASSIVE
 * checkpoint of 16 MiB takes some 60 ms, one of 512 MiB seconds. It takes no lock that a writer waits for. One at a time,
 * for they would share one disk.
 */
class BackgroundCheckpoints {
  #worker: Worker | null = null;
  #idle: ReturnType<typeof setTimeout> | undefined;
  #last: Promise<void> = Promise.resolve();

  /**
   * Backfills as much as holds and readers allow. Resolves when done, also when a lock was in the way or another file has
   * taken the place of the one that stood there at the call; the caller's descriptor of the database file must stay open
   * until then. Throws what SQLite says otherwise.
   */
  async passive(databasePath: string): Promise<void> {
    const file = readFileIdentity(databasePath);
    if (file === null) return;
    const turn = this.#last.then(() => this.#ask({ databasePath, file }));
    this.#last = turn.catch(() => {});
    await turn;
  }

  async #ask(request: PassiveRequest): Promise<void> {
    clearTimeout(this.#idle);
    const worker = this.#worker ?? new Worker(workerUrl("sqlite/background-checkpoint.worker.ts").href);
    this.#worker = worker;
    const { promise, resolve, reject } = Promise.withResolvers<string | null>();
    worker.onmessage = ({ data }: MessageEvent<string | null>) => resolve(data);
    worker.onerror = ({ message }: ErrorEvent) =>
      reject(new BakeliteError("internal", `the checkpoint thread failed: ${message}`));
    worker.postMessage(request);
    try {
      const failure = await promise;
      if (failure === null) return;
      throw new BakeliteError("io", `cannot checkpoint: ${failure}`, {
        subject: request.databasePath,
        hint: "check the disk that holds the database",
      });
    } finally {
      this.#idle = setTimeout(() => this.#end(), IDLE_MS);
      this.#idle.unref();
    }
  }

  #end(): void {
    this.#worker?.terminate();
    this.#worker = null;
  }
}

/** One for the process. */
export const backgroundCheckpoints = new BackgroundCheckpoints();
