import type { Config, DatabaseConfig } from "../../config/types.ts";
import { findTroubles, type Limits, observe } from "../../state/observe.ts";
import { lookAtFiles } from "../../state/observe-files.ts";
import { BakeliteError } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { Semaphore } from "../../util/semaphore.ts";
import { mayColour } from "../../util/text-output.ts";
import { formatTimestamp } from "../../util/timestamps.ts";
import type { Command, CommandContext } from "../command.ts";
import { isMirrorStale, type Look, statusText } from "../status-text.ts";

export const command: Command = {
  usage: "[--db <name>] [--json] [--check [--max-lag <duration>] [--max-verify-age <duration>]]",
  description: [
    "Shows what the daemon is doing now: whether each database is being replicated, and how far behind its replica is. Reads only the status files that the daemon publishes beside each database, so it is quick and works while a destination is down. What is stored, `bakelite list` shows.",
    "With --check it prints nothing and exits 0 when every database is well; otherwise it prints one line for each that is not, with the reasons, and exits 1. It needs no daemon to do so, which is the point: a daemon that died cannot raise an alarm.",
  ],
  options: [
    { name: "check", description: "Print only databases that are not well, and exit 1 when there are any" },
    {
      name: "max-lag",
      value: "duration",
      description: "With --check: fail when a replica is further behind than this, such as 10m",
    },
    {
      name: "max-verify-age",
      value: "duration",
      description:
        "With --check: fail when the last clean verify is longer ago than this, such as 36h, or found problems",
    },
  ],
  examples: [
    { comment: "One row for each database", command: "bakelite status" },
    { comment: "Only one, for a script", command: "bakelite status --db app --json" },
    {
      comment: "From cron: silent unless something is wrong",
      command: "bakelite status --check --max-lag 10m --max-verify-age 36h",
    },
  ],
  async run(context) {
    const limits = readLimits(context);
    const config = await context.loadConfig();
    const looks = await lookAt(context, chosen(context, config));
    if (context.flags.json) writeDocument(context, looks, limits);
    else if (context.options.has("check")) writeTroubles(context, looks, limits);
    else writeTable(context, config, looks);
    return exitCodeFor(context, looks, limits);
  },
};

const CONCURRENCY = 16;

/** Before anything is read: whatever is wrong with the command line is said at once. */
function readLimits({ options }: CommandContext): Limits {
  const limits = { maxLagMs: options.durationMs("max-lag"), maxVerifyAgeMs: options.durationMs("max-verify-age") };
  for (const name of ["max-lag", "max-verify-age"]) {
    if (options.has(name) && !options.has("check"))
      throw new BakeliteError("usage", `\`--${name}\` only goes with \`--check\``);
  }
  return limits;
}

/** What the daemon is to run: the one of `--db`, else that of `[daemon] db`, else all. */
function chosen(context: CommandContext, config: Config): readonly DatabaseConfig[] {
  const selected = context.selectDatabases(config);
  const only = config.daemon.db;
  return context.flags.db !== undefined || only === undefined ? selected : selected.filter(({ name }) => name === only);
}

async function lookAt(
  { clock, env, signal }: CommandContext,
  databases: readonly DatabaseConfig[],
): Promise<readonly Look[]> {
  const slots = new Semaphore(CONCURRENCY);
  const stateDirectory = env["BAKELITE_STATE_DIR"] ?? "";
  return await Promise.all(
    databases.map(async (database) => {
      using _slot = await slots.acquire({ signal });
      const { name, path } = database;
      const fallbackDirectory = stateDirectory === "" ? undefined : stateDirectory;
      return { database, seen: await lookAtFiles({ name, path, fallbackDirectory, nowMs: clock.nowMs() }) };
    }),
  );
}

/** Without `--check` the command failed only where there is a status and it cannot be read. */
function exitCodeFor({ options }: CommandContext, looks: readonly Look[], limits: Limits): number {
  const failed = options.has("check")
    ? looks.some(({ seen }) => findTroubles(seen, limits).length > 0)
    : looks.some(({ seen }) => seen.status.outcome === "unreadable");
  return failed ? 1 : 0;
}

function writeTable({ stdout, stderr, env }: CommandContext, config: Config, looks: readonly Look[]): void {
  stdout.write(statusText(looks, { colour: mayColour(stdout, env) }));
  const others = config.daemon.db === undefined ? 0 : config.databases.length - 1;
  const [look] = looks;
  if (others > 0 && look?.database.name === config.daemon.db)
    stderr.write(
      `note: \`db\` under [daemon] lets the daemon back up only ${config.daemon.db}, and not the other ${others}\n`,
    );
}

function writeTroubles({ stdout }: CommandContext, looks: readonly Look[], limits: Limits): void {
  for (const { database, seen } of looks) {
    const troubles = findTroubles(seen, limits);
    if (troubles.length === 0) continue;
    stdout.write(`${database.name}: ${printable(troubles.map(({ message }) => message).join("; "))}\n`);
  }
}

function writeDocument({ stdout, clock }: CommandContext, looks: readonly Look[], limits: Limits): void {
  const databases = looks.map((look) => databaseDocument(look, limits));
  const document = {
    checked_at: formatTimestamp(clock.nowMs()),
    healthy: databases.every(({ healthy }) => healthy),
    databases,
  };
  stdout.write(`${JSON.stringify(document, null, 2)}\n`);
}

function databaseDocument({ database, seen }: Look, limits: Limits) {
  const { status, verify, mirrors } = seen;
  const { state, lagSeconds } = observe(seen);
  const troubles = findTroubles(seen, limits);
  return {
    name: database.name,
    path: database.path,
    state,
    healthy: troubles.length === 0,
    reasons: troubles.map(({ kind, message }) => ({ kind, message })),
    lag_seconds: lagSeconds,
    process_running: seen.isRunning,
    status: status.outcome === "read" ? status.value : null,
    status_problem: status.outcome === "read" ? null : status.reason,
    verify: verify.outcome === "read" ? verify.value : null,
    verify_problem: verify.outcome === "unreadable" ? verify.reason : null,
    mirrors: mirrors.outcome === "read" ? { stale: isMirrorStale(seen), ...mirrors.value } : null,
    mirrors_problem: mirrors.outcome === "unreadable" ? mirrors.reason : null,
  };
}
