import { describe, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { dirname } from "node:path";
import type { ListOptions, StoredObject } from "../../src/storage/backend.ts";
import { MemoryBackend } from "../../src/storage/memory.ts";
import { withDeadline } from "../support/eventually.ts";
import { unreachable } from "./gated-backend.ts";
import { CHANGE_SET, FULL, Replication } from "./replication.ts";

/** A destination whose listings wait, once that is asked for. */
class HeldListings extends MemoryBackend {
  #held = Promise.withResolvers<void>();
  #reached = Promise.withResolvers<void>();
  #isHolding = false;

  hold(): void {
    this.#isHolding = true;
    this.#held = Promise.withResolvers<void>();
    this.#reached = Promise.withResolvers<void>();
  }

  letGo(): void {
    this.#isHolding = false;
    this.#held.resolve();
  }

  async reached(): Promise<void> {
    await withDeadline(this.#reached.promise, { what: "a listing" });
  }

  override async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<StoredObject> {
    if (this.#isHolding) {
      this.#reached.resolve();
      const aborted = Promise.withResolvers<never>();
      options.signal?.addEventListener("abort", () => aborted.reject(options.signal?.reason), { once: true });
      await Promise.race([this.#held.promise, aborted.promise]);
    }
    yield* super.list(prefix, options);
  }
}

describe("a stop before it is known what is stored", () => {
  for (const continuity of ["proven", "unproven"] as const)
    test(`finds it out and ships what is committed, its continuity ${continuity}`, async () => {
      const backend = new HeldListings();
      await using r = await Replication.begin({ backend });
      await r.makeRows(20);
      await (await r.startSynced()).stop();
      if (continuity === "unproven") await rm(dirname(r.paths.cursor), { recursive: true });
      await r.writer.burst(5);
      backend.hold();
      const daemon = await r.startDaemon();
      await backend.reached();
      await r.writer.burst(5);
      const stopping = daemon.stop();
      backend.letGo();
      expect(await stopping).toEqual({ kind: "stopped", detail: null });
      await r.assertLatestIsLive();
      expect(await r.fulls()).toHaveLength(1);
    });

  test("is over within its patience where the destination does not answer, and says that it does not know", async () => {
    const backend = new HeldListings();
    await using r = await Replication.begin({ backend });
    await r.makeRows(20);
    backend.hold();
    const daemon = await r.startDaemon();
    await backend.reached();
    expect(await daemon.stop(10_000)).toEqual({
      kind: "stopped",
      detail: "stopped before the database was compared with what is stored: the next start does that",
    });
    backend.letGo();
    await r.startSynced();
    await r.assertLatestIsLive();
  });
});

test("a stop at the moment at which following ends attaches once more, and ships what is committed", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  const { follower } = await daemon.shipping();
  daemon.holdBack();
  await r.writer.burst(5);
  follower.capture = () => ({ kind: "fault", fault: "wal-replaced", detail: "said for the test" });
  expect(await daemon.stop()).toEqual({ kind: "stopped", detail: null });
  expect(daemon.log.find(/^following is interrupted/)).toHaveLength(1);
  await r.assertLatestIsLive();
  expect(await r.fulls()).toHaveLength(1);
});

test("a put that fails while it stops is tried again, where the destination has not been failing", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  daemon.holdBack();
  await r.writer.burst(5);
  const put = r.backend.gate("before", CHANGE_SET);
  const stopping = daemon.stop();
  await put.reached();
  put.fail(unreachable());
  expect(await stopping).toEqual({ kind: "stopped", detail: null });
  await r.assertLatestIsLive();
});

test("a stop that ends in an error does not pass for one after which everything is stored", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const daemon = await r.startSynced();
  const { follower } = await daemon.shipping();
  const { close } = follower;
  follower.close = () => {
    close.call(follower);
    throw new Error("said for the test");
  };
  expect(await daemon.stop()).toEqual({
    kind: "stopped",
    detail: "replication was interrupted before the stop: said for the test",
  });
  expect(daemon.log.find(/^replication is interrupted$/, "error")).toHaveLength(1);
});

test("a stop before the first full backup is stored says so", async () => {
  await using r = await Replication.begin();
  await r.makeRows(20);
  const full = r.backend.gate("midway", FULL);
  const daemon = await r.startDaemon();
  await full.reached();
  expect(await daemon.stop()).toEqual({
    kind: "stopped",
    detail: "stopped before the full backup was stored: the next start takes it",
  });
  const next = await r.startSynced();
  expect(await next.stop()).toEqual({ kind: "stopped", detail: null });
  await r.assertLatestIsLive();
});

describe("a stop while there is nothing to follow", () => {
  test("looks once more: a database that was made meanwhile is not passed over", async () => {
    await using r = await Replication.begin({ idle: true });
    const daemon = await r.startDaemon();
    await daemon.until("it to wait", () => daemon.replicator.phase.kind === "waiting");
    await r.startWriter();
    const phase = await daemon.stop();
    const detail = "stopped before the full backup was stored: the next start takes it";
    expect(phase).toEqual({ kind: "stopped", detail: (await r.fulls()).length === 0 ? detail : null });
    await r.startSynced();
    await r.assertLatestIsLive();
  });

  test("has nothing to say where there is no database, and says that one which is not in WAL mode is not backed up", async () => {
    await using r = await Replication.begin({ idle: true });
    const daemon = await r.startDaemon();
    await daemon.until("it to wait", () => daemon.replicator.phase.kind === "waiting");
    expect(await daemon.stop()).toEqual({ kind: "stopped", detail: null });
    await r.startWriter();
    await r.writer.sql("PRAGMA journal_mode=DELETE");
    const next = await r.startDaemon();
    await next.until("it to look", () => next.replicator.phase.kind === "not wal");
    expect(await next.stop()).toEqual({
      kind: "stopped",
      detail: "the database is not backed up: it is not in WAL mode",
    });
  });
});
