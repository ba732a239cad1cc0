import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { statePaths } from "../../src/state/layout.ts";
import { writeStatus } from "../../src/state/status.ts";
import { runBakelite } from "../oracle/daemon-process.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { agedReplica } from "./aged-replica.ts";
import { StatusFiles } from "./status-files.ts";

setDefaultTimeout(60_000);

test("status and usage tell of a limit that the daemon cannot meet, and neither fails for it", async () => {
  await using directory = await temporaryDirectory("cli-limits");
  const replica = await agedReplica(directory, "scene", {
    states: 20,
    spacingMs: 60_000,
    fullEvery: 10,
    policy: 'max_total_size = "1KiB"\nmax_backups = 1\n',
  });
  const [store = ""] = replica.stores;
  const paths = statePaths(replica.databasePath, "app");
  mkdirSync(paths.directory, { mode: 0o700 });
  const files = await StatusFiles.at(Date.now());
  const unmet = [
    { destination: store, limit: "max_total_size", allowed: 1024, remaining: 61_234 } as const,
    { destination: store, limit: "max_backups", allowed: 1, remaining: 2 } as const,
  ];
  await writeStatus(paths.status, files.status({ path: replica.databasePath, limits_unmet: unmet }));

  const run = (...argv: readonly string[]) => runBakelite("executable", [...argv, "--config", replica.configPath]);
  const size = "`max_total_size` (1.00 KiB) cannot be met: 59.8 KiB must stay";
  const backups = "`max_backups` (1 full backup) cannot be met: 2 full backups must stay";
  const status = await run("status");
  expect(status.status).toBe(0);
  for (const text of [size, backups]) expect(status.stdout).toContain(`  limit at ${store}: ${text}`);
  expect((await run("status", "--check")).status).toBe(0);
  const json = JSON.parse((await run("status", "--json")).stdout);
  expect(json.databases[0].status.limits_unmet).toEqual(unmet);

  const usage = await run("usage");
  expect(usage.status).toBe(0);
  for (const text of [size, backups]) expect(usage.stderr).toContain(`app at ${store}: ${text}`);
  expect(JSON.parse((await run("usage", "--json")).stdout).databases[0].limits.unmet).toEqual(unmet);
});
