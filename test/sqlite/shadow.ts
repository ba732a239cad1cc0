import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { Checkpointer, type CheckpointReport } from "../../src/sqlite/checkpoint.ts";
import { type CaptureResult, type Continuity, type FollowFault, WalFollower } from "../../src/sqlite/follow.ts";
import type { WalPosition } from "../../src/sqlite/wal.ts";
import { PageSet } from "../../src/util/page-set.ts";

export interface ShadowOptions {
  readonly databasePath: string;
  readonly shadowPath: string;
  readonly limitBytes?: number;
  readonly frameMapBytes?: number;
}

/**
 * A file that is kept equal to a live database by a `WalFollower` alone: the pages that it captures, at the images that it
 * resolves. After each `sync` the shadow is one committed state, so it can be graded at any time.
 */
export class Shadow implements Disposable {
  readonly follower: WalFollower;
  readonly pending = new PageSet();
  readonly reports: CheckpointReport[] = [];
  commits = 0;
  #checkpointer: Checkpointer;
  #file: number;
  #open = true;

  private constructor(options: ShadowOptions) {
    const limitBytes = options.limitBytes ?? 1024 * 1024;
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
    this.#checkpointer = new Checkpointer(this.follower, { limitBytes, nowMs: () => performance.now() });
    this.#file = openSync(options.shadowPath, "w+");
  }

  /** A shadow of the whole database, as a comparison with an empty ledger would find it. */
  static attach(options: ShadowOptions): Shadow {
    const shadow = new Shadow(options);
    shadow.follower.attach(null);
    shadow.pending.addRange(1, shadow.follower.sizePages + 1);
    return shadow;
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
    return this.#checkpointer.isDue ? this.checkpoint() : null;
  }

  checkpoint(): CheckpointReport {
    const report = this.#checkpointer.run();
    this.reports.push(report);
    if (report.fault !== null) throw new Error(`checkpoint met a fault: ${report.fault.fault}: ${report.fault.detail}`);
    return report;
  }

  get position(): WalPosition | null {
    return this.follower.position;
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.follower.close();
    closeSync(this.#file);
  }
}

export function faultOf(result: CaptureResult): FollowFault | null {
  return result.kind === "fault" ? result.fault : null;
}

export function isProven(continuity: Continuity): boolean {
  return continuity.kind === "proven";
}
