/**
 * A process of its own for the tests of the file backend. Arguments: what to do, the backup directory, and
 * - `race <key> <id>`: waits for a line on stdin, puts `id` under the key with ifAbsent, prints the outcome
 * - `put-forever`: puts objects of 1 MiB with ifAbsent, numbered from 0, and prints each number once it is stored
 * - `put-slowly <key>`: puts a body that never ends, and prints `writing` once its first bytes are in
 * - `large <bytes>`: puts and gets one object of that size, prints the peak of resident memory in bytes
 */
import { readFileSync } from "node:fs";
import { openBackend } from "../../src/storage/open.ts";
import { generated, text } from "./conformance.ts";

const [verb = "", path = "", argument = "", id = ""] = process.argv.slice(2);
const backend = openBackend({ type: "file", path });

switch (verb) {
  case "race": {
    console.log("ready");
    for await (const _line of console) break;
    console.log(await backend.put(argument, text(id), { ifAbsent: true }));
    break;
  }
  case "put-forever":
    for (let i = 0; ; i++) {
      await backend.put(`app/L0/${i}`, generated(i, 1_000_000, 100_000), { ifAbsent: true });
      console.log(i);
    }
  case "put-slowly":
    await backend.put(argument, {
      sizeBytes: undefined,
      replayable: false,
      async *open() {
        yield new Uint8Array(100_000);
        yield new Uint8Array(100_000);
        console.log("writing");
        await Bun.sleep(600_000);
      },
    });
    break;
  case "large": {
    await backend.put("app/large", generated(1, Number(argument), 1_048_576));
    for await (const _piece of (await backend.get("app/large")) ?? []);
    const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "latin1"))?.[1];
    console.log(Number(peak) * 1024);
    break;
  }
  default:
    throw new Error(`unknown verb ${verb}`);
}
