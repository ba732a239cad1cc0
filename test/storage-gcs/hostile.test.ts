import { expect, test } from "bun:test";
import { GcsBackend } from "../../src/storage/gcs/backend.ts";
import { GcsClient } from "../../src/storage/gcs/client.ts";
import { openGcsCredentials } from "../../src/storage/gcs/credentials/provider.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { collect, generated, text } from "../backends/conformance.ts";
import { fc } from "../support/properties.ts";

const BASE = "https://storage.example";
const STATUSES = [200, 201, 204, 206, 301, 308, 400, 401, 403, 404, 409, 410, 412, 416, 429, 499, 500, 503];

/** Answers that look more or less like Google's. */
const answer = fc.record({
  status: fc.constantFrom(...STATUSES),
  headers: fc.record(
    {
      location: fc.constantFrom(
        `${BASE}/x?upload_id=1`,
        "https://elsewhere.example/?upload_id=1",
        "/?upload_id=2",
        "//",
        "",
      ),
      range: fc.constantFrom("bytes=0-1", "bytes=0-8388607", "bytes=0-99999999999999999999", "bytes=5-7", ""),
      "content-range": fc.constantFrom("bytes 0-4/5", "bytes 9-1/0", "bytes */5", "bytes 0-0/1", "x", ""),
      "x-goog-generation": fc.constantFrom("7", "", "x"),
      "x-goog-hash": fc.constantFrom("crc32c=AAAAAA==", "crc32c=,md5=", ""),
      "content-type": fc.constantFrom("text/html", "application/json", ""),
    },
    { requiredKeys: [] },
  ),
  body: fc.oneof(
    fc.string({ maxLength: 30 }),
    fc.json({ maxDepth: 2 }),
    fc.constantFrom(
      '{"name":"app/a","size":"5","timeCreated":"2026-01-01T00:00:00.000Z","generation":"1","crc32c":"AAAAAA=="}',
      '{"items":[{"name":"app/a","size":"5","timeCreated":"2026-01-01T00:00:00.000Z"}],"nextPageToken":"x"}',
      '{"items":[{"name":"","size":"-1","timeCreated":"never"}]}',
      '{"error":{"message":"Object is under active Temporary hold until never","errors":[{"reason":"forbidden"}]}}',
      '{"error":{"code":"x","errors":"y"}}',
      '{"error":{"message":"crc32c does not match","errors":[{}]}}',
      '{"permissions":7}',
    ),
  ),
});

/** A session that says to have two bytes of the first chunk, of which Google takes multiples of 256 KiB. */
const MIDWAY_IN_A_PIECE = [
  { status: 200, headers: { location: `${BASE}/x?upload_id=1` }, body: "" },
  { status: 308, headers: { range: "bytes=0-1" }, body: "" },
] as const;

test("whatever a server answers, a call ends with a result or an error of ours, and no token goes elsewhere", async () => {
  const token = { token: "ya29.secret", expiresMs: Number.MAX_SAFE_INTEGER };
  await fc.assert(
    fc.asyncProperty(fc.array(answer, { minLength: 1, maxLength: 6 }), fc.nat(6), async (answers, verb) => {
      const urls: string[] = [];
      let count = 0;
      const fetch = async (url: string, init: BunFetchRequestInit): Promise<Response> => {
        urls.push(url);
        if (init.body instanceof ReadableStream) await collect(init.body);
        const { status, headers, body } = answers[count++ % answers.length] ?? { status: 500, headers: {}, body: "" };
        return new Response([204, 304].includes(status) ? null : body, { status, headers });
      };
      const options = { serviceAccountFile: undefined, env: {}, timeoutMs: 1000, retries: 0 };
      const credentials = openGcsCredentials(options);
      Object.assign(credentials, { get: async () => token, refresh: async () => token });
      const client = new GcsClient({
        ...{
          base: BASE,
          bucket: "b",
          place: { isSeen: false },
          credentials,
          timeoutMs: 1000,
          retries: 2,
          baseDelayMs: 0,
        },
        fetch,
        // No pause is worth waiting for here.
        clock: { nowMs: () => 0, monotonicMs: () => (count > 40 ? 1e9 : 0) },
        random: () => 0,
      });
      const common = { bucket: "b", prefix: "", serviceAccountFile: undefined, storageClass: undefined };
      const more = {
        changeSetStorageClass: undefined,
        endpoint: BASE,
        caFile: undefined,
        timeoutMs: 1000,
        retries: 2,
        env: {},
      };
      const backend = new GcsBackend({ ...common, ...more }, client);
      const large = { ...generated(1, 9 * 1024 * 1024, 1024 * 1024), sizeBytes: undefined };
      const calls = [
        () => backend.put("app/a", text("12345"), { ifAbsent: true }),
        () => backend.put("app/a", large),
        () => backend.stat("app/a"),
        async () => await collect((await backend.get("app/a")) ?? []),
        () => collect(backend.list("app/")),
        () => backend.delete(["app/a"]),
        () => backend.diagnose(),
      ];
      const [result] = await Promise.allSettled([calls[verb]?.()]);
      if (result?.status === "rejected") {
        expect(result.reason).toBeInstanceOf(BakeliteError);
        expect(result.reason.code).not.toBe("internal");
        expect(Bun.inspect(result.reason, { depth: 10 })).not.toMatch(/ya29|upload_id/);
      }
      for (const url of urls) expect(url).toStartWith(`${BASE}/`);
    }),
    { numRuns: 200, examples: [[[...MIDWAY_IN_A_PIECE], 1]] },
  );
}, 60_000);
