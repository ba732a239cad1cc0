import type { Backend, ByteSource, PutOptions } from "../../src/storage/backend.ts";
import { type RetryPolicy, withRetry } from "../../src/storage/retry.ts";
import { collect } from "./conformance.ts";

/**
 * A backend with retries whose put with `ifAbsent` says "stored" where an earlier try of its own had stored it and only the
 * answer was lost, as whoever puts change-sets finds out: by comparing what is there with the bytes at hand. What broken
 * tries left behind is not shown: that is for a sweep.
 */
export function withProvenPuts(backend: Backend, policy: RetryPolicy): Backend {
  const retrying = withRetry(backend, policy);
  return {
    location: retrying.location,
    get capabilities() {
      return retrying.capabilities;
    },
    async put(key: string, body: ByteSource, options: PutOptions = {}) {
      const outcome = await retrying.put(key, body, options);
      if (outcome === "stored" || !body.replayable) return outcome;
      const [stored, own] = [await retrying.get(key), Buffer.concat(await collect(body.open()))];
      return stored !== null && Buffer.concat(await collect(stored)).equals(own) ? "stored" : "exists";
    },
    get: (key, options) => retrying.get(key, options),
    stat: (key, options) => retrying.stat(key, options),
    list: (prefix, options) => retrying.list(prefix, options),
    delete: (keys, options) => retrying.delete(keys, options),
  };
}
