/**
 * A process that reencrypts the replica in a directory and kills itself at its n-th write: before it, midway in it (some bytes
 * were given to the destination, half of the keys are deleted) or after it. Exits 0 when there was no n-th one.
 * Arguments: directory, what to do, n, moment.
 */
import type { Backend } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { CHANGES, type Change, optionsFor, reencrypt } from "./reencrypt-scene.ts";

export type Moment = "before" | "midway" | "after";

const [path = "", change = "", nth = "", moment = ""] = process.argv.slice(2);
const backend = new FileBackend({ path });
let writes = 0;

async function writing<T>(write: (atMidway: () => void) => Promise<T>): Promise<T> {
  const own = ++writes;
  const dieAt = (reached: Moment) => {
    if (own === Number(nth) && moment === reached) process.kill(process.pid, "SIGKILL");
  };
  dieAt("before");
  const result = await write(() => dieAt("midway"));
  dieAt("after");
  return result;
}

const fragile: Backend = {
  location: backend.location,
  capabilities: backend.capabilities,
  get: (...args) => backend.get(...args),
  stat: (...args) => backend.stat(...args),
  list: (...args) => backend.list(...args),
  put: (key, body, options) =>
    writing((atMidway) =>
      backend.put(
        key,
        {
          ...body,
          async *open() {
            for await (const piece of body.open()) {
              yield piece.subarray(0, 100);
              atMidway();
              yield piece.subarray(100);
            }
          },
        },
        options,
      ),
    ),
  async delete(keys, options) {
    for (const key of keys)
      await writing(async (atMidway) => {
        await backend.delete([key], options);
        atMidway();
      });
  },
};

// The names of the changes are checked where they are given.
const report = await reencrypt(optionsFor([fragile], CHANGES[change as Change]));
if (report.problems.count > 0) throw new Error(JSON.stringify(report.problems.listed));
