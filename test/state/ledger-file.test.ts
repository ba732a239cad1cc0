import { expect, test } from "bun:test";
import {
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { LEDGER_ENTRY_BYTES, LedgerFile, replaceLedger } from "../../src/state/ledger-file.ts";
import { encodeLedgerSlot, LEDGER_SLOT_BYTES, type LedgerSlot, parseLedgerSlot } from "../../src/state/ledger-slot.ts";
import { fc } from "../support/properties.ts";
import { seededRandom } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const hex = (digits: number) =>
  fc.string({ unit: fc.constantFrom(..."0123456789abcdef"), minLength: digits, maxLength: digits });

function ledgerSlot(): fc.Arbitrary<LedgerSlot> {
  return fc.record({
    index: fc.maxSafeNat(),
    lineage: hex(64),
    chain: hex(32),
    sizePages: fc.integer({ min: 0, max: 0xffff_fffe }),
    pageSizeBytes: fc.integer({ min: 9, max: 16 }).map((bits) => 2 ** bits),
    digest: fc.option(hex(32)),
    complete: fc.boolean(),
  });
}

function slotAt(index: number): LedgerSlot {
  const digits = index.toString(16);
  return {
    index,
    lineage: digits.padStart(64, "0"),
    chain: "c".repeat(32),
    sizePages: 10,
    pageSizeBytes: 4096,
    digest: null,
    complete: true,
  };
}

/** Sorted, distinct page numbers, in clusters and far apart. */
function pageNumbers(max: number): fc.Arbitrary<Uint32Array> {
  const cluster = fc.tuple(
    fc.integer({ min: 1, max }),
    fc.integer({ min: 1, max: 40 }),
    fc.integer({ min: 1, max: 3 }),
  );
  return fc.array(cluster, { maxLength: 6 }).map((clusters) => {
    const pages = new Set<number>();
    for (const [first, length, step] of clusters)
      for (let i = 0; i < length; i++) if (first + i * step <= max) pages.add(first + i * step);
    return Uint32Array.from([...pages].toSorted((a, b) => a - b));
  });
}

function hashesFor(pages: Uint32Array, seed: number): Uint8Array {
  return seededRandom(seed).bytes(pages.length * LEDGER_ENTRY_BYTES);
}

/** The same ledger as a map, written as simply as possible. */
class ModelLedger {
  readonly entries = new Map<number, Uint8Array>();

  write(pages: Uint32Array, hashes: Uint8Array): void {
    for (const [i, page] of pages.entries()) this.entries.set(page, hashes.slice(i * 16, i * 16 + 16));
  }

  read(pages: Uint32Array): Uint8Array {
    return Uint8Array.from(Buffer.concat([...pages].map((page) => this.entries.get(page) ?? new Uint8Array(16))));
  }

  xor(first: number, last: number, skip: number): Uint8Array {
    const sum = new Uint8Array(16);
    for (const [page, hash] of this.entries)
      if (page >= first && page <= last && page !== skip)
        for (const [i, byte] of hash.entries()) sum[i] = (sum[i] ?? 0) ^ byte;
    return sum;
  }

  truncate(sizePages: number): void {
    for (const page of this.entries.keys()) if (page > sizePages) this.entries.delete(page);
  }
}

test("a slot is parsed as it was encoded, and no flipped bit or missing byte passes", () => {
  fc.assert(
    fc.property(
      ledgerSlot(),
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      fc.nat({ max: LEDGER_SLOT_BYTES * 8 - 1 }),
      (slot, sequence, bit) => {
        const bytes = encodeLedgerSlot(slot, sequence);
        expect(bytes).toHaveLength(LEDGER_SLOT_BYTES);
        expect(parseLedgerSlot(bytes)).toEqual({ slot, sequence });
        bytes[bit >>> 3] = (bytes[bit >>> 3] ?? 0) ^ (1 << (bit & 7));
        expect(parseLedgerSlot(bytes)).toBeNull();
        expect(parseLedgerSlot(bytes.subarray(0, bit >>> 3))).toBeNull();
      },
    ),
  );
  expect(parseLedgerSlot(new Uint8Array(LEDGER_SLOT_BYTES))).toBeNull();
});

test("reads, writes, shrinks and sums agree with a map in memory, over any history and reopening", async () => {
  const max = 3000;
  const step = fc.oneof(
    fc.record({ do: fc.constant("write" as const), pages: pageNumbers(max), seed: fc.nat() }),
    fc.record({
      do: fc.constant("range" as const),
      first: fc.integer({ min: 1, max }),
      count: fc.nat({ max: 300 }),
      seed: fc.nat(),
    }),
    fc.record({ do: fc.constant("truncate" as const), sizePages: fc.nat({ max }) }),
    fc.record({ do: fc.constant("reopen" as const) }),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 12 }),
      pageNumbers(max + 500),
      fc.nat({ max }),
      fc.nat({ max: 4000 }),
      async (steps, asked, first, skip) => {
        await using directory = await temporaryDirectory("ledger");
        const path = directory.file("app.pages");
        const model = new ModelLedger();
        let ledger = await LedgerFile.open(path, { create: true });
        try {
          for (const action of steps) {
            if (action.do === "write") {
              const hashes = hashesFor(action.pages, action.seed);
              ledger.write(action.pages, hashes);
              model.write(action.pages, hashes);
            } else if (action.do === "range") {
              const pages = Uint32Array.from({ length: action.count }, (_, i) => action.first + i);
              const hashes = hashesFor(pages, action.seed);
              ledger.writeRange(action.first, hashes);
              model.write(pages, hashes);
            } else if (action.do === "truncate") {
              ledger.truncate(action.sizePages);
              model.truncate(action.sizePages);
            } else {
              await ledger.close();
              ledger = await LedgerFile.open(path);
            }
          }
          expect(ledger.read(asked)).toEqual(model.read(asked));
          const range = Uint32Array.from({ length: 700 }, (_, i) => first + 1 + i);
          expect(ledger.readRange(first + 1, 700)).toEqual(model.read(range));
          expect(ledger.xorRange(1, max, skip)).toEqual(model.xor(1, max, skip));
          expect(ledger.xorRange(first + 1, first + 200, skip)).toEqual(model.xor(first + 1, first + 200, skip));
          expect(ledger.slot).toBeNull();
        } finally {
          await ledger.close();
        }
      },
    ),
    { numRuns: 60 },
  );
});

