import { describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { metricFamilies } from "../../src/daemon/metrics.ts";
import { DestinationFailures } from "../../src/daemon/metrics-backend.ts";
import { parseMaxOpenFiles, parseVirtualBytes, readProcessFigures } from "../../src/daemon/metrics-process.ts";
import { encodeMetrics } from "../../src/daemon/metrics-text.ts";
import { VerifyMarkers } from "../../src/daemon/metrics-verify.ts";
import { statusPage } from "../../src/daemon/status-page.ts";
import { STORAGE_FORMAT_VERSION } from "../../src/format/header.ts";
import { statePaths } from "../../src/state/layout.ts";
import { writeVerifyMarker } from "../../src/state/verify-marker.ts";
import { bytesSource } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { buildInfo } from "../../src/util/build-info.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { daemonView, files, HOSTILE, NOW_MS, type Scene, variedScenes, verified } from "./http-scene.ts";
import { parseMetrics, promtool, type ScrapedSample } from "./scrape.ts";

const tool = promtool();
if (tool === null) console.log("note: metrics and alerting rules were not judged: there is no promtool");

const program = { build: buildInfo, storageFormat: STORAGE_FORMAT_VERSION, process: readProcessFigures(NOW_MS) };

function scrape(scenes: readonly Scene[]): readonly ScrapedSample[] {
  return parseMetrics(encodeMetrics(metricFamilies(daemonView(scenes), program)));
}

/** The value of a series of the only database; undefined when it is absent. */
function value(scene: Scene, name: string, labels: Readonly<Record<string, string>> = {}): number | undefined {
  const found = scrape([scene]).filter(
    (sample) => sample.name === name && Object.entries(labels).every(([label, text]) => sample.labels[label] === text),
  );
  expect(found.length).toBeLessThanOrEqual(1);
  return found[0]?.value;
}

describe("the text format", () => {
  test("any text comes back from a label value, a lone half of a surrogate pair as U+FFFD", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.string(), fc.constant(HOSTILE)), (text) => {
        const family = {
          name: "x",
          type: "gauge",
          help: text,
          samples: [{ labels: { a: text, b: "" }, value: 1 }],
        } as const;
        expect(parseMetrics(encodeMetrics([family]))).toEqual([
          { name: "x", type: "gauge", labels: { a: text.toWellFormed(), b: "" }, value: 1 },
        ]);
      }),
    );
  });

  test("whole numbers stay exact, and no value is written as a word or with a comma", () => {
    for (const [number, text] of [
      [0, "0"],
      [Number.MAX_SAFE_INTEGER, "9007199254740991"],
      [0.1 + 0.2, "0.3"],
      [1_795_392_281.484, "1795392281.484"],
      [1e-9, "0"],
    ] as const) {
      const family = { name: "x", type: "counter", help: "h", samples: [{ labels: {}, value: number }] } as const;
      expect(encodeMetrics([family])).toBe(`# HELP x h\n# TYPE x counter\nx ${text}\n`);
    }
  });

  test("a series without a sample leaves no trace", () => {
    expect(encodeMetrics([{ name: "x", type: "gauge", help: "h", samples: [] }])).toBe("");
  });
});

