import { expect, test } from "bun:test";
import { cpSync, readdirSync, rmSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { FileBackend } from "../../src/storage/file.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { expectWhole, repair, storeScene } from "./repair-scene.ts";

const VICTIM = join(import.meta.dir, "repair-victim.ts");

/** How many calls it made when it came to its end; null: killed. */
async function runVictim(first: string, second: string, nth: number): Promise<number | null> {
  const child = Bun.spawn([process.execPath, VICTIM, first, second, String(nth)], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [calls, errors, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (child.signalCode === "SIGKILL") return null;
  expect([status, errors]).toEqual([0, ""]);
  return Number(calls);
}

test("killed at any call of a destination, it leaves nothing half written, and the next run finishes", async () => {
  await using directory = await temporaryDirectory("repair-kill");
  const [first, second] = [directory.file("first"), directory.file("second")];
  const builder = await storeScene([new FileBackend({ path: first }), new FileBackend({ path: second })]);
  // One lacks the newer half, the other has its oldest change-sets cut short.
  const changeSets = readdirSync(join(second, "app", "L0")).sort();
  for (const name of changeSets.slice(6)) rmSync(join(second, "app", "L0", name));
  rmSync(join(second, "app", "full"), { recursive: true });
  for (const name of changeSets.slice(0, 3)) truncateSync(join(first, "app", "L0", name), 300);

  const strike = async (nth: number): Promise<number | null> => {
    const copies = [directory.file(`${nth}-first`), directory.file(`${nth}-second`)] as const;
    cpSync(first, copies[0], { recursive: true, preserveTimestamps: true });
    cpSync(second, copies[1], { recursive: true, preserveTimestamps: true });
    const calls = await runVictim(...copies, nth);
    const backends = copies.map((path) => new FileBackend({ path }));
    const report = await repair(backends);
    expect(report.troubles).toEqual([]);
    await expectWhole(builder, backends);
    for (const copy of copies) rmSync(copy, { recursive: true });
    return calls;
  };

  const calls = await strike(1_000_000);
  if (calls === null) throw new Error("it was killed at no call");
  expect(calls).toBeGreaterThan(100);
  const step = 5;
  const numbers = Array.from({ length: Math.ceil(calls / step) }, (_, i) => 1 + i * step).values();
  const work = async () => {
    for (const nth of numbers) expect(await strike(nth)).toBeNull();
  };
  await Promise.all([work(), work()]);
}, 170_000);