test("a sum over several pieces of the file leaves out the skipped page wherever it lies", async () => {
  await using directory = await temporaryDirectory("ledger");
  await using ledger = await LedgerFile.open(directory.file("app.pages"), { create: true });
  const pieceEntries = 65_536;
  const pages = Uint32Array.from([
    1,
    2,
    pieceEntries,
    pieceEntries + 1,
    pieceEntries + 2,
    2 * pieceEntries + 1,
    200_000,
  ]);
  const hashes = hashesFor(pages, 1);
  const model = new ModelLedger();
  ledger.write(pages, hashes);
  model.write(pages, hashes);
  for (const skip of [0, 3, ...pages]) {
    expect(ledger.xorRange(1, 200_000, skip)).toEqual(model.xor(1, 200_000, skip));
    expect(ledger.xorRange(2, 2 * pieceEntries, skip)).toEqual(model.xor(2, 2 * pieceEntries, skip));
  }
  expect(ledger.xorRange(5, 4, 0)).toEqual(new Uint8Array(16));
});

test("the newest committed slot is found again, whichever place it is in", async () => {
  await using directory = await temporaryDirectory("ledger");
  const path = directory.file("app.pages");
  for (let index = 1; index <= 5; index++) {
    await using ledger = await LedgerFile.open(path, { create: true });
    expect(ledger.slot).toEqual(index === 1 ? null : slotAt(index - 1));
    await ledger.commitSlot(slotAt(index));
    expect(ledger.slot).toEqual(slotAt(index));
  }
});

test("a slot write cut anywhere leaves the slot before it", async () => {
  await using directory = await temporaryDirectory("ledger");
  const path = directory.file("app.pages");
  await using ledger = await LedgerFile.open(path, { create: true });
  for (let index = 1; index <= 4; index++) {
    const before = existsSync(path) ? readFileSync(path) : Buffer.alloc(0);
    await ledger.commitSlot(slotAt(index));
    const after = readFileSync(path);
    for (let written = 0; written <= after.byteLength; written += 31) {
      const torn = Buffer.alloc(after.byteLength);
      before.copy(torn);
      after.copy(torn, 0, 0, written);
      writeFileSync(directory.file("torn.pages"), torn);
      await using reopened = await LedgerFile.open(directory.file("torn.pages"));
      const expected = index === 1 ? null : slotAt(index - 1);
      expect([JSON.stringify(expected), JSON.stringify(slotAt(index))]).toContain(JSON.stringify(reopened.slot));
    }
  }
});