describe("the series", () => {
  test("a healthy database has those of the reference, with their types and one label", () => {
    const samples = scrape([{ status: { database: "app" }, verify: verified(files.verify(60)) }]);
    const expected = {
      bakelite_up: ["gauge", 1],
      bakelite_replica_lag_seconds: ["gauge", 0],
      bakelite_last_synced_seconds: ["gauge", 3],
      bakelite_change_sets: ["gauge", 41],
      bakelite_bytes_shipped_total: ["counter", 1_572_864],
      bakelite_last_verified_seconds: ["gauge", 60],
      bakelite_verify_ok: ["gauge", 1],
    } as const;
    for (const [name, [type, number]] of Object.entries(expected))
      expect(samples.filter((sample) => sample.name === name)).toEqual([
        { name, type, labels: { database: "app" }, value: number },
      ]);
    expect(samples.filter(({ name }) => name === "bakelite_backing_off_seconds")).toEqual([]);
  });

  test("lag is absent before a WAL and a first sync exist, and goes on being told while nothing gets through", () => {
    const lag = "bakelite_replica_lag_seconds";
    expect(value({ status: { wal: null, lag_seconds: 0 } }, lag)).toBeUndefined();
    expect(value({ status: { last_synced_at: null, lag_seconds: 7 } }, lag)).toBeUndefined();
    expect(value({ status: { lag_seconds: null } }, lag)).toBeUndefined();
    expect(value({ status: { lag_seconds: 7.25 } }, lag)).toBe(7.25);
  });

  test("backing off is told with its age, and a lock of another process as well as a failing destination", () => {
    const name = "bakelite_backing_off_seconds";
    const unhealthy = files.unhealthy(90, 3);
    expect(value({}, name)).toBeUndefined();
    expect(value({ status: { state: "backing off", unhealthy } }, name)).toBe(90);
    expect(value({ status: { state: "backing off" }, lockedOutMs: 6500 }, name)).toBe(6.5);
    expect(value({ status: { state: "backing off", unhealthy }, lockedOutMs: 120_000 }, name)).toBe(120);
  });

  test("verify: absent before the first run, 0 after problems, and the age is that of the last clean run", () => {
    const [ok, age] = ["bakelite_verify_ok", "bakelite_last_verified_seconds"];
    expect([value({}, ok), value({}, age)]).toEqual([undefined, undefined]);
    const problems = verified(files.verifyProblems(600));
    expect([value({ verify: problems }, ok), value({ verify: problems }, age)]).toEqual([0, 4200]);
    const never = verified({ ...files.verifyProblems(600), last_clean: null });
    expect([value({ verify: never }, ok), value({ verify: never }, age)]).toEqual([0, undefined]);
    const unreadable = { outcome: "unreadable", reason: "permission denied" } as const;
    expect([value({ verify: unreadable }, ok), value({ verify: unreadable }, age)]).toEqual([undefined, undefined]);
  });

  test("bakelite_up is 0 for exactly that for which `status --check` fails", () => {
    const up = "bakelite_up";
    const incomplete = [files.destination({ state: "incomplete" })];
    expect(value({}, up)).toBe(1);
    expect(value({ status: { state: "snapshotting" } }, up)).toBe(1);
    expect(value({ status: { state: "starting", state_since: files.ago(59) } }, up)).toBe(1);
    expect(value({ status: { state: "starting", state_since: files.ago(61) } }, up)).toBe(0);
    for (const state of ["waiting", "not wal", "backing off", "stopped"] as const)
      expect(value({ status: { state } }, up)).toBe(0);
    expect(value({ status: { full_backup: null } }, up)).toBe(0);
    expect(value({ status: { destinations: incomplete } }, up)).toBe(0);
  });

  test("change-sets are those since the newest full backup, and absent without one", () => {
    const name = "bakelite_change_sets";
    expect(value({ status: { full_backup: null } }, name)).toBeUndefined();
    expect(value({ status: { index: null } }, name)).toBeUndefined();
    expect(value({ status: { index: 50, full_backup: { index: 48, settled: 49, at: files.ago(1) } } }, name)).toBe(2);
  });

  test("a clock that was set back gives ages of 0, never negative ones", () => {
    const status = { last_synced_at: files.ago(-60), full_backup: { index: 1, settled: 2, at: files.ago(-60) } };
    expect(value({ status }, "bakelite_last_synced_seconds")).toBe(0);
    expect(value({ status }, "bakelite_last_full_backup_seconds")).toBe(0);
  });

  test("the WAL and who holds it, full backups by reason, errors, mirrors and limits, each only where there is something", () => {
    const scene: Scene = {
      status: {
        wal: { size_bytes: 77, committed_frames: 1, backfilled_frames: 0, held_by: { pid: 9, since: files.ago(30) } },
        full_backups_by_reason: { "first backup": 1, interval: 4 },
        limits_unmet: [{ destination: "d", limit: "max_backups", allowed: 3, remaining: 4 }],
      },
      failures: new Map([["d", 5]]),
      mirrors: files.mirrors([
        { location: "m", state: "behind", behind_objects: 3, behind_bytes: 900, last_in_sync_at: files.ago(70) },
        { location: "n", state: "backing off", state_since: files.ago(9), behind_objects: null, last_in_sync_at: null },
      ]).mirrors,
    };
    expect(value(scene, "bakelite_wal_bytes")).toBe(77);
    expect(value(scene, "bakelite_wal_held_by_others_seconds")).toBe(30);
    expect(value({}, "bakelite_wal_held_by_others_seconds")).toBeUndefined();
    expect(value({ status: { wal: null } }, "bakelite_wal_bytes")).toBeUndefined();
    expect(value(scene, "bakelite_longest_write_lock_seconds")).toBe(0.00325);
    expect(value(scene, "bakelite_full_backups_total", { reason: "interval" })).toBe(4);
    expect(value(scene, "bakelite_destination_errors_total", { destination: "d" })).toBe(5);
    expect(value(scene, "bakelite_mirror_behind_objects", { destination: "m" })).toBe(3);
    expect(value(scene, "bakelite_mirror_behind_bytes", { destination: "m" })).toBe(900);
    expect(value({}, "bakelite_mirror_behind_objects")).toBeUndefined();
    expect(value(scene, "bakelite_mirror_behind_objects", { destination: "n" })).toBeUndefined();
    expect(value(scene, "bakelite_mirror_last_reconciled_seconds", { destination: "m" })).toBe(20);
    expect(value(scene, "bakelite_mirror_last_in_sync_seconds", { destination: "m" })).toBe(70);
    expect(value(scene, "bakelite_mirror_last_in_sync_seconds", { destination: "n" })).toBeUndefined();
    expect(value(scene, "bakelite_mirror_backing_off_seconds", { destination: "m" })).toBeUndefined();
    expect(value(scene, "bakelite_mirror_backing_off_seconds", { destination: "n" })).toBe(9);
    expect(value(scene, "bakelite_limit_unmet", { limit: "max_backups", destination: "d" })).toBe(1);
    expect(value({}, "bakelite_limit_unmet")).toBeUndefined();
  });

  test("what runs, and since when", () => {
    const samples = scrape([]);
    const info = samples.find(({ name }) => name === "bakelite_build_info");
    expect(info).toMatchObject({ labels: { version: buildInfo.version, storage_format: "1" }, value: 1 });
    const start = samples.find(({ name }) => name === "bakelite_daemon_start_time_seconds");
    expect(start?.value).toBe(NOW_MS / 1000 - 3600);
  });
});

