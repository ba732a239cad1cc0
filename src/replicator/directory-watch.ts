import { type FSWatcher, watch } from "node:fs";
import { basename, dirname } from "node:path";
import type { Logger } from "../util/logger.ts";
import type { Wakeup } from "../util/wakeup.ts";

interface Watched {
  readonly watcher: FSWatcher;
  /** By file name: of the database, and of its `-wal`. */
  readonly listeners: Map<string, Set<Wakeup>>;
}

/**
 * Wakes those who follow a database when something happens to it or its `-wal`. The directory is watched, for the `-wal` comes
 * and goes, and once, however many databases are in it. Events coalesce and may be lost; `safety_poll` is the backstop.
 */
export class DirectoryWatch implements Disposable {
  readonly #directories = new Map<string, Watched>();
  readonly #log: Logger;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Wakes `wakeup` until the result is disposed. The directory must exist; where it cannot be watched, that is logged. */
  add(databasePath: string, wakeup: Wakeup): Disposable {
    const directory = dirname(databasePath);
    const names = [basename(databasePath), `${basename(databasePath)}-wal`];
    const watched = this.#directories.get(directory) ?? this.#watch(directory);
    if (watched === null) return { [Symbol.dispose]() {} };
    for (const name of names) {
      const set = watched.listeners.get(name) ?? new Set();
      watched.listeners.set(name, set.add(wakeup));
    }
    return {
      [Symbol.dispose]: () => {
        for (const name of names) {
          watched.listeners.get(name)?.delete(wakeup);
          if (watched.listeners.get(name)?.size === 0) watched.listeners.delete(name);
        }
        if (watched.listeners.size === 0) this.#unwatch(directory, watched);
      },
    };
  }

  [Symbol.dispose](): void {
    for (const [directory, watched] of [...this.#directories]) this.#unwatch(directory, watched);
  }

  #watch(directory: string): Watched | null {
    try {
      const listeners = new Map<string, Set<Wakeup>>();
      const watcher = watch(directory, { persistent: false }, (_event, name) => {
        // Without a name anything may have happened.
        const sets = name === null ? [...listeners.values()] : [listeners.get(name) ?? new Set<Wakeup>()];
        for (const set of sets) for (const wakeup of set) wakeup.wake();
      });
      const watched = { watcher, listeners };
      watcher.on("error", () => this.#unwatch(directory, watched));
      this.#directories.set(directory, watched);
      return watched;
    } catch (error) {
      this.#log.warn("cannot watch a directory for changes; looking every safety_poll instead", {
        directory,
        error: error instanceof Error ? error.message : String(error),
        hint: "raise fs.inotify.max_user_watches or max_user_instances",
      });
      return null;
    }
  }

  #unwatch(directory: string, watched: Watched): void {
    watched.watcher.close();
    if (this.#directories.get(directory) === watched) this.#directories.delete(directory);
  }
}
