// A process of its own, so that its memory is that of the backend alone: `large-process.ts ENDPOINT BYTES put|get` stores
// or reads an object of so many bytes and prints the most that was resident.
import { readFileSync } from "node:fs";
import { openTestS3 } from "./open-test-s3.ts";
import { ACCOUNT } from "./stub.ts";

const [endpoint = "", bytes = "", verb = ""] = process.argv.slice(2);
const sizeBytes = Number(bytes);
const backend = openTestS3({ ...ACCOUNT, endpoint }, { bucket: "b", timeoutMs: 60_000 });
if (verb === "put")
  await backend.put("large", {
    sizeBytes: undefined,
    replayable: false,
    async *open() {
      for (let sent = 0; sent < sizeBytes; sent += 256 * 1024) yield new Uint8Array(256 * 1024);
    },
  });
else {
  let readBytes = 0;
  for await (const piece of (await backend.get("large")) ?? []) readBytes += piece.byteLength;
  if (readBytes !== sizeBytes) throw new Error(`read ${readBytes} bytes`);
}
const status = readFileSync("/proc/self/status", "utf8");
console.log(Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) * 1024);
