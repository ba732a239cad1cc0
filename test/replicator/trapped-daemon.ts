/**
 * A daemon in a process of its own that stops for the test, or kills itself, at a chosen step:
 * `bun trapped-daemon.ts '<TrappedDaemonSpec as JSON>'`. It says `{"at": …}` on standard output when it stops at a trap, and goes on
 * when a line comes in. Started by `startTrapped` in trapped.ts.
 */

import { emptyKeyRing } from "../../src/format/envelope.ts";
import { Destinations } from "../../src/replicator/destinations.ts";
import { DirectoryWatch } from "../../src/replicator/directory-watch.ts";
import { LocalState } from "../../src/replicator/local-state.ts";
import { Replicator } from "../../src/replicator/replicator.ts";
import { Shipper } from "../../src/replicator/shipper.ts";
import { LedgerFile } from "../../src/state/ledger-file.ts";
import type { ByteSource } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { systemClock } from "../../src/util/clock.ts";
import { Semaphore } from "../../src/util/semaphore.ts";
import { DATABASE, FULL, MemoryLog } from "./replication.ts";
import type { Step, TrappedDaemonSpec } from "./trapped.ts";

const spec = JSON.parse(process.argv[2] ?? "{}") as TrappedDaemonSpec;
const counts = new Map<Step, number>();
const lines = console[Symbol.asyncIterator]();

/** Whether a trap stands here this time; one that kills does so before this returns. */
function meets(step: Step): boolean {
  const count = (counts.get(step) ?? 0) + 1;
  counts.set(step, count);
  const trap = spec.traps.find((candidate) => candidate.step === step && candidate.nth === count);
  if (trap?.action === "kill") process.kill(process.pid, "SIGKILL");
  return trap !== undefined;
}

async function reach(step: Step): Promise<void> {
  if (!meets(step)) return;
  process.stdout.write(`${JSON.stringify({ at: step })}\n`);
  await lines.next();
}

const { attempt, write } = LocalState.prototype;
let isAttempting = false;
LocalState.prototype.attempt = async function (this: LocalState, attempted) {
  await reach("before the attempt");
  isAttempting = true;
  await attempt.call(this, attempted).finally(() => (isAttempting = false));
  await reach("after the attempt");
};
LocalState.prototype.write = async function (this: LocalState) {
  if (!isAttempting) await reach("before the cursor");
  await write.call(this);
  if (!isAttempting) await reach("after the cursor");
};

const { put } = FileBackend.prototype;
FileBackend.prototype.put = async function (this: FileBackend, key, body, options) {
  const kind = FULL.test(key) ? "full" : key.endsWith("CURRENT") ? "CURRENT" : "change-set";
  await reach(`before the put of a ${kind}`);
  const outcome = await put.call(this, key, midway(body, `midway in the put of a ${kind}`), options);
  await reach(`after the put of a ${kind}`);
  return outcome;
};

function midway(body: ByteSource, step: Step): ByteSource {
  return {
    ...body,
    async *open() {
      let pieces = 0;
      for await (const piece of body.open()) {
        yield piece;
        // Behind the header and one chunk, with the encoder at work on what comes next.
        if (++pieces === 2) await reach(step);
      }
    },
  };
}

const { write: writeEntries, commitSlot } = LedgerFile.prototype;
LedgerFile.prototype.write = function (this: LedgerFile, pageNumbers, hashes) {
  if (!this.path.endsWith(".new")) meets("before the ledger entries");
  writeEntries.call(this, pageNumbers, hashes);
  if (!this.path.endsWith(".new")) meets("after the ledger entries");
};
LedgerFile.prototype.commitSlot = async function (this: LedgerFile, slot) {
  await reach("before the ledger slot");
  await commitSlot.call(this, slot);
  await reach("after the ledger slot");
};

const { useLedger } = Shipper.prototype;
Shipper.prototype.useLedger = function (this: Shipper, ledger, digest) {
  meets("after the ledger of a new chain is in place");
  useLedger.call(this, ledger, digest);
};

const { tookFullBackup } = LocalState.prototype;
LocalState.prototype.tookFullBackup = function (this: LocalState, record) {
  if (record !== null) meets("before a full backup is noted");
  tookFullBackup.call(this, record);
};

const log = new MemoryLog();
const stop = new AbortController();
process.on("SIGTERM", () => stop.abort());
const watch = new DirectoryWatch(log);
const randomHex = (bytes: number) => Buffer.from(crypto.getRandomValues(new Uint8Array(bytes))).toString("hex");
const replicator = new Replicator({
  database: DATABASE,
  path: spec.databasePath,
  destinations: new Destinations(DATABASE, [{ backend: new FileBackend({ path: spec.backendPath }), type: "file" }]),
  settings: spec.settings,
  convertToWal: false,
  keys: emptyKeyRing,
  sealKey: null,
  acceptPlaintext: true,
  takeOver: false,
  writer: "bakelite/test",
  run: randomHex(16),
  randomHex,
  slots: new Semaphore(1),
  watch,
  clock: systemClock,
  log,
});
await replicator.prepare();
await replicator.run(stop.signal);
await replicator.close();
process.exit(0);
