import { expect, test } from "bun:test";
import { planRestore } from "../../src/replica/plan.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { ClockedBackend } from "./clocked-backend.ts";
import { layInMemory } from "./lay.ts";
import { CHANGES, type Change, openAs, optionsFor, reencrypt, storeHistory } from "./reencrypt-scene.ts";

const NOW_MS = Date.UTC(2026, 0, 1);

test.each(Object.keys(CHANGES) as Change[])(
  "%s: a restore with the old key, below which all is rewritten at any of its calls, gives the same state or names the new seal",
  async (change) => {
    const { from, to } = CHANGES[change];
    const outcomes = { whole: 0, named: 0 };
    for (let call = 0; ; call++) {
      const backend = new ClockedBackend(() => NOW_MS);
      const builder = await storeHistory([backend], from);
      let calls = 0;
      backend.onCall = async () => {
        if (calls++ !== call) return;
        backend.onCall = () => {};
        await reencrypt(optionsFor([backend], CHANGES[change]));
      };
      const file = await latestOrRefusal(backend, from);
      if (calls <= call) break;
      if (file instanceof BakeliteError) {
        expect(file).toMatchObject({
          code: "key-wrong",
          message: expect.stringContaining(to?.fingerprint ?? "not enc"),
        });
        outcomes.named++;
      } else {
        expect(Buffer.compare(file, builder.fileOf(6))).toBe(0);
        outcomes.whole++;
      }
    }
    expect(outcomes.named).toBeGreaterThan(5);
  },
);

async function latestOrRefusal(
  backend: ClockedBackend,
  key: Parameters<typeof openAs>[1],
): Promise<Uint8Array | BakeliteError> {
  try {
    const replica = await openAs([backend], key);
    return (await layInMemory(replica, await planRestore(replica, { kind: "latest" }))).file;
  } catch (error) {
    if (error instanceof BakeliteError) return error;
    throw error;
  }
}
