import { MemoryBackend } from "../../src/storage/memory.ts";
import { describeBackend } from "./conformance.ts";

describeBackend("memory", async () => ({ backend: new MemoryBackend(), async [Symbol.asyncDispose]() {} }), {
  skips: { "streams a body of 64 MiB in and out without holding it": "holding it is what memory does" },
});
