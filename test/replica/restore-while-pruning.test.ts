import { expect, test } from "bun:test";
import { planRestore } from "../../src/replica/plan.ts";
import { seededRandom } from "../support/random.ts";
import { ReplicaBuilder } from "./builder.ts";
import { ClockedBackend } from "./clocked-backend.ts";
import { layInMemory } from "./lay.ts";
import { compactBuilt, KEEP_ALL, openBuilt, pruneBuilt } from "./upkeep.ts";

const START_MS = Date.UTC(2026, 0, 1);
const HOUR_MS = 3_600_000;

/** A replica of two full backups and many change-sets, all of them as old as can be merged. */
class Scene {
  nowMs = START_MS;
  readonly backend = new ClockedBackend(() => this.nowMs);
  readonly random = seededRandom(77);
  readonly builder = new ReplicaBuilder({ backends: [this.backend], random: this.random, startMs: START_MS });

  async write(count: number, spacingMs: number): Promise<void> {
    const { builder, random } = this;
    for (let i = 0; i < count; i++) {
      this.passTime(spacingMs);
      await builder.storeChangeSet(builder.commitRandom(2, random.integer(4, 20)).index);
    }
  }

  passTime(ms: number): void {
    this.nowMs += ms;
    this.builder.passTime(ms);
  }

  async begin(): Promise<void> {
    this.builder.beginChain(Array.from({ length: 8 }, () => this.builder.randomImage()));
    await this.builder.storeFull(1);
    await this.write(20, 7_000);
    await this.builder.storeFull(21);
    await this.write(30, 7_000);
    this.passTime(HOUR_MS);
  }

  /** Merges everything, and an hour later deletes what it was merged from and what the newest full backup makes superfluous. */
  async sweep(): Promise<number> {
    const { backend, builder, random } = this;
    await compactBuilt(builder, [backend], random, { nowMs: this.nowMs });
    this.passTime(HOUR_MS);
    await this.write(1, 0);
    const policy = { ...KEEP_ALL, maxBackups: 1 };
    return (await pruneBuilt(builder, backend, { nowMs: this.nowMs, policy })).deleted.length;
  }
}

test("a restore below which everything is merged and deleted at any of its calls lists again and gives the same state", async () => {
  let interrupted = 0;
  for (let call = 0; call < 200; call++) {
    const scene = new Scene();
    const { builder, backend } = scene;
    await scene.begin();
    const { index } = builder.newest;
    const replica = await openBuilt(builder, backend);
    let calls = 0;
    let deleted = 0;
    backend.onCall = async () => {
      if (calls++ !== call) return;
      backend.onCall = () => {};
      deleted = await scene.sweep();
    };
    const plan = await planRestore(replica, { kind: "index", index });
    const { file, laid } = await layInMemory(replica, plan);
    expect([laid.plan.index, Buffer.compare(file, builder.fileOf(index))]).toEqual([index, 0]);
    if (calls <= call) break;
    expect(deleted).toBeGreaterThan(50);
    interrupted++;
  }
  expect(interrupted).toBeGreaterThan(20);
}, 60_000);
