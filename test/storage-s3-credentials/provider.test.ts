import { describe, expect, test } from "bun:test";
import {
  type AwsCredentials,
  type CredentialsOptions,
  type CredentialsProvider,
  openCredentials,
} from "../../src/storage/s3/credentials/provider.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { eventually } from "../support/eventually.ts";
import { type Stub, serve } from "./stubs.ts";

const MINUTE_MS = 60_000;
const START_MS = Date.parse("2026-01-01T00:00:00Z");

/** A container service of which the test says what it answers, and a clock that it moves. */
interface Service extends AsyncDisposable {
  readonly stub: Stub;
  readonly provider: CredentialsProvider;
  /** Minutes that the next credentials live. */
  lifeMinutes: number;
  status: number;
  /** Answers wait for it. */
  gate: Promise<void>;
  advance(ms: number): void;
  get(): Promise<string>;
}

function startService(more: Partial<CredentialsOptions> = {}): Service {
  let nowMs = START_MS;
  let issuedCount = 0;
  const stub = serve(async () => {
    await service.gate;
    if (service.status !== 200) return { status: service.status };
    issuedCount++;
    return {
      status: 200,
      body: JSON.stringify({
        AccessKeyId: `A${issuedCount}`,
        SecretAccessKey: "s",
        Token: "t",
        Expiration: new Date(nowMs + service.lifeMinutes * MINUTE_MS).toISOString(),
      }),
    };
  });
  const provider = openCredentials({
    explicit: undefined,
    credentialsFile: undefined,
    profile: undefined,
    region: undefined,
    env: { AWS_CONTAINER_CREDENTIALS_FULL_URI: stub.origin },
    homeDirectory: "/nonexistent",
    clock: { nowMs: () => nowMs, monotonicMs: () => nowMs - START_MS },
    random: () => 0,
    ...more,
  });
  const service: Service = {
    stub,
    provider,
    lifeMinutes: 60,
    status: 200,
    gate: Promise.resolve(),
    advance: (ms) => {
      nowMs += ms;
    },
    get: async () => (await provider.get()).accessKeyId,
    [Symbol.asyncDispose]: () => stub[Symbol.asyncDispose](),
  };
  return service;
}

const askedTimes = (service: Service, count: number) =>
  eventually(() => service.stub.asked.length === count, { what: `the source to be asked ${count} times` });

describe("credentials that expire", () => {
  test("are kept until five minutes before, then renewed without anybody waiting", async () => {
    await using service = startService();
    expect(await service.get()).toBe("A1");
    service.advance(55 * MINUTE_MS - 1);
    expect(await service.get()).toBe("A1");
    const gate = Promise.withResolvers<void>();
    service.gate = gate.promise;
    service.advance(1);
    expect([await service.get(), await service.get()]).toEqual(["A1", "A1"]);
    gate.resolve();
    await eventually(async () => (await service.get()) === "A2", { what: "the renewed credentials" });
    expect(service.stub.asked.length).toBe(2);
  });

  test("are renewed up to a minute later where the jitter says so", async () => {
    await using service = startService({ random: () => 0.999 });
    await service.get();
    service.advance(55 * MINUTE_MS + 50_000);
    await service.get();
    service.advance(10_000);
    await service.get();
    await askedTimes(service, 2);
  });

  test("that live for five minutes are not renewed at once", async () => {
    await using service = startService();
    service.lifeMinutes = 5;
    await service.get();
    service.advance(3 * MINUTE_MS);
    expect(await service.get()).toBe("A1");
    expect(service.stub.asked.length).toBe(1);
  });

  test("go on being used when the source fails, which is asked again later, until they have expired", async () => {
    await using service = startService();
    await service.get();
    service.status = 404;
    service.advance(56 * MINUTE_MS);
    expect(await service.get()).toBe("A1");
    await askedTimes(service, 2);
    for (let i = 0; i < 50; i++) expect(await service.get()).toBe("A1");
    expect(service.stub.asked.length).toBe(2);
    service.advance(4 * MINUTE_MS - 10_000);
    expect(await service.get()).toBe("A1");
    service.advance(10_000);
    await expect(service.get()).rejects.toThrow("status 404");
    await expect(service.get()).rejects.toThrow("status 404");
    service.status = 200;
    expect(await service.get()).toBe("A2");
  });

  test("that come expired are given all the same, and the source is asked at most every 15 s", async () => {
    await using service = startService();
    service.lifeMinutes = -10;
    for (let i = 0; i < 20; i++) expect(await service.get()).toBe("A1");
    expect(service.stub.asked.length).toBe(1);
    service.advance(15_000);
    expect(await service.get()).toBe("A2");
  });
});

describe("one search at a time", () => {
  test("is shared by all that call at once", async () => {
    await using service = startService();
    const gate = Promise.withResolvers<void>();
    service.gate = gate.promise;
    const calls = Array.from({ length: 50 }, () => service.get());
    gate.resolve();
    expect(new Set(await Promise.all(calls))).toEqual(new Set(["A1"]));
    expect(service.stub.asked.length).toBe(1);
  });

  test("a caller that gives up leaves the others to it, and the last one ends it", async () => {
    await using service = startService();
    const gate = Promise.withResolvers<void>();
    service.gate = gate.promise;
    const [one, two] = [new AbortController(), new AbortController()];
    const first = service.provider.get({ signal: one.signal });
    const second = service.provider.get({ signal: two.signal });
    one.abort();
    await expect(first).rejects.toMatchObject({ code: "interrupted" });
    two.abort(new BakeliteError("storage-unreachable", "too late"));
    await expect(second).rejects.toThrow("too late");
    const third = service.get();
    gate.resolve();
    expect(await third).toStartWith("A");
    await expect(service.provider.get({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "interrupted" });
  });
});

describe("refresh after a refusal", () => {
  test("asks again, once for many, and not again for a while however often it is called", async () => {
    await using service = startService();
    const refused: AwsCredentials = await service.provider.get();
    service.advance(10_000);
    const fresh = await Promise.all(Array.from({ length: 20 }, () => service.provider.refresh({ refused })));
    expect(new Set(fresh.map(({ accessKeyId }) => accessKeyId))).toEqual(new Set(["A2"]));
    for (let i = 0; i < 20; i++) expect((await service.provider.refresh()).accessKeyId).toBe("A2");
    expect(service.stub.asked.length).toBe(2);
    service.advance(5000);
    // A refusal that arrives late, of credentials that were replaced by then.
    expect((await service.provider.refresh({ refused })).accessKeyId).toBe("A2");
    expect((await service.provider.refresh()).accessKeyId).toBe("A3");
  });

  test("a failure of it is told, and the source is named only when it is known", async () => {
    await using service = startService();
    expect(service.provider.source).toBe("not looked for yet");
    await service.get();
    expect(service.provider.source).toBe("the container credentials service");
    service.status = 403;
    service.advance(10_000);
    await expect(service.provider.refresh()).rejects.toMatchObject({ code: "storage-denied" });
  });
});
