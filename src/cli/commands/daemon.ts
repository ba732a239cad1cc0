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
    const slots = options.integer("max-concurrent-snapshots", 1, 1000);
    const config = await context.loadConfig();
    const databases = chosen(context, config);
    const style = logStyle(config);
    const log = context.createLogger(style);
    const supervisor = new Supervisor({
      clock,
      log,
      takeOver: options.has("take-over"),
      maxConcurrentSnapshots: slots ?? config.daemon.maxConcurrentSnapshots,
      stateDirectory: context.env["BAKELITE_STATE_DIR"],
    });
    const started = Promise.withResolvers<void>();
    // From now on: a SIGHUP that nobody listens to would end the process.
    using _reloading = reloadOnHangup(started.promise, async () => {
      if (signal.aborted) return;
      try {
        const fresh = await context.loadConfig();
        const wanted = chosen(context, fresh);
        Object.assign(style, logStyle(fresh));
        await supervisor.reload(fresh, wanted, slots ?? fresh.daemon.maxConcurrentSnapshots);
      } catch (error) {
        log.error("the configuration was not reloaded; the old one stays in force", {
          error: describeError(error),
          hint: error instanceof BakeliteError ? error.hint : undefined,
        });
      }
    });
    await supervisor.start(databases);
    log.info("bakelite is running", {
      version: buildInfo.version,
      databases: databases.length,
      config: config.sourcePath,
    });
    started.resolve();
    const notify = new SystemdNotify(context.env, log);
    signal.addEventListener("abort", () => notify.tell("STOPPING=1"), { once: true });
    using _told = tellSystemd(notify, supervisor);
    await supervisor.run(signal);
    return 0;
  },
};

function logStyle({ daemon }: Config) {
  return { level: daemon.logLevel, format: daemon.logFormat };
}

/**
 * Calls `reload` for a SIGHUP, never before `started` and one call at a time, until disposed: two that ran side by side
 * would start the same database twice. Signals that come while one is still to begin are answered by that one.
 */
function reloadOnHangup(started: Promise<void>, reload: () => Promise<void>): Disposable {
  let previous = started;
  let isQueued = false;
  const listener = () => {
    if (isQueued) return;
    isQueued = true;
    previous = previous.then(() => {
      isQueued = false;
      return reload();
    });
  };
  process.on("SIGHUP", listener);
  return { [Symbol.dispose]: () => process.off("SIGHUP", listener) };
}

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

/** `--db` overrides `[daemon] db`. */
function chosen(context: CommandContext, config: Config): readonly DatabaseConfig[] {
  if (context.flags.db !== undefined || config.daemon.db === undefined) return context.selectDatabases(config);
  return config.databases.filter((database) => database.name === config.daemon.db);
}
