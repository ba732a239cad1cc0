import { explainConfig, holdsSecrets } from "../../config/explain.ts";
import { parseConfig } from "../../config/load.ts";
import { configSource, readConfigText } from "../../config/source.ts";
import { runDoctor } from "../../setup/doctor.ts";
import {
  allChecks,
  type Check,
  checksOfDatabase,
  countLevels,
  type DatabaseReport,
  type DoctorReport,
  worstLevel,
} from "../../setup/doctor-report.ts";
import { doctorText } from "../../setup/doctor-text.ts";
import { mayColour } from "../../util/text-output.ts";
import { formatTimestamp } from "../../util/timestamps.ts";
import type { Command } from "../command.ts";

export const command: Command = {
  usage: "[--db <name>] [--json]",
  description: [
    "Checks, before the daemon runs or while it does, all that it needs: the configuration, each database and its directory, the key, every destination, and the service that runs it. Each check passes, warns or fails, and says what to do. Run it as root to check for the service's user.",
    "Writes nothing, opens no database with SQLite, and disturbs no daemon. Exit code 1 means that a check failed; warnings are 0.",
  ],
  options: [],
  examples: [
    { comment: "Every database", command: "bakelite doctor" },
    { comment: "One of them, with another configuration", command: "bakelite doctor --db app --config bakelite.toml" },
    { comment: "In a pipeline before a deployment", command: "bakelite doctor --json" },
  ],
  async run({ flags, env, stdout, clock, signal, selectDatabases }) {
    const source = configSource(flags.config, env);
    const toml = await readConfigText(source);
    const config = parseConfig(toml, { sourcePath: source.path, env });
    const nowMs = clock.nowMs();
    const report = await runDoctor({
      config,
      databases: selectDatabases(config),
      holdsSecrets: holdsSecrets(explainConfig(toml, config)),
      env,
      nowMs,
      signal,
    });
    if (flags.json) stdout.write(`${JSON.stringify(doctorDocument(report, nowMs), null, 2)}\n`);
    else stdout.write(doctorText(report, { colour: mayColour(stdout, env) }));
    return worstLevel(allChecks(report)) === "fail" ? 1 : 0;
  },
};

function doctorDocument(report: DoctorReport, nowMs: number): Record<string, unknown> {
  const counts = countLevels(allChecks(report));
  return {
    checked_at: formatTimestamp(nowMs),
    outcome: worstLevel(allChecks(report)),
    pass_count: counts.pass,
    warn_count: counts.warn,
    fail_count: counts.fail,
    user: report.user,
    service: report.service,
    host: report.host.map(checkDocument),
    databases: report.databases.map(databaseDocument),
  };
}

function databaseDocument(report: DatabaseReport): Record<string, unknown> {
  return {
    name: report.name,
    path: report.path,
    outcome: worstLevel(checksOfDatabase(report)),
    checks: report.checks.map(checkDocument),
    destinations: report.destinations.map(({ location, type, async, checks }) => ({
      destination: location,
      type,
      async,
      outcome: worstLevel(checks),
      checks: checks.map(checkDocument),
    })),
  };
}

function checkDocument({ check, level, message, fix }: Check): Record<string, unknown> {
  return { check, level, message, fix };
}