test("after a crash, replaying the entries since the slot mends any mixture of old and new ones", async () => {
  const max = 400;
  const batches = fc.array(fc.record({ pages: pageNumbers(max), seed: fc.nat() }), { minLength: 1, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(batches, fc.nat(), fc.nat(), async (history, committedUpTo, mixSeed) => {
      await using directory = await temporaryDirectory("ledger");
      const path = directory.file("app.pages");
      const committed = committedUpTo % history.length;
      const model = new ModelLedger();
      let durable: Buffer;
      {
        await using ledger = await LedgerFile.open(path, { create: true });
        await ledger.commitSlot(slotAt(0));
        durable = readFileSync(path);
        for (const [i, batch] of history.entries()) {
          const hashes = hashesFor(batch.pages, batch.seed);
          ledger.write(batch.pages, hashes);
          model.write(batch.pages, hashes);
          if (i >= committed) continue;
          await ledger.commitSlot(slotAt(i + 1));
          durable = readFileSync(path);
        }
      }
      // The power fails: of what was written since the last commit, each 16 bytes are on the disk or they are not.
      const written = readFileSync(path);
      const random = seededRandom(mixSeed);
      const left = Buffer.alloc(Math.max(durable.byteLength, written.byteLength));
      durable.copy(left);
      for (let offset = 2 * LEDGER_SLOT_BYTES; offset < written.byteLength; offset += 16)
        if (random.chance(0.5)) written.copy(left, offset, offset, offset + 16);
      writeFileSync(path, left);

      await using ledger = await LedgerFile.open(path);
      expect(ledger.slot).toEqual(slotAt(committed));
      for (const batch of history.slice(ledger.slot?.index ?? 0))
        ledger.write(batch.pages, hashesFor(batch.pages, batch.seed));
      const all = Uint32Array.from({ length: max }, (_, i) => i + 1);
      expect(ledger.read(all)).toEqual(model.read(all));
    }),
    { numRuns: 60 },
  );
});

test("damaged slots give no slot, and any file at all opens", async () => {
  await using directory = await temporaryDirectory("ledger");
  const path = directory.file("app.pages");
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), async (bytes) => {
      writeFileSync(path, bytes);
      await using ledger = await LedgerFile.open(path);
      expect(ledger.slot).toBeNull();
      expect(ledger.read(Uint32Array.of(1, 500))).toHaveLength(32);
    }),
    { numRuns: 50 },
  );
  writeFileSync(path, "");
  {
    await using ledger = await LedgerFile.open(path);
    await ledger.commitSlot(slotAt(1));
    await ledger.commitSlot(slotAt(2));
  }
  const bytes = readFileSync(path);
  const spoil = (position: number) => {
    const at = position * LEDGER_SLOT_BYTES + 24;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(path, bytes);
  };
  const slotNow = async () => {
    await using ledger = await LedgerFile.open(path);
    return ledger.slot;
  };
  spoil(1);
  expect(await slotNow()).toEqual(slotAt(1));
  spoil(0);
  expect(await slotNow()).toBeNull();
});

test("the largest sizes cost no memory and no time", async () => {
  await using directory = await temporaryDirectory("ledger");
  await using ledger = await LedgerFile.open(directory.file("app.pages"), { create: true });
  const last = 0xffff_fffe;
  await ledger.commitSlot({ ...slotAt(1), sizePages: last });
  expect(ledger.read(Uint32Array.of(1, last))).toEqual(new Uint8Array(32));
  expect(ledger.xorRange(1, last, 0)).toEqual(new Uint8Array(16));
  ledger.truncate(last);
  expect(statSync(directory.file("app.pages")).size).toBeLessThan(2048);
  ledger.write(Uint32Array.of(last), new Uint8Array(16).fill(7));
  expect(ledger.read(Uint32Array.of(1, last)).subarray(16)).toEqual(new Uint8Array(16).fill(7));
  // The file is sparse: one block of the disk for an entry at 64 GiB.
  expect(statSync(directory.file("app.pages")).blocks).toBeLessThan(100);
});

