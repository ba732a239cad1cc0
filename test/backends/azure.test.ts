// deadline: 400 s
import { afterAll, describe, expect, test } from "bun:test";
import { FaultProxy, type FaultRates } from "../faults/proxy.ts";
import { AZURITE_ACCOUNT, accountSas, openAt, openTable, startAzurite } from "../servers/azurite.ts";
import { bytesOf, describeBackend, generated, keysOf, text } from "./conformance.ts";

const MIB = 2 ** 20;
const SKIPS = {
  "keeps odd characters in keys":
    "its listing sorts names by UTF-16 units and not by bytes, which is refused as out of order",
  "keeps every printable character of ASCII in a key": "Azure takes a backslash for a slash, so it is refused",
  "keeps control characters in keys": "its listings are XML, which has none, so they are refused",
};
const TAKES_LONG = "many megabytes or requests, each of which meets its faults in other cases";
const TRIED_ONCE = "such a body is tried once, and the line may fail before it";

/** Lost answers are left out: the suite asks who was first, which a retry after a lost answer cannot know. */
const FAULTS: FaultRates = {
  refuse: 0.02,
  "cut-request": 0.03,
  "cut-head": 0,
  "error-500": 0.03,
  "error-503": 0.04,
  "error-429": 0.02,
};
const READING: FaultRates = { ...FAULTS, "cut-head": 0.03, "cut-body": 0.04, truncate: 0.02 };

const azurite = await startAzurite();
if ("lacking" in azurite) {
  console.log(`note: nothing ran against Azurite: ${azurite.lacking}`);
  test.skip(`the suite on Azurite (${azurite.lacking})`, () => {});
} else {
  afterAll(() => azurite[Symbol.asyncDispose]());

  describeBackend(
    `azure on ${azurite.name}`,
    async () => {
      const container = await azurite.newContainer();
      const open = () => openAt(azurite.endpoint, container, { prefix: "some/place" });
      return { backend: open(), sibling: open(), async [Symbol.asyncDispose]() {} };
    },
    { skips: SKIPS },
  );

  describe("over a flaky line", () => {
    describeBackend(
      `azure on ${azurite.name} with retries`,
      async () => {
        const container = await azurite.newContainer();
        const proxy = await FaultProxy.start({ targetPort: azurite.port, seed: 5 });
        // A listing is a GET with the container for its key.
        proxy.rates = (operation) => (["get", "head"].includes(operation) ? READING : FAULTS);
        const open = () =>
          openAt(`${proxy.url}/${AZURITE_ACCOUNT}`, container, { retries: 12, timeout: "5s" }, { baseDelayMs: 20 });
        return { backend: open(), sibling: open(), [Symbol.asyncDispose]: () => proxy[Symbol.asyncDispose]() };
      },
      {
        skips: {
          ...SKIPS,
          "streams a body of 64 MiB in and out without holding it": TAKES_LONG,
          "lists ascending by the bytes of the keys, below a prefix, after a key": TAKES_LONG,
          "lists page by page without a gap": TAKES_LONG,
          "deletes many, and counts as deleted what is already gone": TAKES_LONG,
          "refuses a body that is not as long as it said": TAKES_LONG,
          "a stream that nobody reads holds nothing": TAKES_LONG,
          "leaves nothing of a body that throws midway": TRIED_ONCE,
          "leaves nothing of a large body that throws midway, nor of one that is aborted": TRIED_ONCE,
        },
      },
    );
  });

  test("a shared access signature is good for it, and a wrong key or a missing container is told", async () => {
    const container = await azurite.newContainer();
    const place = { type: "azure", account: AZURITE_ACCOUNT, container, endpoint: azurite.endpoint };
    const signed = { ...place, sas_token: accountSas("rwdlc") };
    const backend = openTable(signed);
    const bytes = Buffer.concat(await Array.fromAsync(generated(9, 9 * MIB, MIB).open()));
    expect(await backend.put("a/b c+d", generated(9, 9 * MIB, MIB), { ifAbsent: true })).toBe("stored");
    expect(await backend.put("a/b c+d", text("x"), { ifAbsent: true })).toBe("exists");
    expect(await bytesOf(backend, "a/b c+d")).toEqual(Uint8Array.from(bytes));
    expect(await keysOf(backend, "")).toEqual(["a/b c+d"]);
    await expect(openTable({ ...place, sas_token: accountSas("rl") }).delete(["a/b c+d"])).rejects.toMatchObject({
      code: "storage-denied",
      hint: expect.stringContaining("`d` in a signature"),
    });
    await backend.delete(["a/b c+d", "gone"]);
    expect(await keysOf(backend, "")).toEqual([]);
    const wrongKey = Buffer.from("another key, wrong").toString("base64");
    const wrong = openAt(azurite.endpoint, container, { account_key: wrongKey });
    await expect(wrong.stat("a")).rejects.toMatchObject({ code: "storage-denied" });
    await expect(openAt(azurite.endpoint, "nothing-here").stat("a")).rejects.toMatchObject({
      hint: expect.stringContaining("create the container"),
    });
  });

  test("full backups and the rest go to their tiers", async () => {
    const container = await azurite.newContainer();
    const tiers = { storage_class: "Cool", change_set_storage_class: "Hot" };
    const backend = openAt(azurite.endpoint, container, tiers);
    await backend.put("small", text("x"));
    await backend.put("long", text("x"), { longLived: true });
    await backend.put("blocks", generated(1, 9 * MIB, MIB), { longLived: true });
    const tierOf = async (key: string) =>
      (await azurite.send("HEAD", `${container}/${key}`, {})).headers.get("x-ms-access-tier");
    expect(await Promise.all(["small", "long", "blocks"].map(tierOf))).toEqual(["Hot", "Cool", "Cool"]);
    // What an operator moves to the archive by hand is told for what it is.
    await azurite.send("PUT", `${container}/long`, { comp: "tier" }, { headers: { "x-ms-access-tier": "Archive" } });
    await expect(bytesOf(backend, "long")).rejects.toMatchObject({ message: expect.stringContaining("archive tier") });
  });

  test("names that Azure would keep as others are refused", async () => {
    const backend = openAt(azurite.endpoint, await azurite.newContainer());
    for (const key of ["a\\b", "a\u0001", "a\ufffe"])
      await expect(backend.put(key, text("x"))).rejects.toMatchObject({ code: "storage-denied" });
  });

  test("doctor's questions are answered by a real server", async () => {
    const backend = openAt(azurite.endpoint, await azurite.newContainer());
    const found = (await backend.diagnose?.()) ?? [];
    expect(found.map(({ check }) => check)).toContain("immutability");
    expect(found.filter(({ level }) => level === "fail")).toEqual([]);
    expect(found.find(({ check }) => check === "clock")?.message).toContain("agrees");
  });
}
