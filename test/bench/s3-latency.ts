import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { copyObjects } from "../backends/copy-objects.ts";
import { FaultProxy } from "../faults/proxy.ts";
import { bakeliteCommand, configPathIn, daemonConfig } from "../oracle/daemon-process.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { MemoryBackend } from "../replica/memory-backend.ts";
import { missingForRgw, startRgw } from "../servers/rgw.ts";
import { newBucketName, S3Requests } from "../servers/s3-account.ts";
import { openS3, s3Table } from "../servers/s3-backends.ts";
import { seededRandom } from "../support/random.ts";
import { count, mebibytes, seconds } from "./figures.ts";
import type { BenchReport } from "./report.ts";
import { type BenchContext, runToEnd } from "./scene.ts";

const LATENCIES_MS = [0, 50];
const BUDGET_SECONDS = 30;
const COPY_WIDTH = 24;

/** The restore of very many change-sets from a bucket that is far away. Needs the programs of Ceph RGW. */
export async function benchS3Latency({ directory, quick, seed, say }: BenchContext): Promise<BenchReport> {
  const missing = missingForRgw();
  if (missing.length > 0) {
    return {
      name: "s3-latency",
      tables: [],
      budgets: [],
      notes: [`Not measured: ${missing.join(", ")} not installed.`],
    };
  }
  const size = quick ? 500 : 5000;
  await using rgw = await startRgw();
  await using proxy = await FaultProxy.start({ targetPort: rgw.port });
  const place = { account: rgw.account, bucket: newBucketName(), prefix: "far/away" };
  await new S3Requests(rgw.account).createBucket(place.bucket);
  say(`making ${count(size)} change-sets`);
  const local = new MemoryBackend();
  await storeChangeSets(local, size, seed);
  say("copying them into the bucket");
  await copyObjects(local, openS3(place), COPY_WIDTH);

  const configPath = configPathIn(directory);
  const table = s3Table({ ...place, account: { ...rgw.account, endpoint: proxy.url } });
  const path = join(directory, "app.db");
  const databases = [{ name: "app", path, replicas: [], destinations: [table] }];
  await writeFile(configPath, daemonConfig({ configPath, databases }));
  const rows: string[][] = [];
  let slowest = 0;
  for (const latencyMs of LATENCIES_MS) {
    say(`restore at ${latencyMs} ms`);
    proxy.latencyMs = latencyMs;
    const before = proxy.requests.length;
    const output = join(directory, "restored.db");
    const args = [
      "restore",
      "--config",
      configPath,
      "--db",
      "app",
      "--output",
      output,
      "--json",
      "--integrity",
      "none",
    ];
    const restored = await runToEnd(bakeliteCommand("executable", args));
    await rm(output);
    const told = JSON.parse(restored.stdout) as { readonly change_sets: number };
    if (told.change_sets !== size) throw new Error(`the restore used ${told.change_sets} change-sets, not ${size}`);
    slowest = Math.max(slowest, restored.seconds);
    const requests = Object.entries(proxy.counts(before)).map(([operation, times]) => `${count(times)} ${operation}`);
    rows.push([
      `${latencyMs} ms a request`,
      seconds(restored.seconds),
      seconds(restored.cpuSeconds),
      mebibytes(restored.peakBytes),
      requests.join(", "),
    ]);
  }
  return {
    name: "s3-latency",
    tables: [
      {
        title: `Restore of one full backup and ${count(size)} change-sets, each with a page that no other has, from Ceph RGW`,
        columns: ["", "time", "CPU", "peak memory", "requests"],
        rows,
      },
    ],
    budgets: [
      {
        what: `restore of ${count(size)} change-sets at ${LATENCIES_MS.at(-1)} ms a request`,
        limit: seconds(BUDGET_SECONDS),
        measured: seconds(slowest),
        met: slowest < BUDGET_SECONDS,
      },
    ],
    notes: [
      "The latency is that of a proxy in front of the server, for each request, whatever connection it comes by.",
    ],
  };
}

/** A full backup of state 1 and a change-set for each of the `size` states after it, of a page that no other writes: a restore needs all. */
async function storeChangeSets(backend: MemoryBackend, size: number, seed: number): Promise<void> {
  const random = seededRandom(seed);
  const builder = new ReplicaBuilder({ backends: [backend], random });
  builder.beginChain(Array.from({ length: size }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let page = 1; page <= size; page++) {
    builder.passTime(1000);
    const { index } = builder.commit(new Map([[page, builder.randomImage()]]));
    await builder.storeChangeSet(index);
    // What the model remembers of states that nobody asks for again.
    builder.states.delete(index - 1);
    builder.stored.clear();
  }
}
