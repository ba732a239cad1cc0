/** Tries in a thread of its own to take the lock of the database named in the message, and says how that went. */
import { acquireInstanceLock, findLockHolder } from "../../src/state/instance-lock.ts";

declare const self: Worker;

self.onmessage = async ({ data }: MessageEvent<string>) => {
  const found = await findLockHolder(data);
  const taken = await acquireInstanceLock(data).then(
    () => "taken",
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  );
  self.postMessage({ found, taken });
};
