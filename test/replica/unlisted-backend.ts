import type { Backend, NoncurrentVersions, UnfinishedUpload, UnlistedStorage } from "../../src/storage/backend.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { MemoryBackend } from "./memory-backend.ts";

/** A destination in memory with uploads that a listing does not show. It lists all of them, whatever prefix is asked for. */
export class UnlistedBackend extends MemoryBackend implements Backend, UnlistedStorage {
  readonly unlisted = this;
  /** null: it cannot tell. */
  unfinished: UnfinishedUpload[] | null = [];
  versions: NoncurrentVersions | null = { count: 0, sizeBytes: 0, deleteMarkerCount: 0 };
  /** Upload ids that this process is making. */
  readonly live = new Set<string>();
  /** Upload ids that may not be aborted. */
  readonly denied = new Set<string>();

  async uploads(): Promise<AsyncIterable<UnfinishedUpload> | null> {
    const { unfinished } = this;
    if (unfinished === null) return null;
    return (async function* () {
      yield* [...unfinished];
    })();
  }

  async abortUpload({ uploadId }: UnfinishedUpload): Promise<"aborted" | "live"> {
    if (this.live.has(uploadId)) return "live";
    if (this.denied.has(uploadId))
      throw new BakeliteError("storage-denied", "the destination refuses to abort an upload");
    this.unfinished = (this.unfinished ?? []).filter((upload) => upload.uploadId !== uploadId);
    return "aborted";
  }

  async noncurrentVersions(): Promise<NoncurrentVersions | null> {
    return this.versions;
  }
}

/** An upload whose newest part is `ageMs` old. */
export function upload(key: string, ageMs: number, sizeBytes = 1000): UnfinishedUpload {
  const newestPartMs = 1_000_000_000 - ageMs;
  return { key, uploadId: `${key} ${ageMs}`, startedMs: newestPartMs - 5, newestPartMs, ageMs, sizeBytes };
}
