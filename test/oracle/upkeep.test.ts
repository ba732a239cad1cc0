import { expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { configPathIn, runBakelite } from "./daemon-process.ts";
import { countCommits } from "./upkeep-content.ts";

const DAEMON = fileURLToPath(new URL("upkeep-daemon.ts", import.meta.url));
const WRITER = fileURLToPath(new URL("upkeep-writer.ts", import.meta.url));
const RUN_MS = 40_000;
const RETENTION_MS = 30_000;
/** How long a commit may take until it is stored, on a loaded machine. */
const SLACK_MS = 2_000;

interface Commit {
  readonly beforeMs: number;
  readonly afterMs: number;
}

interface Line {
  readonly level: string;
  readonly message: string;
  readonly reason?: string;
  readonly objects?: number;
  readonly longestStallMs?: number;
}

/** How long it may take until it is at the mirror, too. */
const MIRROR_SLACK_MS = 5_000;

const config = (path: string, store: string, mirror: string) => `[defaults]
debounce = "10ms"
mirror_interval = "500ms"
snapshot_interval = "3s"
compaction_levels = ["2s", "10s"]
compaction_keep = ["5s", "20s"]
compaction_keep_recent = 4
retention = "${RETENTION_MS / 1000}s"

[[database]]
name = "app"
path = "${path}"

[[database.backends]]
type = "file"
path = "${store}"

[[database.backends]]
type = "file"
path = "${mirror}"
async = true
`;

/** How far before a moment of this age the restored state may lie: the last state of each window, and what was on its way. */
function granularityMs(ageMs: number): number {
  if (ageMs < 5_000 - SLACK_MS) return 0;
  return ageMs < 20_000 - SLACK_MS ? 2_000 : 10_000;
}

test("every moment that the policy promises restores, also from a mirror alone, while its change-sets are merged and deleted", async () => {
  await using directory = await temporaryDirectory("upkeep");
  const path = directory.file("app.db");
  const configPath = configPathIn(directory.path);
  writeFileSync(configPath, config(path, directory.file("store"), directory.file("mirror")));
  const commits: Commit[] = [];
  const log: Line[] = [];
  const writer = Bun.spawn([process.execPath, WRITER, path], { stdout: "pipe", stderr: "inherit", stdin: "ignore" });
  const reading = forEachLine(writer.stdout, (line) => {
    const [, beforeMs = 0, afterMs = 0] = line.split(" ").map(Number);
    commits.push({ beforeMs, afterMs });
  });
  const daemon = Bun.spawn([process.execPath, DAEMON, configPath], {
    stdout: "pipe",
    stderr: "inherit",
    stdin: "ignore",
  });
  const listening = forEachLine(daemon.stdout, (line) => log.push(JSON.parse(line)));
  try {
    const random = seededRandom(1);
    const startMs = Date.now();
    let restores = 0;
    while (Date.now() - startMs < RUN_MS) {
      const sinceStartMs = Date.now() - startMs;
      // Before the first full backup is stored nothing can be restored.
      if (sinceStartMs < 3 * SLACK_MS) {
        await Bun.sleep(100);
        continue;
      }
      const greatestMs = Math.min(RETENTION_MS - 2 * SLACK_MS, sinceStartMs - 2 * SLACK_MS);
      const fromMirror = restores % 3 === 2 && greatestMs > MIRROR_SLACK_MS;
      const ageMs = random.integer(fromMirror ? MIRROR_SLACK_MS : 0, greatestMs);
      const from = fromMirror ? ["--destination", "2"] : [];
      await expectRestored(Date.now() - ageMs, directory.file(`restored-${restores++}`), ...from);
    }
    expect(restores).toBeGreaterThan(20);
  } catch (error) {
    daemon.kill("SIGKILL");
    throw error;
  } finally {
    writer.kill("SIGTERM");
    await Promise.all([writer.exited, reading]);
  }
  const stoppingMs = performance.now();
  daemon.kill("SIGTERM");
  expect(await daemon.exited).toBe(0);
  await listening;
  const tookMs = performance.now() - stoppingMs;
  expect({ tookMs, log: tookMs < 5_000 ? [] : log.slice(-20) }).toEqual({ tookMs: expect.any(Number), log: [] });

  const latest = directory.file("latest.db");
  expect(await restore(latest)).toMatchObject({ status: 0 });
  expect(countCommits(latest)).toBe(commits.length);
  expect(await runBakelite("source", ["verify", "--config", configPath])).toMatchObject({ status: 0 });
  const deleted = (reason: string) =>
    log
      .filter((line) => line.message === "deleted what the policy gives up" && line.reason === reason)
      .reduce((sum, { objects = 0 }) => sum + objects, 0);
  expect(deleted("merged")).toBeGreaterThan(300);
  expect(deleted("retention")).toBeGreaterThan(0);
  expect(log.filter(({ level }) => level === "warn" || level === "error")).toEqual([]);
  const { longestStallMs = Number.NaN } = log.find(({ message }) => message === "ended") ?? {};
  // On an idle machine some 20 ms; what it must never be is the time of a pass.
  expect(longestStallMs).toBeLessThan(1_000);

  async function restore(output: string, ...more: readonly string[]) {
    return await runBakelite("source", ["restore", "--db", "app", "--output", output, "--config", configPath, ...more]);
  }

  async function expectRestored(timeMs: number, output: string, ...from: readonly string[]): Promise<void> {
    const { status, stderr } = await restore(output, "--timestamp", new Date(timeMs).toISOString(), ...from);
    // What it had planned with may be merged and gone when its turn comes: then it says that it went another way, or began anew.
    const said = stderr.replace(
      /^note: (?:objects of the first plan could not be read: |state \d+ was merged into later ).*\n/gm,
      "",
    );
    expect({ from, status, said }).toEqual({ from, status: 0, said: "" });
    const found = countCommits(output);
    rmSync(output);
    const windowMs = granularityMs(Date.now() - timeMs + SLACK_MS);
    const oldestMs = (windowMs === 0 ? timeMs : Math.floor(timeMs / windowMs) * windowMs) - SLACK_MS;
    const atLeast = commits.filter(({ afterMs }) => afterMs <= oldestMs).length;
    const atMost = commits.filter(({ beforeMs }) => beforeMs <= timeMs).length;
    expect({ from, found, between: atLeast <= found && found <= atMost, atLeast, atMost }).toMatchObject({
      between: true,
    });
  }
}, 110_000);

async function forEachLine(stream: ReadableStream<Uint8Array>, hear: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  let partial = "";
  for await (const chunk of stream) {
    const lines = (partial + decoder.decode(chunk, { stream: true })).split("\n");
    partial = lines.pop() ?? "";
    for (const line of lines) hear(line);
  }
}
