import type { Config, DatabaseConfig } from "../../config/types.ts";
import { Supervisor } from "../../daemon/supervisor.ts";
import { SystemdNotify } from "../../daemon/systemd-notify.ts";
import { buildInfo } from "../../util/build-info.ts";
import { BakeliteError, describeError } from "../../util/errors.ts";
import type { Command, CommandContext } from "../command.ts";

export const command: Command = {
  usage: "[--db <name>] [--max-concurrent-snapshots <n>] [--take-over]",
  description: [
    "Watches the -wal file of each configured database and ships what was committed within about a second. Runs until SIGTERM or SIGINT, then ships what is left and exits 0; SIGHUP reads the configuration again.",
    "This is what the systemd unit runs.",
  ],
  options: [
    {
      name: "max-concurrent-snapshots",
      value: "n",
      description: "Full backups that may run at the same time; overrides [daemon] max_concurrent_snapshots",
    },
    { name: "take-over", description: "Go on from what another writer stored, because it will never come back" },
  ],
  examples: [
    { comment: "Every database in the configuration", command: "bakelite daemon --config bakelite.toml" },
    { comment: "Only one of them", command: "bakelite daemon --db app --config bakelite.toml" },
  ],
  async run(context: CommandContext): Promise<number> {
    const { options, clock, signal } = context;
    const config = await context.loadConfig();
    const log = context.createLogger({ level: config.daemon.logLevel, format: config.daemon.logFormat });
    const supervisor = new Supervisor({
      clock,
      log,
      takeOver: options.has("take-over"),
      maxConcurrentSnapshots: slots(options.text("max-concurrent-snapshots")) ?? config.daemon.maxConcurrentSnapshots,
    });
    const databases = chosen(context, config);
    await supervisor.start(databases);
    log.info("bakelite is running", {
      version: buildInfo.version,
      databases: databases.length,
      config: config.sourcePath,
    });
    const reload = () => {
      void reloadFrom(context, supervisor).catch((error: unknown) => {
        log.error("the configuration was not reloaded; the old one stays in force", { error: describeError(error) });
      });
    };
    process.on("SIGHUP", reload);
    const notify = new SystemdNotify(context.env, log);
    signal.addEventListener("abort", () => notify.tell("STOPPING=1"), { once: true });
    using _told = tellSystemd(notify, supervisor);
    try {
      await supervisor.run(signal);
    } finally {
      process.off("SIGHUP", reload);
    }
    return 0;
  },
};

const READY_LOOK_MS = 20;

/** READY=1 once every database is attached or waited for; and the watchdog from then on, until disposed. */
function tellSystemd(notify: SystemdNotify, supervisor: Supervisor): Disposable {
  let watchdog: ReturnType<typeof setInterval> | undefined;
  const readiness = setInterval(() => {
    if (!supervisor.isReady) return;
    clearInterval(readiness);
    notify.tell("READY=1");
    if (notify.watchdogIntervalMs !== null)
      watchdog = setInterval(() => notify.tell("WATCHDOG=1"), notify.watchdogIntervalMs);
  }, READY_LOOK_MS);
  return {
    [Symbol.dispose]() {
      clearInterval(readiness);
      clearInterval(watchdog);
    },
  };
}

async function reloadFrom(context: CommandContext, supervisor: Supervisor): Promise<void> {
  const config = await context.loadConfig();
  await supervisor.reload(config, chosen(context, config));
}

/** `--db` overrides `[daemon] db`. */
function chosen(context: CommandContext, config: Config): readonly DatabaseConfig[] {
  if (context.flags.db !== undefined || config.daemon.db === undefined) return context.selectDatabases(config);
  return config.databases.filter((database) => database.name === config.daemon.db);
}

function slots(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const count = Number(text);
  if (Number.isInteger(count) && count >= 1 && count <= 1000) return count;
  throw new BakeliteError(
    "usage",
    `\`--max-concurrent-snapshots\` takes a whole number from 1 to 1000, not \`${text}\``,
  );
}
