import { describe, expect, test } from "bun:test";
import { cp } from "node:fs/promises";
import { join } from "node:path";
import { FileBackend } from "../../src/storage/file.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import {
  CHANGES,
  type Change,
  expectWhole,
  optionsFor,
  reencrypt,
  restoreAs,
  storeHistory,
} from "./reencrypt-scene.ts";
import type { Moment } from "./reencrypt-victim.ts";

const VICTIM = join(import.meta.dir, "reencrypt-victim.ts");
/** 8 objects, CURRENT and the manifest are put, 8 are deleted. */
const WRITES = 18;

async function runVictim(path: string, change: Change, nth: number, moment: Moment): Promise<"killed" | "finished"> {
  const child = Bun.spawn([process.execPath, VICTIM, path, change, String(nth), moment], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  const [errors, status] = await Promise.all([child.stderr.text(), child.exited]);
  if (child.signalCode === "SIGKILL") return "killed";
  expect([status, errors]).toEqual([0, ""]);
  return "finished";
}

describe.each(["encrypt", "rotate", "decrypt"] as const)("%s", (name) => {
  const change = CHANGES[name];

  test.each(["midway", "after"] as const)(
    "killed %s any of its writes: nothing is lost, no reader sees an older state, and the next run finishes",
    async (moment) => {
      await using directory = await temporaryDirectory("reencrypt");
      const original = directory.file("original");
      const builder = await storeHistory([new FileBackend({ path: original })], change.from);
      const newest = builder.fileOf(6);
      const strike = async (nth: number) => {
        const path = directory.file(`${nth}`);
        await cp(original, path, { recursive: true });
        const backends = [new FileBackend({ path })];
        expect(await runVictim(path, name, nth, moment)).toBe(nth > WRITES ? "finished" : "killed");
        const [old, young] = [await restoreAs(backends, change.from), await restoreAs(backends, change.to)];
        for (const file of [old, young]) if (file !== null) expect(Buffer.compare(file, newest)).toBe(0);
        expect(old ?? young).not.toBeNull();
        const report = await reencrypt(optionsFor(backends, change));
        expect(report.problems.listed).toEqual([]);
        await expectWhole(builder, backends, change.to);
        expect(await restoreAs(backends, change.from)).toBeNull();
      };
      // Two at a time: each is a process that starts, works for a moment and dies.
      const numbers = Array.from({ length: WRITES + 1 }, (_, i) => i + 1).values();
      const work = async () => {
        for (const nth of numbers) await strike(nth);
      };
      await Promise.all([work(), work()]);
    },
  );
});
