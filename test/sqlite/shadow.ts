import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { Checkpointer, type CheckpointReport } from "../../src/sqlite/checkpoint.ts";
import { type CaptureResult, type Continuity, WalFollower } from "../../src/sqlite/follow.ts";
import type { WalPosition } from "../../src/sqlite/wal.ts";
import { PageSet } from "../../src/util/page-set.ts";

export interface ShadowOptions {
  readonly databasePath: string;
  readonly shadowPath: string;
  readonly limitBytes?: number;
  readonly frameMapBytes?: number;
  /** What the shadow file holds already, from a shadow before this one. Without it, the whole database is copied. */
  readonly cursor?: Cursor;
}

export interface Cursor {
  readonly position: WalPosition | null;
  readonly sizePages: number;
}

/**
 * A file that is kept equal to a live database by a `WalFollower` alone: the pages that it captures, at the images that it
 * resolves. After each `sync` the shadow is one committed state, so it can be graded at any time.
 */
export class Shadow implements Disposable {
  readonly path: string;
  readonly follower: WalFollower;
  readonly checkpointer: Checkpointer;
  readonly pending = new PageSet();
  readonly reports: CheckpointReport[] = [];
  readonly continuity: Continuity;
  commits = 0;
  #file: number;
  #open = true;

  /** Unless the continuity with the cursor is proven, every page is pending, as a comparison would find it. */
  constructor(options: ShadowOptions) {
    this.path = options.shadowPath;
    this.follower = WalFollower.open({
      databasePath: options.databasePath,
      ...(options.frameMapBytes === undefined ? {} : { frameMapBytes: options.frameMapBytes }),
      sink: {
        resized: (before, after) => {
          if (after < before) this.pending.deleteAbove(after);
          else this.pending.addRange(before + 1, after + 1);
        },
        page: (page) => this.pending.add(page),
        committed: () => {
          this.commits++;
        },
      },
    });
    const limitBytes = options.limitBytes ?? 1024 * 1024;
    this.checkpointer = new Checkpointer(this.follower, { limitBytes, nowMs: () => performance.now() });
    this.#file = openSync(options.shadowPath, options.cursor === undefined ? "w+" : "r+");
    this.continuity = this.follower.attach(options.cursor ?? null);
    if (this.continuity.kind === "unproven") this.pending.addRange(1, this.follower.sizePages + 1);
  }

  get cursor(): Cursor {
    return { position: this.follower.position, sizePages: this.follower.sizePages };
  }

  /** Captures all that is committed and brings the shadow there. */
  sync(): CaptureResult {
    const result = this.capture();
    if (result.kind === "captured") this.write();
    return result;
  }

  capture(): CaptureResult {
    for (;;) {
      const result = this.follower.capture();
      if (result.kind !== "captured" || result.complete) return result;
    }
  }

  write(): void {
    const size = this.follower.pageSizeBytes;
    const pages = Uint32Array.from(this.pending);
    const images = new Uint8Array(pages.length * size);
    this.follower.resolve(pages, images);
    for (const [i, page] of pages.entries()) {
      writeSync(this.#file, images, i * size, size, (page - 1) * size);
    }
    ftruncateSync(this.#file, this.follower.sizePages * size);
    this.pending.clear();
  }

  /** As the replicator does: when the WAL has grown past its limit. */
  checkpointIfDue(): CheckpointReport | null {
    return this.checkpointer.isDue ? this.checkpoint() : null;
  }

  checkpoint(): CheckpointReport {
    const report = this.checkpointer.run();
    this.reports.push(report);
    if (report.fault !== null) throw new Error(`checkpoint met a fault: ${report.fault.fault}: ${report.fault.detail}`);
    return report;
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.follower.close();
    closeSync(this.#file);
  }
}
