import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { statePaths } from "../../src/state/layout.ts";
import { type MirrorEntry, readMirrorStatus } from "../../src/state/mirror-status.ts";
import { FaultProxy } from "../faults/proxy.ts";
import { runBakelite, startDaemon } from "../oracle/daemon-process.ts";
import { s3Table, through } from "../servers/s3-backends.ts";
import { forRgw } from "../servers/s3-servers.ts";
import { eventually } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

await forRgw(({ rgw, newPlace }) => {
  test("a mirror at S3 takes a full backup in parts, and an outage in the middle of it holds up neither shipping nor stopping", async () => {
    await using place = await newPlace();
    await using proxy = await FaultProxy.start({ targetPort: rgw.port, seed: 3 });
    await using directory = await temporaryDirectory("mirrors-s3");
    const path = directory.file("app.db");
    using database = new Database(path, { create: true, strict: true });
    database.run("PRAGMA journal_mode = WAL");
    database.run("CREATE TABLE work (number INTEGER PRIMARY KEY, content BLOB)");
    const insert = (bytes: number) => database.run("INSERT INTO work (content) VALUES (randomblob(?))", [bytes]);
    for (let i = 0; i < 16; i++) insert(1024 * 1024);

    const mirror = s3Table(through(place, proxy.url), { async: true, timeout: "2s", retries: 1 });
    const options = {
      configPath: directory.file("bakelite.toml"),
      databases: [{ name: "app", path, replicas: [directory.file("primary")], destinations: [mirror] }],
      settings: { mirror_interval: "200ms", debounce: "20ms" },
    };
    const untilEntry = async (what: string, wanted: (entry: MirrorEntry) => boolean) =>
      await eventually(
        async () => {
          const read = await readMirrorStatus(statePaths(path, "app").mirror);
          const entry = read.outcome === "read" ? read.value.mirrors[0] : undefined;
          return entry !== undefined && wanted(entry) ? entry : null;
        },
        { what, deadlineMs: 30_000 },
      );

    await using daemon = await startDaemon(options);
    // The third part hangs, and everything after it.
    await eventually(() => proxy.requests.some(({ operation }) => operation === "upload-part"), {
      what: "an upload in parts",
      deadlineMs: 20_000,
      explain: () => `${JSON.stringify(proxy.counts())} ${daemon.tail}`,
    });
    await proxy.beginOutage("hang");
    for (let i = 0; i < 5; i++) insert(1000);
    const committedMs = Date.now();
    const status = await daemon.untilStatus(
      ({ last_synced_at, full_backup }) => full_backup !== null && Date.parse(last_synced_at ?? "") > committedMs,
      { what: "all of it to be stored while the mirror hangs", deadlineMs: 10_000 },
    );
    expect(status.state).toBe("live");
    expect((await daemon.stop()).tookMs).toBeLessThan(10_000);
    await proxy.endOutage();

    await using again = await startDaemon(options);
    await again.untilStatus(({ state }) => state === "live", { what: "it to be live again" });
    await untilEntry("the mirror to be in sync", ({ state, index }) => state === "in sync" && index === status.index);
    expect((await again.stop()).tookMs).toBeLessThan(10_000);

    const output = directory.file("restored.db");
    const args = ["restore", "--config", options.configPath, "--output", output, "--destination", "s3"];
    expect(await runBakelite("source", args)).toMatchObject({ status: 0 });
    using restored = new Database(output, { readonly: true });
    const rows = "SELECT number, content FROM work ORDER BY number";
    expect(restored.query(rows).values()).toEqual(database.query(rows).values());
    // What the stop cut off is swept an hour later; nothing that was finished is left behind twice.
    expect((await place.requests.listUploads(place.bucket)).length).toBeLessThanOrEqual(1);
  }, 100_000);
});
