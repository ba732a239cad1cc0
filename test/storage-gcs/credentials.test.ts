import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { findToken } from "../../src/storage/gcs/credentials/find.ts";
import { openGcsCredentials } from "../../src/storage/gcs/credentials/provider.ts";
import type { GcsCredentialsOptions } from "../../src/storage/gcs/credentials/types.ts";
import type { Clock } from "../../src/util/clock.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { text, textOf } from "../backends/conformance.ts";
import { GcsScene, openGcs } from "../servers/gcs/places.ts";
import { eventually } from "../support/eventually.ts";

const scene = await GcsScene.start();
afterAll(() => scene[Symbol.asyncDispose]());
const { tokens, url } = scene.stub;
const metadataHost = { GCE_METADATA_HOST: new URL(url).host };
const nowhere = { NO_GCE_CHECK: "true" };

beforeEach(() => {
  for (const name of Object.keys(tokens.counts)) tokens.counts[name] = 0;
  tokens.nowMs = () => Date.now();
});

const options = (more: Partial<GcsCredentialsOptions>): GcsCredentialsOptions => ({
  ...{ serviceAccountFile: undefined, env: {}, timeoutMs: 5000, retries: 2, baseDelayMs: 1 },
  ...more,
});

async function found(more: Partial<GcsCredentialsOptions>) {
  return await findToken(options(more), { signal: new AbortController().signal });
}

/** The failure of a search, in which nothing of what is secret may stand. */
async function failureOf(more: Partial<GcsCredentialsOptions>): Promise<BakeliteError> {
  const error = await found(more).then(
    () => null,
    (failure: unknown) => failure,
  );
  if (!(error instanceof BakeliteError)) throw new Error(`expected a failure, and got ${String(error)}`);
  expect(Bun.inspect(error, { depth: 10 })).not.toMatch(
    /BEGIN PRIVATE KEY|MII|client-secret|refresh-|ya29|workload-token/,
  );
  return error;
}

async function written(name: string, content: string): Promise<string> {
  await writeFile(scene.file(name), content);
  return scene.file(name);
}

async function changed(change: (file: Record<string, unknown>) => void): Promise<string> {
  const file: Record<string, unknown> = JSON.parse(await readFile(scene.keyFile, "utf8"));
  change(file);
  return await written(
    `changed-${createHash("sha1").update(JSON.stringify(file)).digest("hex")}.json`,
    JSON.stringify(file),
  );
}

