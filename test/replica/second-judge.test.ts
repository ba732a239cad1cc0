import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { emptyKeyRing } from "../../src/format/envelope.ts";
import { planRestore } from "../../src/replica/plan.ts";
import { Replica } from "../../src/replica/replica.ts";
import { FileBackend } from "../../src/storage/file.ts";
import { pythonPath } from "../support/python.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { ReplicaBuilder } from "./builder.ts";
import { layInMemory } from "./lay.ts";

const READER = new URL("../judge/bakelite_reader.py", import.meta.url).pathname;

async function judge(...argv: readonly string[]): Promise<{ readonly code: number; readonly document: unknown }> {
  const child = Bun.spawn([pythonPath(), READER, ...argv], { stdout: "pipe", stderr: "ignore" });
  const text = await new Response(child.stdout).text();
  return { code: await child.exited, document: JSON.parse(text) };
}

/** A history with all that makes a path hard to find: late objects, compactions, several full backups, two chains, a gap. */
async function makeHistory(seed: number, path: string): Promise<ReplicaBuilder> {
  const random = seededRandom(seed);
  const backend = new FileBackend({ path });
  const builder = new ReplicaBuilder({ backends: [backend], random });
  for (const length of [14, 9]) {
    const first = builder.beginChain(Array.from({ length: random.integer(0, 12) }, () => builder.randomImage())).index;
    for (let i = 1; i < length; i++) {
      builder.passTime(random.integer(-3_000, 20_000));
      builder.commitRandom(random.integer(0, 4), random.integer(0, 14));
    }
    const last = builder.newest.index;
    for (let index = first + 1; index <= last; index++)
      await builder.storeChangeSet(index, Math.min(last, index + random.pick([0, 0, 0, 1, 2])));
    await builder.storeFull(first, Math.min(last, first + random.integer(0, 2)));
    await builder.storeFull(first + 5, Math.min(last, first + 5 + random.integer(0, 3)));
    await builder.compact(1, first + 1, first + 3);
    await builder.compact(2, first + 4, first + 7);
  }
  await builder.storeCurrent(20);
  const lost = random.integer(2, 22);
  await backend.delete([`app/L0/${String(lost).padStart(16, "0")}-${String(lost).padStart(16, "0")}.p`]);
  return builder;
}

test.each([1, 2, 3, 4])(
  "the independent reader finds the same restore points, moments and bytes (history %d)",
  async (seed) => {
    await using directory = await temporaryDirectory("second-judge");
    const root = directory.file("replica");
    const builder = await makeHistory(seed, root);
    const open = () =>
      Replica.open({
        database: "app",
        backends: [new FileBackend({ path: root })],
        keys: emptyKeyRing,
        seal: "p",
        acceptPlaintext: true,
      });
    const replica = await open();
    await replica.trailers.load([...replica.catalog.fulls, ...replica.catalog.changeSets]);
    const listed = await judge("list", root, "--database", "app");
    expect(listed).toMatchObject({
      code: 0,
      document: { restore_points: replica.graph.restorePoints.map((index) => ({ index })) },
    });
    expect(listed.document).toHaveProperty("restore_points.length", replica.graph.restorePoints.length);

    const output = directory.file("judged.db");
    for (const index of replica.graph.restorePoints.filter((_, i) => i % 3 === 0)) {
      expect(
        await judge("restore", root, "--database", "app", "--index", `${index}`, "--output", output, "--force"),
      ).toMatchObject({ code: 0 });
      const { file } = await layInMemory(replica, await planRestore(replica, { kind: "index", index }));
      expect([index, Buffer.compare(readFileSync(output), file)]).toEqual([index, 0]);
      expect([index, Buffer.compare(builder.fileOf(index), file)]).toEqual([index, 0]);
    }
    for (const [i, { stampMs }] of [...builder.states.values()].entries()) {
      if (i % 5 !== seed % 5) continue;
      const plan = await planRestore(await open(), { kind: "time", timeMs: stampMs + 1 }).catch(() => null);
      const judged = await judge(
        ...["restore", root, "--database", "app", "--at-ms", `${stampMs + 1}`, "--output", output, "--force"],
      );
      // Where the epoch of that moment has no restore point so old, the judge gives up and we look in the epochs before it.
      if (judged.code === 0) expect(judged.document).toMatchObject({ index: plan?.index });
      else expect(plan?.stampMs ?? 0).toBeLessThanOrEqual(stampMs + 1);
    }
  },
  60_000,
);
