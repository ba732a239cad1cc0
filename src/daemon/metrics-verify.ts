import { stat } from "node:fs/promises";
import type { Found } from "../state/observe.ts";
import { lookAtVerifyMarker, verifyMarkerPaths } from "../state/observe-files.ts";
import type { VerifyMarker } from "../state/verify-marker.ts";
import type { Clock } from "../util/clock.ts";
import { systemErrorCode } from "../util/errors.ts";
import { Semaphore } from "../util/semaphore.ts";

export interface MarkerOwner {
  readonly name: string;
  /** Real path of the database file. */
  readonly path: string;
}

/** Files are looked at again after this long at the earliest. */
const LOOK_INTERVAL_MS = 5_000;
const CONCURRENCY = 16;

interface Known {
  /** Of the files that may be the marker: another one means that there is something to read. */
  readonly fingerprint: string;
  readonly marker: Found<VerifyMarker>;
}

/**
 * The verify markers, which `bakelite verify` writes from another process, as they were a few seconds ago: one `stat` for
 * each now and then, and a read when that has changed.
 */
export class VerifyMarkers {
  readonly #clock: Clock;
  readonly #stateDirectory: string | undefined;
  #known: ReadonlyMap<string, Known> = new Map();
  #lookedMs = Number.NEGATIVE_INFINITY;
  #looking: Promise<void> | null = null;

  /** `stateDirectory` is `$BAKELITE_STATE_DIR`, where there is one. */
  constructor({ clock, stateDirectory }: { readonly clock: Clock; readonly stateDirectory: string | undefined }) {
    this.#clock = clock;
    this.#stateDirectory = stateDirectory;
  }

  /** As of the last look; missing before the first. Reads nothing. */
  of(name: string): Found<VerifyMarker> {
    return this.#known.get(name)?.marker ?? { outcome: "missing", reason: "verify has not run" };
  }

  /** Looks again if it is time, one look at a time. A disk that hangs makes this wait, so give it a bounded patience. */
  async look(owners: () => readonly MarkerOwner[]): Promise<void> {
    if (this.#looking === null && this.#clock.monotonicMs() - this.#lookedMs < LOOK_INTERVAL_MS) return;
    this.#looking ??= this.#lookAtAll(owners()).finally(() => {
      this.#lookedMs = this.#clock.monotonicMs();
      this.#looking = null;
    });
    await this.#looking;
  }

  async #lookAtAll(owners: readonly MarkerOwner[]): Promise<void> {
    const slots = new Semaphore(CONCURRENCY);
    const looks = owners.map(async (owner) => {
      using _slot = await slots.acquire({});
      return [owner.name, await this.#lookAt(owner)] as const;
    });
    this.#known = new Map(await Promise.all(looks));
  }

  async #lookAt({ name, path }: MarkerOwner): Promise<Known> {
    const place = { name, path, fallbackDirectory: this.#stateDirectory };
    const fingerprint = (await Promise.all(verifyMarkerPaths(place).map(fingerprintOf))).join(" ");
    const known = this.#known.get(name);
    // The marker is renamed into place, so every writing of it has an inode or a time of its own.
    if (known?.fingerprint === fingerprint) return known;
    return { fingerprint, marker: await lookAtVerifyMarker(place) };
  }
}

async function fingerprintOf(path: string): Promise<string> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
    return [path, dev, ino, size, mtimeNs, ctimeNs].join(":");
  } catch (error) {
    return `${path}:${systemErrorCode(error) ?? "unknown"}`;
  }
}
