import { BakeliteError, describeError } from "../util/errors.ts";

export interface Failure {
  readonly atMs: number;
  readonly code: string;
  readonly message: string;
}

/** How a database fares: an unhealthy streak begins with a failure and ends with the first success. */
export class Health {
  readonly #nowMs: () => number;
  readonly #onChange: () => void;
  #streak: { readonly sinceMs: number; attempts: number } | null = null;
  #lastError: Failure | null = null;

  constructor(nowMs: () => number, onChange: () => void = () => {}) {
    this.#nowMs = nowMs;
    this.#onChange = onChange;
  }

  get streak(): { readonly sinceMs: number; readonly attempts: number } | null {
    return this.#streak;
  }

  /** Kept after recovery. */
  get lastError(): Failure | null {
    return this.#lastError;
  }

  failed(error: unknown): void {
    const atMs = this.#nowMs();
    this.#lastError = {
      atMs,
      code: error instanceof BakeliteError ? error.code : "internal",
      message: describeError(error),
    };
    this.#streak ??= { sinceMs: atMs, attempts: 0 };
    this.#streak.attempts++;
    this.#onChange();
  }

  recovered(): void {
    if (this.#streak === null) return;
    this.#streak = null;
    this.#onChange();
  }
}