test("figures of the process are those of /proc", () => {
  expect(parseMaxOpenFiles("Max open files            1024                 524288               files\n")).toBe(1024);
  expect(parseMaxOpenFiles("Max open files            unlimited            unlimited            files\n")).toBeNull();
  expect(parseVirtualBytes("Name:\tx\nVmSize:\t    2048 kB\n")).toBe(2_097_152);
  const figures = readProcessFigures(0);
  expect(figures.residentBytes).toBeGreaterThan(1e6);
  expect(figures.cpuSeconds).toBeGreaterThan(0);
});

test.skipIf(tool === null)("promtool finds nothing to say about names, types, help and hostile text", async () => {
  const scenes = [...variedScenes(), { status: { database: HOSTILE }, failures: new Map([[HOSTILE, 3]]) }];
  const text = encodeMetrics(metricFamilies(daemonView(scenes), program));
  expect(await tool?.run(["check", "metrics"], text)).toEqual({ status: 0, output: "" });
});

describe("calls that fail at a destination", () => {
  test("are counted by database and location; what its caller aborts, or its body breaks off, is not", async () => {
    const failures = new DestinationFailures();
    const backend = failures.watch("app", new MemoryBackend());
    const count = () => failures.of("app", [backend]).get(backend.location);
    expect(count()).toBe(0);
    await backend.put("a", bytesSource(Buffer.from("x")));
    expect(await backend.put("a", bytesSource(Buffer.from("x")), { ifAbsent: true })).toBe("exists");
    expect(await backend.get("none")).toBeNull();
    expect(count()).toBe(0);
    const own = new Error("own fault");
    const broken = {
      ...bytesSource(Buffer.from("x")),
      async *open() {
        yield Buffer.from("x");
        throw own;
      },
    };
    await expect(backend.put("b", broken)).rejects.toThrow();
    const aborted = AbortSignal.abort(new BakeliteError("interrupted", "stop"));
    await backend.stat("a", { signal: aborted }).catch(() => {});
    expect(count()).toBe(0);
    for await (const _ of backend.list("")) break;
    expect(count()).toBe(0);
  });

  test("each verb's failure counts once, a broken listing and a broken stream too", async () => {
    const fail = async (): Promise<never> => {
      throw new BakeliteError("storage-unreachable", "gone");
    };
    async function* breaking() {
      yield Buffer.from("x");
      throw new BakeliteError("storage-unreachable", "gone");
    }
    const inner = Object.assign(new MemoryBackend(), { put: fail, stat: fail, delete: fail, list: breaking });
    inner.get = async () => breaking();
    const failures = new DestinationFailures();
    const backend = failures.watch("app", inner);
    await backend.put("a", bytesSource(Buffer.from("x"))).catch(() => {});
    await backend.stat("a").catch(() => {});
    await backend.delete(["a"]).catch(() => {});
    await Array.fromAsync(backend.list("")).catch(() => {});
    await Array.fromAsync((await backend.get("a")) ?? []).catch(() => {});
    expect(failures.of("app", [backend]).get(backend.location)).toBe(5);
    // A replicator that is made anew, as by a reload, goes on counting.
    const again = failures.watch("app", inner);
    await again.stat("a").catch(() => {});
    expect(failures.of("app", [again]).get(again.location)).toBe(6);
    expect(failures.of("other", [again]).get(again.location)).toBe(0);
  });
});

