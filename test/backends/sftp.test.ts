import { afterAll, test } from "bun:test";
import { startSshd } from "../servers/sshd.ts";
import { describeBackend } from "./conformance.ts";

const plain = await startSshd();
/** sshd changes its root only when root started it. */
const jailed = process.geteuid?.() === 0 ? await startSshd({ chroot: true }) : null;
if (jailed === null) test.skip("the suite in a chroot (only root's sshd has one)", () => {});
afterAll(async () => {
  await plain[Symbol.asyncDispose]();
  await jailed?.[Symbol.asyncDispose]();
});

for (const server of [plain, ...(jailed === null ? [] : [jailed])])
  describeBackend(`sftp on ${server.name}${server === jailed ? " in a chroot" : ""}`, async () => {
    const path = server.newPath();
    return {
      backend: server.open(path),
      // Another timeout makes it another connection, as another process would have.
      sibling: server.open(path, { timeout: "61s" }),
      async [Symbol.asyncDispose]() {},
    };
  });