test("page numbers must ascend from 1, and each has its hash", async () => {
  await using directory = await temporaryDirectory("ledger");
  await using ledger = await LedgerFile.open(directory.file("app.pages"), { create: true });
  for (const pages of [[0], [2, 1], [3, 3]]) expect(() => ledger.read(Uint32Array.from(pages))).toThrow("invariant");
  expect(() => ledger.write(Uint32Array.of(1), new Uint8Array(15))).toThrow("invariant");
  expect(() => ledger.readRange(0xffff_ffff, 2)).toThrow("invariant");
  expect(ledger.read(new Uint32Array(0))).toEqual(new Uint8Array(0));
});

test("a missing ledger is not-found, and is created only when asked; fresh begins anew", async () => {
  await using directory = await temporaryDirectory("ledger");
  const path = directory.file("app.pages");
  await expect(LedgerFile.open(path)).rejects.toMatchObject({ code: "not-found", subject: path });
  {
    await using ledger = await LedgerFile.open(path, { create: true });
    ledger.write(Uint32Array.of(1), new Uint8Array(16).fill(1));
    await ledger.commitSlot(slotAt(1));
  }
  expect(statSync(path).mode & 0o7777).toBe(0o600);
  {
    await using kept = await LedgerFile.open(path, { create: true });
    expect(kept.slot).toEqual(slotAt(1));
  }
  await using fresh = await LedgerFile.open(path, { fresh: true });
  expect(fresh.slot).toBeNull();
  expect(fresh.read(Uint32Array.of(1))).toEqual(new Uint8Array(16));
});

test("a ledger is never opened through a link", async () => {
  await using directory = await temporaryDirectory("ledger");
  writeFileSync(directory.file("elsewhere"), "precious");
  symlinkSync(directory.file("elsewhere"), directory.file("app.pages"));
  await expect(LedgerFile.open(directory.file("app.pages"), { fresh: true })).rejects.toMatchObject({ code: "io" });
  expect(readFileSync(directory.file("elsewhere"), "utf8")).toBe("precious");
});

test("a ledger built beside the old one replaces it, and stays open meanwhile", async () => {
  await using directory = await temporaryDirectory("ledger");
  const path = directory.file("app.pages");
  {
    await using old = await LedgerFile.open(path, { create: true });
    await old.commitSlot(slotAt(1));
  }
  await using built = await LedgerFile.open(`${path}.new`, { fresh: true });
  built.write(Uint32Array.of(3), new Uint8Array(16).fill(3));
  await built.commitSlot(slotAt(9));
  await replaceLedger(path, `${path}.new`);
  expect(existsSync(`${path}.new`)).toBe(false);
  await built.commitSlot(slotAt(10));
  await using reopened = await LedgerFile.open(path);
  expect(reopened.slot).toEqual(slotAt(10));
  expect(reopened.read(Uint32Array.of(3))).toEqual(new Uint8Array(16).fill(3));
  await expect(replaceLedger(path, `${path}.new`)).rejects.toMatchObject({ code: "io", subject: path });
});

test.skipIf(process.geteuid?.() !== 0)("run as root, a new ledger belongs to the owner of its directory", async () => {
  await using directory = await temporaryDirectory("ledger");
  mkdirSync(directory.file(".bakelite"));
  chownSync(directory.file(".bakelite"), 12_345, 23_456);
  await using _ledger = await LedgerFile.open(directory.file(".bakelite", "app.pages"), { create: true });
  const { uid, gid } = statSync(directory.file(".bakelite", "app.pages"));
  expect([uid, gid]).toEqual([12_345, 23_456]);
});

test("a ledger cut short reads zeros where nothing is left", async () => {
  await using directory = await temporaryDirectory("ledger");
  const path = directory.file("app.pages");
  {
    await using ledger = await LedgerFile.open(path, { create: true });
    ledger.writeRange(1, new Uint8Array(160).fill(9));
    await ledger.commitSlot(slotAt(1));
  }
  copyFileSync(path, `${path}.copy`);
  truncateSync(`${path}.copy`, 1024 + 16 * 3 + 5);
  await using ledger = await LedgerFile.open(`${path}.copy`);
  expect(ledger.slot).toEqual(slotAt(1));
  const entries = ledger.readRange(1, 5);
  expect(entries.subarray(0, 32)).toEqual(new Uint8Array(32).fill(9));
  expect(entries.subarray(48)).toEqual(new Uint8Array(32));
});