describe("verify markers", () => {
  test("are read again only when they have changed, and not more often than every 5 s", async () => {
    await using directory = await temporaryDirectory("markers");
    const [path, elsewhere] = [directory.file("app.db"), directory.file("state")];
    let nowMs = 0;
    const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs };
    const markers = new VerifyMarkers({ clock, stateDirectory: elsewhere });
    const look = async () => {
      nowMs += 5_000;
      await markers.look(() => [{ name: "app", path }]);
      const found = markers.of("app");
      return found.outcome === "read" ? found.value.last_run.outcome : found.outcome;
    };
    expect(markers.of("app").outcome).toBe("missing");
    expect(await look()).toBe("missing");
    mkdirSync(elsewhere);
    await writeVerifyMarker(directory.file("state", "app.verify.json"), files.verify(60));
    await markers.look(() => [{ name: "app", path }]);
    expect(markers.of("app").outcome).toBe("missing");
    expect(await look()).toBe("clean");
    const read = markers.of("app");
    expect(await look()).toBe("clean");
    expect(markers.of("app")).toBe(read);
    mkdirSync(statePaths(path, "app").directory);
    await writeVerifyMarker(statePaths(path, "app").verify, files.verifyProblems(5));
    expect(await look()).toBe("problems");
    writeFileSync(statePaths(path, "app").verify, "{}");
    expect(await look()).toBe("unreadable");
    await writeVerifyMarker(statePaths(path, "app").verify, { ...files.verify(1), database: "other" });
    expect(await look()).toBe("unreadable");
  });
});

test("what a scrape and a page of 500 databases cost, for whoever reads this output", () => {
  const scenes = Array.from({ length: 500 }, (_, i) => ({
    status: { database: `tenant-${i}` },
    verify: verified(files.verify(60)),
  }));
  const times = (work: () => string) => {
    let sizeBytes = 0;
    const all = Array.from({ length: 20 }, () => {
      const startMs = performance.now();
      sizeBytes = work().length;
      return performance.now() - startMs;
    }).sort((a, b) => a - b);
    return `${all[10]?.toFixed(1)} ms (median), ${Math.round(sizeBytes / 1024)} KiB`;
  };
  const metrics = times(() => encodeMetrics(metricFamilies(daemonView(scenes), program)));
  const page = times(() => statusPage(daemonView(scenes), buildInfo));
  console.log(`note: 500 databases: metrics ${metrics}; status page ${page}`);
  expect(scrape(scenes).filter(({ name }) => name === "bakelite_up")).toHaveLength(500);
});

