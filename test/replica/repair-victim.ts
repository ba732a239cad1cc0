/**
 * A process that repairs the destinations in two directories and kills itself at its n-th call of them: before it, or, of a put,
 * when some bytes were given. Exits 0 when there was no n-th one, and prints how many calls there were.
 * Arguments: the two directories, n.
 */
import type { Backend } from "../../src/storage/backend.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { repair } from "./repair-scene.ts";

const [first = "", second = "", nth = ""] = process.argv.slice(2);
let calls = 0;

function call(): void {
  if (++calls === Number(nth)) process.kill(process.pid, "SIGKILL");
}

function fragile(path: string): Backend {
  const backend = new FileBackend({ path });
  return {
    location: backend.location,
    capabilities: backend.capabilities,
    get(...args) {
      call();
      return backend.get(...args);
    },
    stat(...args) {
      call();
      return backend.stat(...args);
    },
    list(...args) {
      call();
      return backend.list(...args);
    },
    put(key, body, options) {
      call();
      const cut = {
        ...body,
        async *open() {
          for await (const piece of body.open()) {
            yield piece.subarray(0, 100);
            call();
            yield piece.subarray(100);
          }
        },
      };
      return backend.put(key, cut, options);
    },
    delete() {
      throw new Error("repair deletes nothing");
    },
  };
}

const report = await repair([fragile(first), fragile(second)]);
if (report.troubles.length > 0) throw new Error(JSON.stringify(report.troubles));
process.stdout.write(`${calls}`);
