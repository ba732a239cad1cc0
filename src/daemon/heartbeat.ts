import { ask } from "../storage/http/ask.ts";
import type { Clock } from "../util/clock.ts";
import { delay } from "../util/delay.ts";
import type { Logger } from "../util/logger.ts";
import { type DatabaseReport, viewDaemon } from "./http-view.ts";

export interface HeartbeatSettings {
  /** http or https; whoever knows it can call in our place, so no message has more of it than the host. undefined: no call. */
  readonly url: string | undefined;
  readonly intervalMs: number;
}

export interface HeartbeatInputs {
  /** Every database that the daemon follows at this moment. */
  readonly reports: () => readonly DatabaseReport[];
  readonly startedMs: number;
  readonly clock: Clock;
  readonly log: Logger;
  /** For the whole answer; not given: 10 s. */
  readonly timeoutMs?: number;
}

const TIMEOUT_MS = 10_000;

/**
 * Calls a URL for as long as all is well, so that a service elsewhere raises the alarm when the calls stay away: the one kind
 * of alarm that also works when this host is gone. A GET whose answer is not looked at but for its status; a redirect is not
 * followed. "Well" is the rule of `status --check` without thresholds.
 */
export class Heartbeat implements Disposable {
  readonly #inputs: HeartbeatInputs;
  #settings: HeartbeatSettings = { url: undefined, intervalMs: 0 };
  #stop = new AbortController();
  /** Of the last call: a service that is away is told once, and so is its return. */
  #isHeard = true;

  constructor(inputs: HeartbeatInputs) {
    this.#inputs = inputs;
  }

  /** From now on these; nothing happens when they are the same. */
  set({ url, intervalMs }: HeartbeatSettings): void {
    if (url === this.#settings.url && intervalMs === this.#settings.intervalMs) return;
    this.#stop.abort();
    this.#stop = new AbortController();
    this.#settings = { url, intervalMs };
    this.#isHeard = true;
    if (url !== undefined) void this.#run(new URL(url), this.#stop.signal);
  }

  /** No call from now on; one that is under way is broken off. */
  [Symbol.dispose](): void {
    this.#stop.abort();
  }

  /** The first call is one interval away: a daemon that dies young, time and again, must not be taken for a healthy one. */
  async #run(url: URL, stop: AbortSignal): Promise<void> {
    const { intervalMs } = this.#settings;
    for (;;) {
      await delay(intervalMs, stop).catch(() => {});
      if (stop.aborted) return;
      if (this.#isWell()) await this.#call(url, stop);
    }
  }

  #isWell(): boolean {
    const { reports, startedMs, clock } = this.#inputs;
    // Without a greatest age, a verify does not count.
    const verifyOf = () => ({ outcome: "missing", reason: "" }) as const;
    const { databases } = viewDaemon(reports(), { nowMs: clock.nowMs(), startedMs, verifyOf });
    return databases.length > 0 && databases.every(({ troubles }) => troubles.length === 0);
  }

  async #call(url: URL, signal: AbortSignal): Promise<void> {
    const { log, timeoutMs = TIMEOUT_MS } = this.#inputs;
    const answer = await ask({ method: "GET", url, timeoutMs, signal }).catch(() => null);
    if (signal.aborted || answer === null) return;
    const isHeard = answer.kind === "answered" && answer.status >= 200 && answer.status < 300;
    if (!isHeard && this.#isHeard)
      log.warn("the heartbeat is not heard", {
        host: url.host,
        error: answer.kind === "answered" ? `it answers with status ${answer.status}` : answer.why,
        hint: "see `heartbeat_url` under [daemon]; backups go on",
      });
    if (isHeard && !this.#isHeard) log.info("the heartbeat is heard again", { host: url.host });
    this.#isHeard = isHeard;
  }
}
