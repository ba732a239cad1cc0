import { afterAll } from "bun:test";
import { FaultProxy, type FaultRates } from "../faults/proxy.ts";
import { FakeGcsServer, missingForFakeGcsServer } from "../servers/gcs/fake-gcs-server.ts";
import { GcsScene, openGcs } from "../servers/gcs/places.ts";
import { describeBackend, keysOf } from "./conformance.ts";
import { withProvenPuts } from "./proven-puts.ts";

const NO_LINE_BREAKS = "Google takes no line breaks in names";
const TRIED_ONCE = "such a body is tried once, and the line may fail before it";

const scene = await GcsScene.start();
console.log(`note: ran against ${scene.stub.name}`);
afterAll(() => scene[Symbol.asyncDispose]());

describeBackend(
  `gcs on ${scene.stub.name}`,
  async () => {
    const bucket = scene.newBucket();
    return {
      backend: scene.open(bucket, { prefix: "some/prefix" }),
      sibling: scene.open(bucket, { prefix: "some/prefix" }),
      async [Symbol.asyncDispose]() {
        if (scene.stub.sessions.openCount > 0) throw new Error("an upload session is left open");
      },
    };
  },
  { skips: { "keeps control characters in keys": NO_LINE_BREAKS } },
);

const RATES: FaultRates = {
  ...{ refuse: 0.03, "cut-request": 0.03, "lose-answer": 0.03, "cut-head": 0.02, "cut-body": 0.03, truncate: 0.02 },
  ...{ "error-500": 0.02, "error-503": 0.03, "error-429": 0.02 },
};

const proxy = await FaultProxy.start({ targetPort: scene.stub.port, seed: 5 });
proxy.rates = RATES;
afterAll(() => proxy[Symbol.asyncDispose]());

describeBackend(
  `gcs on ${scene.stub.name}, over a flaky line`,
  async () => {
    const bucket = scene.newBucket();
    const open = () =>
      withProvenPuts(scene.open(bucket, { endpoint: proxy.url, retries: 12, timeout: "5s" }), {
        ...{ retries: 0, baseMs: 1, capMs: 1, maxElapsedMs: 30_000 },
      });
    return { backend: open(), sibling: open(), async [Symbol.asyncDispose]() {} };
  },
  {
    skips: {
      "keeps control characters in keys": NO_LINE_BREAKS,
      "leaves nothing of a body that throws midway": TRIED_ONCE,
      "leaves nothing of a large body that throws midway, nor of one that is aborted": TRIED_ONCE,
    },
  },
);

if (missingForFakeGcsServer().length === 0) {
  const fake = await FakeGcsServer.start();
  console.log(`note: ran against ${fake.name}`);
  afterAll(() => fake[Symbol.asyncDispose]());
  let bucketCount = 0;
  describeBackend(
    `gcs on ${fake.name}`,
    async () => {
      const bucket = `bucket-${++bucketCount}`;
      await fake.createBucket(bucket);
      const open = () => openGcs(scene.table(bucket, { endpoint: fake.url, timeout: "20s" }));
      return { backend: open(), sibling: open(), async [Symbol.asyncDispose]() {} };
    },
    {
      skips: {
        "keeps control characters in keys": NO_LINE_BREAKS,
        "stores a large body of unknown size, to be replayed or not":
          "it heeds no condition on a resumable upload, which Google does",
        "lists page by page without a gap": "it cuts a listing off at maxResults and gives no token",
      },
    },
  );
}

/** A bucket of yours at Google, where each case has a prefix of its own and removes what it stored. */
const ownBucket = process.env["BAKELITE_TEST_GCS_BUCKET"] ?? "";
if (ownBucket !== "") {
  console.log("note: ran against a bucket of your own at Google");
  const keyFile = process.env["BAKELITE_TEST_GCS_SERVICE_ACCOUNT_FILE"] ?? "";
  describeBackend(
    "gcs on a bucket of your own",
    async () => {
      const prefix = `bakelite-test-${crypto.randomUUID()}`;
      const table = { type: "gcs", bucket: ownBucket, prefix, service_account_file: keyFile, retries: 5 };
      const open = () => openGcs(table, { baseDelayMs: 500 });
      const backend = open();
      return {
        backend,
        sibling: open(),
        async [Symbol.asyncDispose]() {
          await backend.delete(await keysOf(backend, ""));
        },
      };
    },
    { skips: { "keeps control characters in keys": NO_LINE_BREAKS } },
  );
}
