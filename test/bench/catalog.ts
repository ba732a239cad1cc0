import { mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Backend, ByteSource } from "../../src/storage/backend.ts";
import { bakeliteCommand, configPathIn, daemonConfig } from "../oracle/daemon-process.ts";
import { ReplicaBuilder } from "../replica/builder.ts";
import { MemoryBackend } from "../replica/memory-backend.ts";
import { seededRandom } from "../support/random.ts";
import { count, mebibytes, seconds } from "./figures.ts";
import type { BenchReport, Budget } from "./report.ts";
import { type BenchContext, type Finished, runToEnd } from "./scene.ts";

/** How long it takes to find out what there is, and what to restore, where there are very many objects. */

const TIME_BUDGET_SECONDS = 2;
const MEMORY_BUDGET_BYTES = 200 * 2 ** 20;
const PAGES = 4;

export async function benchCatalog({ directory, quick, seed, say }: BenchContext): Promise<BenchReport> {
  const size = quick ? 5_000 : 100_000;
  const replica = join(directory, "replica");
  say(`making ${count(size)} change-sets`);
  await storeChangeSets(replica, size, seed);
  const configPath = configPathIn(directory);
  const path = join(directory, "app.db");
  await writeFile(configPath, daemonConfig({ configPath, databases: [{ name: "app", path, replicas: [replica] }] }));

  say("list");
  const fleet = await runToEnd(bakeliteCommand("executable", ["list", "--config", configPath]));
  say("list --db");
  const listed = await runToEnd(bakeliteCommand("executable", ["list", "--config", configPath, "--db", "app"]));
  if (!listed.stdout.includes(`${size}`) && !listed.stdout.includes(count(size)))
    console.error(`catalog: the list does not name ${size}:\n${listed.stdout}`);
  say("restore");
  const output = join(directory, "restored.db");
  const args = ["restore", "--config", configPath, "--db", "app", "--output", output, "--json", "--integrity", "none"];
  const restored = await runToEnd(bakeliteCommand("executable", args));
  await rm(output);
  const told = JSON.parse(restored.stdout) as { readonly change_sets: number };
  if (told.change_sets !== size) throw new Error(`the restore used ${told.change_sets} change-sets, not ${size}`);

  return {
    name: "catalog",
    tables: [
      {
        title: `One full backup and one path of ${count(size)} change-sets in a directory, none of them compacted, no manifest`,
        columns: ["", "time", "CPU", "peak memory"],
        rows: [
          ["`list`", ...cells(fleet)],
          ["`list --db`", ...cells(listed)],
          ["`restore`", ...cells(restored)],
        ],
      },
    ],
    budgets: [
      timeBudget(`\`list\` of ${count(size)} objects`, fleet.seconds),
      timeBudget(`listing and planning a restore of ${count(size)} objects`, restored.seconds),
      memoryBudget(`resident memory of \`list\` of ${count(size)} objects`, fleet.peakBytes),
      memoryBudget(`resident memory of a restore from ${count(size)} objects`, restored.peakBytes),
    ],
    notes: [
      `The database has ${PAGES} pages, so a restore of it, without integrity_check, is listing and planning and little else.`,
      "The worst that there can be: the daemon takes a full backup every day and compacts, so a replica has far fewer objects.",
    ],
  };
}

function cells({ seconds: time, cpuSeconds, peakBytes }: Finished): readonly string[] {
  return [seconds(time), seconds(cpuSeconds), mebibytes(peakBytes)];
}

function timeBudget(what: string, value: number): Budget {
  return { what, limit: seconds(TIME_BUDGET_SECONDS), measured: seconds(value), met: value < TIME_BUDGET_SECONDS };
}

function memoryBudget(what: string, value: number): Budget {
  return { what, limit: mebibytes(MEMORY_BUDGET_BYTES), measured: mebibytes(value), met: value < MEMORY_BUDGET_BYTES };
}

/** A full backup of state 1 and a change-set of one page for each of the `size` states after it. */
async function storeChangeSets(replica: string, size: number, seed: number): Promise<void> {
  const random = seededRandom(seed);
  const builder = new ReplicaBuilder({ backends: [await openUnsynced(replica)], random });
  builder.beginChain(Array.from({ length: PAGES }, () => builder.randomImage()));
  await builder.storeFull(1);
  for (let i = 0; i < size; i++) {
    builder.passTime(1000);
    const { index } = builder.commit(new Map([[random.integer(1, PAGES), builder.randomImage()]]));
    await builder.storeChangeSet(index);
    // What the model remembers of states that nobody asks for again.
    builder.states.delete(index - 1);
    builder.stored.clear();
  }
}

/** A directory to write to only: a sync for each of so many objects would take longer than what is to be measured. */
async function openUnsynced(directory: string): Promise<Backend> {
  const made = new Set<string>();
  return new (class extends MemoryBackend {
    override async put(key: string, body: ByteSource): Promise<"stored"> {
      const path = join(directory, key);
      if (!made.has(dirname(path))) await mkdir(dirname(path), { recursive: true });
      made.add(dirname(path));
      await writeFile(path, Buffer.concat(await Array.fromAsync(body.open())));
      return "stored";
    }
  })(directory);
}
