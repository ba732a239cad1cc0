import { afterAll, test } from "bun:test";
import { breakConnections } from "../faults/break-connections.ts";
import { FaultProxy } from "../faults/proxy.ts";
import { openTable, startSshd } from "../servers/sshd.ts";
import { seededRandom } from "../support/random.ts";
import { describeBackend } from "./conformance.ts";
import { withProvenPuts } from "./proven-puts.ts";

const plain = await startSshd();
console.log(`note: ran against ${plain.name}`);
afterAll(() => plain[Symbol.asyncDispose]());

describeBackend(`sftp on ${plain.name}`, async () => {
  const path = plain.newPath();
  return {
    backend: plain.open(path),
    // Another timeout makes it another connection, as another process would have.
    sibling: plain.open(path, { timeout: "61s" }),
    async [Symbol.asyncDispose]() {},
  };
});

/** sshd changes its root only when root started it. */
const isRoot = process.geteuid?.() === 0;
if (!isRoot) test.skip("the suite in a chroot (only root's sshd has one)", () => {});
const behind = await startSshd({ chroot: isRoot });
const proxy = await FaultProxy.start({ targetPort: behind.port, protocol: "tcp" });
afterAll(async () => {
  await proxy[Symbol.asyncDispose]();
  await behind[Symbol.asyncDispose]();
});

breakConnections(proxy, seededRandom(7), 1);

const TRIED_ONCE = "such a body is tried once, and the line may fail before it";

describeBackend(
  `sftp on ${behind.name}${isRoot ? " in a chroot" : ""}, over a line that breaks`,
  async () => {
    const path = behind.newPath();
    const open = async (timeout: string) =>
      withProvenPuts(openTable(await behind.tableThrough(proxy.port, path, { timeout })), {
        ...{ retries: 50, baseMs: 5, capMs: 100, maxElapsedMs: 30_000 },
      });
    return {
      backend: await open("1s"),
      sibling: await open("2s"),
      async [Symbol.asyncDispose]() {},
    };
  },
  {
    skips: {
      "leaves nothing of a body that throws midway": TRIED_ONCE,
      "leaves nothing of a large body that throws midway, nor of one that is aborted": TRIED_ONCE,
      "stores a large body of unknown size, to be replayed or not": TRIED_ONCE,
    },
  },
);
