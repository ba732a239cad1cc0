/** A flag that one task waits for and any other may raise; raised while nobody waits, it ends the next wait at once. */
export class Wakeup {
  #raised = false;
  #resume: (() => void) | null = null;

  wake(): void {
    this.#raised = true;
    this.#resume?.();
  }

  /**
   * Resolves when woken, after `maxMs` milliseconds, or when the signal is aborted: true when somebody has woken it. Never
   * rejects.
   */
  async wait(maxMs: number, signal?: AbortSignal): Promise<boolean> {
    if (!this.#raised && signal?.aborted !== true && maxMs > 0) {
      await new Promise<void>((resolve) => {
        // A timer of more than 2^31-1 ms would fire at once.
        const timer = setTimeout(() => this.#resume?.(), Math.min(maxMs, 2 ** 31 - 1));
        this.#resume = () => {
          clearTimeout(timer);
          signal?.removeEventListener("abort", onAbort);
          this.#resume = null;
          resolve();
        };
        const onAbort = () => this.#resume?.();
        signal?.addEventListener("abort", onAbort, { once: true });
      });
    }
    const woken = this.#raised;
    this.#raised = false;
    return woken;
  }

  /** Waits `ms` milliseconds whoever wakes meanwhile; that then ends the next `wait` at once. */
  async rest(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted === true) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      signal?.addEventListener("abort", done, { once: true });
    });
  }
}