describe("logging in to Google Cloud", () => {
  test("by a service account's key, whose signature is verified", async () => {
    const { source } = await found({ serviceAccountFile: scene.keyFile });
    expect(source).toBe(`the service account backup@project.iam.gserviceaccount.com in ${scene.keyFile}`);
    expect(tokens.counts["token"]).toBe(1);
    const other = JSON.parse(tokens.serviceAccount("other"));
    const forged = await changed((file) => {
      file["private_key"] = other.private_key;
    });
    expect(await failureOf({ serviceAccountFile: forged })).toMatchObject({ code: "storage-denied" });
  });

  test("by a person's login, as gcloud leaves it", async () => {
    const folder = scene.file("gcloud");
    await mkdir(folder, { recursive: true });
    await writeFile(`${folder}/application_default_credentials.json`, tokens.authorizedUser("anna"));
    expect((await found({ env: { CLOUDSDK_CONFIG: folder } })).source).toContain("the login in");
    const home = scene.file("home");
    await mkdir(`${home}/.config/gcloud`, { recursive: true });
    await writeFile(`${home}/.config/gcloud/application_default_credentials.json`, tokens.authorizedUser("anna"));
    expect((await found({ env: { HOME: home } })).source).toContain(`the login in ${home}`);
    expect(tokens.counts["token"]).toBe(2);
  });

  test.each([true, false])("by a workload's own token, impersonating an account: %p", async (impersonates) => {
    await written("subject.json", JSON.stringify({ token: tokens.subjectToken }));
    const file = await written("external.json", tokens.externalAccount(scene.file("subject.json"), impersonates));
    const { secret } = await found({ env: { GOOGLE_APPLICATION_CREDENTIALS: file } });
    const email = impersonates ? "impersonated" : "workload";
    expect(tokens.whoHas(`Bearer ${secret.token}`)?.email).toBe(email);
    await written("subject.json", JSON.stringify({ token: "stolen" }));
    expect(await failureOf({ serviceAccountFile: file })).toMatchObject({
      code: "storage-denied",
      hint: expect.stringContaining("workload identity pool"),
    });
    await written("subject.json", JSON.stringify({ other: "x" }));
    expect((await failureOf({ serviceAccountFile: file })).message).toContain('has no "token"');
  });

  test("by the metadata server of the machine", async () => {
    const { source, secret } = await found({ env: metadataHost });
    expect(source).toBe("the metadata server of this machine");
    expect(tokens.whoHas(`Bearer ${secret.token}`)?.email).toBe("machine");
  });

  test("takes the first source that is there, and never goes on from a broken one", async () => {
    const user = await written("user.json", tokens.authorizedUser("anna"));
    const home = scene.file("ordered");
    await mkdir(`${home}/.config/gcloud`, { recursive: true });
    await writeFile(`${home}/.config/gcloud/application_default_credentials.json`, tokens.authorizedUser("home"));
    const all = { ...metadataHost, HOME: home, GOOGLE_APPLICATION_CREDENTIALS: user };
    expect((await found({ serviceAccountFile: scene.keyFile, env: all })).source).toContain("service account");
    expect((await found({ env: all })).source).toContain(user);
    expect((await found({ env: { ...all, GOOGLE_APPLICATION_CREDENTIALS: "" } })).source).toContain(home);
    await rm(`${home}/.config`, { recursive: true });
    expect((await found({ env: { ...metadataHost, HOME: home } })).source).toContain("metadata");
    const broken = await failureOf({ env: { ...all, GOOGLE_APPLICATION_CREDENTIALS: "/nowhere/key.json" } });
    expect(broken).toMatchObject({ code: "storage-denied", subject: "/nowhere/key.json" });
    expect(broken.hint).toContain("GOOGLE_APPLICATION_CREDENTIALS");
  });

  test("says where it looked when there is nothing", async () => {
    const failure = await failureOf({ env: { HOME: "/nowhere", ...nowhere } });
    expect(failure.message).toBe("cannot log in to Google Cloud: there are no credentials");
    expect(failure.hint).toContain("/nowhere/.config/gcloud/application_default_credentials.json");
  });

  test.each([
    ["no JSON", () => "not json", "is not one of Google's"],
    ["another kind", () => '{"type":"impersonated_service_account"}', 'is of type "impersonated_service_account"'],
    ["fields missing", () => '{"type":"service_account"}', "lacks `client_email`, `private_key`"],
    [
      "a token from elsewhere",
      () => tokens.externalAccount("/x", false).replace('"file"', '"url"'),
      "gets its token by other means than a file",
    ],
    [
      "an address in clear",
      () => tokens.externalAccount("/x", false).replace(/"token_url":"[^"]*"/, '"token_url":"http://evil.example/"'),
      "has a `token_url` that is no https address",
    ],
    [
      "no key",
      () => '{"type":"service_account","client_email":"a","private_key":"MIIsecret"}',
      "holds no private key that can be used",
    ],
  ])("says what is wrong with a credential file: %s", async (_, content, message) => {
    const failure = await failureOf({ serviceAccountFile: await written("broken.json", content()) });
    expect(failure).toMatchObject({ code: "storage-denied", message: expect.stringContaining(message) });
    expect(failure.hint).toBeString();
  });

  test("says that the clock is wrong when that is why", async () => {
    const clock = { nowMs: () => Date.now() - 3 * 3600_000, monotonicMs: () => performance.now() };
    expect(await failureOf({ serviceAccountFile: scene.keyFile, clock })).toMatchObject({
      code: "storage-denied",
      message: "cannot log in to Google Cloud: this machine's clock and Google's differ too much",
    });
  });

  test("a key that was deleted is denied, a service that is down is unreachable and tried again", async () => {
    const gone = await scene.keyFileOf("gone", []);
    tokens.deleteKey("key-of-gone");
    expect(await failureOf({ serviceAccountFile: gone })).toMatchObject({
      code: "storage-denied",
      message: expect.stringContaining("does not exist any more"),
    });
    tokens.failNext = 2;
    expect((await found({ serviceAccountFile: scene.keyFile })).secret.token).toStartWith("ya29.");
    tokens.failNext = 3;
    expect(await failureOf({ serviceAccountFile: scene.keyFile })).toMatchObject({ code: "storage-unreachable" });
    const lost = await changed((file) => {
      file["token_uri"] = "http://127.0.0.1:9/token";
    });
    expect(await failureOf({ serviceAccountFile: lost })).toMatchObject({ code: "storage-unreachable" });
  });
});

describe("an access token", () => {
  test("is asked for once for all destinations, however many", async () => {
    const keyFile = await scene.keyFileOf("shared", []);
    const bucket = scene.newBucket();
    const backends = Array.from({ length: 50 }, (_, i) =>
      openGcs({ ...scene.table(bucket, { prefix: `p${i}` }), service_account_file: keyFile }),
    );
    await Promise.all(backends.map((backend) => backend.put("app/a", text("a"))));
    expect(tokens.counts["token"]).toBe(1);
  });

  test("is renewed before it expires, while the old one still serves", async () => {
    const clock = steppedClock();
    const credentials = openGcsCredentials(options({ serviceAccountFile: scene.keyFile, clock, random: () => 0 }));
    const first = await credentials.get();
    clock.step(54 * 60_000);
    expect(await credentials.get()).toBe(first);
    expect(tokens.counts["token"]).toBe(1);
    clock.step(2 * 60_000);
    expect(await credentials.get()).toBe(first);
    await eventually(async () => (await credentials.get()).token !== first.token, { what: "another token" });
    expect(tokens.counts["token"]).toBe(2);
  });

  test("that is refused is renewed once, and a request that is refused again is denied", async () => {
    const clock = steppedClock();
    const credentials = openGcsCredentials(options({ serviceAccountFile: scene.keyFile, clock }));
    const backend = scene.open(scene.newBucket(), {}, { credentials });
    await backend.put("app/a", text("a"));
    tokens.revokeAll();
    // It was given just now, and is asked for at most every few seconds.
    await expect(backend.stat("app/a")).rejects.toMatchObject({
      code: "storage-denied",
      message: expect.stringContaining("the access token was refused"),
      hint: expect.stringContaining(scene.keyFile),
    });
    expect(tokens.counts["token"]).toBe(1);
    clock.step(10_000);
    expect(await textOf(backend, "app/a")).toBe("a");
    expect(tokens.counts["token"]).toBe(2);
  });
});

/** A clock that goes on by itself and can be pushed; the service's goes with it. */
function steppedClock(): Clock & { step(ms: number): void } {
  let aheadMs = 0;
  tokens.nowMs = () => Date.now() + aheadMs;
  return {
    nowMs: () => Date.now() + aheadMs,
    monotonicMs: () => performance.now() + aheadMs,
    step(ms) {
      aheadMs += ms;
    },
  };
}