describe("docs/monitoring", () => {
  const docs = (name: string) => `${import.meta.dir}/../../docs/${name}`;
  const everything: Scene = {
    status: {
      unhealthy: files.unhealthy(1, 1),
      wal: { size_bytes: 1, committed_frames: 1, backfilled_frames: 0, held_by: { pid: 9, since: files.ago(30) } },
      limits_unmet: [{ destination: "d", limit: "max_backups", allowed: 3, remaining: 4 }],
    },
    failures: new Map([["d", 5]]),
    mirrors: files.mirrors([{ state: "backing off" }]).mirrors,
    verify: verified(files.verify(60)),
  };
  const known = new Map(scrape([everything]).map(({ name, labels }) => [name, Object.keys(labels)]));

  test("monitoring.md names every series, with its labels, and no other", async () => {
    const page = await readFile(docs("monitoring.md"), "utf8");
    const rows = [...page.matchAll(/^\| `((?:bakelite|process)_\w+)` \| (?:gauge|counter) \| ([^|]*)\|/gm)];
    const documented = new Map(
      rows.map(([, name = "", labels = ""]) => [name, [...labels.matchAll(/`(\w+)`/g)].map(([, label]) => label)]),
    );
    expect(Object.fromEntries([...documented].sort())).toEqual(Object.fromEntries([...known].sort()));
  });

  test("monitoring.md names every alert, and the dashboard and the alerts ask for no other series", async () => {
    const page = await readFile(docs("monitoring.md"), "utf8");
    const alerts = await readFile(docs("monitoring/alerts.yml"), "utf8");
    const dashboard = await readFile(docs("monitoring/grafana.json"), "utf8");
    for (const [, alert] of alerts.matchAll(/- alert: (\w+)/g)) expect(page).toContain(`\`${alert}\``);
    for (const text of [alerts, ...queriesOf(JSON.parse(dashboard))])
      for (const [name] of text.matchAll(/\b(?:bakelite|process)_[a-z_]+\b/g))
        expect([...known.keys()]).toContain(name);
  });

  test("the dashboard has a query in each panel, its panels do not overlap, and its data source is a variable", async () => {
    const dashboard: Dashboard = JSON.parse(await readFile(docs("monitoring/grafana.json"), "utf8"));
    const cells = new Set<string>();
    for (const { title, targets, datasource, gridPos } of dashboard.panels) {
      expect({ title, queries: targets.length }).not.toEqual({ title, queries: 0 });
      expect(datasource.uid).toBe("${datasource}");
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++)
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(cells.has(`${x},${y}`)).toBe(false);
          expect(x).toBeLessThan(24);
          cells.add(`${x},${y}`);
        }
    }
  });

  test.skipIf(tool === null)(
    "promtool accepts the alerts, what they are tested with, and the dashboard's queries",
    async () => {
      const rules = await tool?.run(["check", "rules", docs("monitoring/alerts.yml")]);
      expect(rules).toMatchObject({ status: 0, output: expect.stringContaining("SUCCESS") });
      const tests = await tool?.run(["test", "rules", docs("monitoring/alerts.test.yml")]);
      expect(tests).toMatchObject({ status: 0, output: expect.stringContaining("SUCCESS") });
      await using directory = await temporaryDirectory("dashboard");
      const dashboard: unknown = JSON.parse(await readFile(docs("monitoring/grafana.json"), "utf8"));
      const exprs = queriesOf(dashboard).map((query) => query.replaceAll("$__rate_interval", "5m"));
      const asRules = exprs.map((expr, i) => ({ record: `q${i}`, expr }));
      // JSON is YAML.
      writeFileSync(directory.file("queries.yml"), JSON.stringify({ groups: [{ name: "q", rules: asRules }] }));
      expect(await tool?.run(["check", "rules", directory.file("queries.yml")])).toMatchObject({ status: 0 });
    },
    60_000,
  );
});

interface Dashboard {
  readonly panels: readonly {
    readonly title: string;
    readonly targets: readonly { readonly expr: string }[];
    readonly datasource: { readonly uid: string };
    readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  }[];
}

/** Every PromQL expression, wherever it stands. */
function queriesOf(node: unknown): readonly string[] {
  if (typeof node !== "object" || node === null) return [];
  return Object.entries(node).flatMap(([key, inner]) =>
    key === "expr" && typeof inner === "string" ? [inner] : queriesOf(inner),
  );
}
