import type { NoncurrentVersions, UnlistedStorage } from "../backend.ts";
import type { GcsClient } from "./client.ts";
import { versionsPageSchema } from "./object-resource.ts";

const LISTING = { doing: "list the noncurrent versions", permission: "storage.objects.list" } as const;

/**
 * Unfinished uploads are neither listed nor paid for: Google drops them after a week. Noncurrent versions, and what soft delete keeps,
 * are both.
 */
export function unlistedStorage(client: GcsClient, keyPrefix: string): UnlistedStorage {
  return {
    uploads: async () => nothing(),
    abortUpload: async () => "aborted",
    async noncurrentVersions(prefix, { signal } = {}): Promise<NoncurrentVersions | null> {
      const found = { count: 0, sizeBytes: 0, deleteMarkerCount: 0 };
      for (const kind of ["versions", "softDeleted"] as const)
        for (let pageToken: string | undefined; ; ) {
          const query = {
            prefix: keyPrefix + prefix,
            maxResults: "1000",
            fields: "items(size,timeDeleted),nextPageToken",
            [kind]: "true",
            ...(pageToken === undefined ? {} : { pageToken }),
          };
          // A bucket without soft delete refuses the question.
          const request = { ...LISTING, method: "GET", at: "objects", query, signal, accept: [400] } as const;
          const { value } = await client.sendForJson(request, versionsPageSchema);
          for (const { size, timeDeleted } of value?.items ?? []) {
            if (kind === "versions" && timeDeleted === undefined) continue;
            found.count++;
            found.sizeBytes += size;
          }
          pageToken = value?.nextPageToken;
          if (pageToken === undefined) break;
        }
      return found;
    },
  };
}

async function* nothing(): AsyncGenerator<never, void> {}
