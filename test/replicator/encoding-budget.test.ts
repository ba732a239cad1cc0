import { expect, test } from "bun:test";
import { PLAINTEXT_SEAL } from "../../src/format/names.ts";
import { keepEncoded } from "../../src/replicator/encoded-object.ts";
import { EncodingBudget } from "../../src/replicator/encoding-budget.ts";
import { withDeadline } from "../support/eventually.ts";

const NEVER = new AbortController().signal;
const LONG_MS = 3600_000;

test("databases encode in the order of asking, and no more at once than the budget has", async () => {
  const budget = new EncodingBudget(10, LONG_MS);
  const first = await budget.take(6, NEVER);
  const order: string[] = [];
  const larger = budget.take(100, NEVER).finally(() => order.push("larger"));
  const small = budget.take(1, NEVER).finally(() => order.push("small"));
  expect(budget.takenBytes).toBe(6);
  first[Symbol.dispose]();
  const whole = await larger;
  expect([budget.takenBytes, order]).toEqual([10, ["larger"]]);
  whole[Symbol.dispose]();
  (await small)[Symbol.dispose]();
  expect(budget.takenBytes).toBe(0);
});

test("a destination that never answers holds up other databases for a bounded time only", async () => {
  const budget = new EncodingBudget(10, 20);
  const stuck = await budget.take(10, NEVER);
  using _ = await withDeadline(budget.take(10, NEVER), { what: "the turn of the other database" });
  // That it ends after all gives nothing back a second time.
  stuck[Symbol.dispose]();
  expect(budget.takenBytes).toBe(10);
});

test("who is told to stop before its turn takes nothing", async () => {
  const budget = new EncodingBudget(10, LONG_MS);
  using _ = await budget.take(10, NEVER);
  const stop = new AbortController();
  const waiting = budget.take(5, stop.signal);
  stop.abort(new Error("stopping"));
  await expect(waiting).rejects.toThrow("stopping");
  expect(budget.takenBytes).toBe(10);
});

test("what is remembered of a stored object does not keep its bytes", async () => {
  const footerEnd = new TextEncoder().encode("etilekab");
  const pieces = (async function* () {
    yield new Uint8Array(100_000);
    yield footerEnd;
  })();
  const { footerSha256 } = await keepEncoded(
    { kind: "change-set", level: 0, first: 1, last: 1, seal: PLAINTEXT_SEAL },
    pieces,
  );
  expect(footerSha256()?.buffer.byteLength).toBe(32);
});
