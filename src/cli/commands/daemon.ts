import type { Config, DatabaseConfig } from "../../config/types.ts";
import { Heartbeat } from "../../daemon/heartbeat.ts";
import { HttpServer } from "../../daemon/http-server.ts";
import { Supervisor } from "../../daemon/supervisor.ts";
import { SystemdNotify } from "../../daemon/systemd-notify.ts";
import { buildInfo } from "../../util/build-info.ts";
import type { Clock } from "../../util/clock.ts";
import { BakeliteError, describeError } from "../../util/errors.ts";
import type { ListenAddress } from "../../util/listen-address.ts";
import type { Logger } from "../../util/logger.ts";
import type { Command, CommandContext } from "../command.ts";

export const command: Command = {
  usage: "[--db <name>] [--max-concurrent-snapshots <n>] [--metrics-addr <host:port>] [--take-over]",
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
    {
      name: "metrics-addr",
      value: "host:port",
      description:
        "Serve Prometheus metrics, /healthz and a status page at this address; overrides [daemon] metrics_addr",
    },
    { name: "take-over", description: "Go on from what another writer stored, because it will never come back" },
  ],
  examples: [
    { comment: "Every database in the configuration", command: "bakelite daemon --config bakelite.toml" },
    { comment: "Only one of them", command: "bakelite daemon --db app --config bakelite.toml" },
    { comment: "With metrics for Prometheus", command: "bakelite daemon --metrics-addr 127.0.0.1:9090" },
  ],
  async run(context: CommandContext): Promise<number> {
    const { options, clock, signal } = context;
    const slots = options.integer("max-concurrent-snapshots", 1, 1000);
    const metricsAddress = options.listenAddress("metrics-addr");
    const config = await context.loadConfig();
    const databases = chosen(context, config);
    const style = logStyle(config);
    const log = context.createLogger(style);
    const stateDirectory = context.env["BAKELITE_STATE_DIR"];
    const supervisor = new Supervisor({
      clock,
      log,
      takeOver: options.has("take-over"),
      maxConcurrentSnapshots: slots ?? config.daemon.maxConcurrentSnapshots,
      stateDirectory,
    });
    const { startedMs } = supervisor;
    const notify = new SystemdNotify(context.env, log);
    const reports = () => supervisor.reports;
    using http = new HttpServer({ reports, startedMs, stateDirectory, clock, log });
    using heartbeat = new Heartbeat({ reports, startedMs, clock, log });
    const started = Promise.withResolvers<void>();
    // From now on: a SIGHUP that nobody listens to would end the process.
    using _reloading = reloadOnHangup(started.promise, async () => {
      if (signal.aborted) return;
      try {
        const fresh = await context.loadConfig();
        const wanted = chosen(context, fresh);
        Object.assign(style, logStyle(fresh));
        await supervisor.reload(fresh, wanted, slots ?? fresh.daemon.maxConcurrentSnapshots);
        if (signal.aborted) return;
        moveMetrics(http, metricsAddress ?? fresh.daemon.metricsAddress, log);
        heartbeat.set(heartbeatSettings(fresh));
      } catch (error) {
        log.error("the configuration was not reloaded; the old one stays in force", {
          error: describeError(error),
          hint: error instanceof BakeliteError ? error.hint : undefined,
        });
      }
    });
    await supervisor.start(databases, () => http.listen(metricsAddress ?? config.daemon.metricsAddress));
    heartbeat.set(heartbeatSettings(config));
    for (const told of [http, heartbeat])
      signal.addEventListener("abort", () => told[Symbol.dispose](), { once: true });
    log.info("bakelite is running", {
      version: buildInfo.version,
      databases: databases.length,
      config: config.sourcePath,
      metrics: http.url,
    });
    started.resolve();
    signal.addEventListener("abort", () => notify.tell("STOPPING=1"), { once: true });
    using _told = tellSystemd(notify, supervisor, clock);
    await supervisor.run(signal);
    return 0;
  },
};

function logStyle({ daemon }: Config) {
  return { level: daemon.logLevel, format: daemon.logFormat };
}

function heartbeatSettings({ daemon }: Config) {
  return { url: daemon.heartbeatUrl, intervalMs: daemon.heartbeatIntervalMs };
}

/** An address that cannot be had is no reason to undo the rest of a reload: metrics stay where they were. */
function moveMetrics(http: HttpServer, address: ListenAddress | undefined, log: Logger): void {
  const before = http.url;
  try {
    http.listen(address);
    if (http.url === before) return;
    log.info(http.url === undefined ? "metrics are no longer served" : "metrics are served elsewhere now", {
      url: http.url,
    });
  } catch (error) {
    log.error("metrics stay at the old address, because the new one cannot be used", {
      error: describeError(error),
      hint: error instanceof BakeliteError ? error.hint : undefined,
      url: http.url,
    });
  }
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

/** Below `TimeoutStartSec=` of the unit. Comparing a large database, or a destination that does not answer, takes longer. */
const MAX_STARTING_MS = 60_000;

/**
 * READY=1 once every database is attached or waited for, at the latest after a minute: a boot waits for it. And the watchdog from
 * then on, until disposed.
 */
function tellSystemd(notify: SystemdNotify, supervisor: Supervisor, clock: Clock): Disposable {
  const startedMs = clock.monotonicMs();
  let watchdog: ReturnType<typeof setInterval> | undefined;
  const readiness = setInterval(() => {
    if (!supervisor.isReady && clock.monotonicMs() - startedMs < MAX_STARTING_MS) return;
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
