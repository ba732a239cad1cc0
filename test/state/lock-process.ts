/**
 * A process of its own for the tests of the instance lock. `hold <database>` takes the lock, prints `locked <pid>` or
 * `refused <code>: <message>`, and holds it until it is killed or its stdin ends. `find <database>` prints the holder's PID
 * or `nobody`.
 */
import { acquireInstanceLock, findLockHolder } from "../../src/state/instance-lock.ts";
import { BakeliteError } from "../../src/util/errors.ts";

const [verb, databasePath = ""] = process.argv.slice(2);

if (verb === "find") {
  const holder = await findLockHolder(databasePath);
  console.log(holder === null ? "nobody" : String(holder.pid));
} else {
  try {
    await using _lock = await acquireInstanceLock(databasePath);
    console.log(`locked ${process.pid}`);
    for await (const _line of console);
  } catch (error) {
    if (!(error instanceof BakeliteError)) throw error;
    console.log(`refused ${error.code}: ${error.message}`);
  }
}
