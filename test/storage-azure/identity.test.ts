import { expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { openCredentials } from "../../src/storage/azure/credentials.ts";
import { BakeliteError, describeError } from "../../src/util/errors.ts";
import { text } from "../backends/conformance.ts";
import { type StubAnswer, type StubRequest, startStub } from "../storage-s3/stub.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { created, openTestAzure, refuse } from "./open-test-azure.ts";

const TOKEN = "a.secret.token";

/** A metadata service and a container beside it, and a backend of which `env` says who it is. */
async function withIdentity(
  options: {
    readonly env?: Record<string, string>;
    readonly clientId?: string;
    readonly metadata: (request: StubRequest, earlier: number) => StubAnswer;
    readonly blobs?: (request: StubRequest, earlier: number) => StubAnswer;
  },
  run: (scene: {
    readonly put: () => Promise<unknown>;
    readonly asked: readonly StubRequest[];
    readonly stored: readonly StubRequest[];
    pass(ms: number): void;
  }) => Promise<void>,
): Promise<void> {
  await using metadata = startStub(options.metadata);
  await using blobs = startStub(options.blobs ?? (() => created()));
  let nowMs = Date.now();
  const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs };
  const env = Object.fromEntries(
    Object.entries(options.env ?? {}).map(([name, value]) => [name, value.replace("METADATA", metadata.endpoint)]),
  );
  const credentials = openCredentials({
    account: "acc",
    authentication: { method: "environment", managedIdentityClientId: options.clientId },
    env,
    clock,
    places: { metadataOrigin: metadata.endpoint, baseDelayMs: 1 },
  });
  const backend = openTestAzure(blobs.endpoint, { retries: 1 }, { credentials });
  await run({
    put: () => backend.put("a", text("x")),
    asked: metadata.requests,
    stored: blobs.requests,
    pass: (ms) => {
      nowMs += ms;
    },
  });
}

const granted = (token = TOKEN) => Response.json({ access_token: token, expires_in: "3600", token_type: "Bearer" });

test("a virtual machine's identity: one question for many requests, a new one before the token expires", async () => {
  await withIdentity(
    { metadata: (_, earlier) => granted(`token-${earlier}`) },
    async ({ put, asked, stored, pass }) => {
      await Promise.all([put(), put(), put()]);
      expect(asked).toHaveLength(1);
      expect(asked[0]).toMatchObject({ method: "GET", path: "/metadata/identity/oauth2/token" });
      expect(asked[0]?.headers.get("metadata")).toBe("true");
      expect(Object.fromEntries(asked[0]?.query ?? [])).toEqual({
        "api-version": "2018-02-01",
        resource: "https://storage.azure.com/",
      });
      expect(stored[0]?.headers.get("authorization")).toBe("Bearer token-0");
      expect(stored[0]?.headers.get("x-ms-version")).toBe("2024-11-04");
      pass(3599_000);
      await put();
      expect(asked).toHaveLength(2);
      expect(stored.at(-1)?.headers.get("authorization")).toBe("Bearer token-1");
    },
  );
});

test("a refused token is renewed once", async () => {
  await withIdentity(
    {
      metadata: (_, earlier) => granted(`token-${earlier}`),
      blobs: ({ headers }) =>
        headers.get("authorization") === "Bearer token-0" ? refuse(401, "InvalidAuthenticationInfo") : created(),
    },
    async ({ put, asked, pass }) => {
      await put().catch(() => {});
      pass(60_000);
      expect(await put()).toBe("stored");
      expect(asked).toHaveLength(2);
    },
  );
});

test("a metadata service that is busy is asked again", async () => {
  const answers = [429, 410, 404];
  await withIdentity(
    { metadata: (_, earlier) => (earlier < 3 ? new Response("", { status: answers[earlier] ?? 500 }) : granted()) },
    async ({ put, asked }) => {
      expect(await put()).toBe("stored");
      expect(asked).toHaveLength(4);
    },
  );
});

test("an identity among several is asked for by its client id, and wins over keys in the environment", async () => {
  await withIdentity(
    { metadata: () => granted(), clientId: "the-id", env: { AZURE_STORAGE_KEY: "c29tZSBrZXkgb2YgYW4gYWNjb3VudA==" } },
    async ({ put, asked, stored }) => {
      await put();
      expect(asked[0]?.query.get("client_id")).toBe("the-id");
      expect(stored[0]?.headers.get("authorization")).toStartWith("Bearer ");
    },
  );
});

test("an App Service's identity is asked for where its variables say", async () => {
  await withIdentity(
    { metadata: () => granted(), env: { IDENTITY_ENDPOINT: "METADATA/msi/token", IDENTITY_HEADER: "proof" } },
    async ({ put, asked }) => {
      await put();
      expect(asked[0]?.path).toBe("/msi/token");
      expect(asked[0]?.headers.get("x-identity-header")).toBe("proof");
      expect(asked[0]?.query.get("api-version")).toBe("2019-08-01");
    },
  );
});

test("a workload identity trades its token, which is read anew each time, for one of ours", async () => {
  await using directory = await temporaryDirectory("workload");
  const tokenFile = directory.file("token");
  await writeFile(tokenFile, "assertion-1\n");
  const env = {
    AZURE_TENANT_ID: "tenant",
    AZURE_CLIENT_ID: "client",
    AZURE_FEDERATED_TOKEN_FILE: tokenFile,
    AZURE_AUTHORITY_HOST: "METADATA",
  };
  await withIdentity({ metadata: () => granted(), env }, async ({ put, asked, pass }) => {
    await put();
    await writeFile(tokenFile, "assertion-2\n");
    pass(3599_000);
    await put();
    expect(asked.map(({ method, path }) => `${method} ${path}`)).toEqual(
      Array(2).fill("POST /tenant/oauth2/v2.0/token"),
    );
    const forms = asked.map(({ body }) => new URLSearchParams(new TextDecoder().decode(body)));
    expect(forms.map((form) => form.get("client_assertion"))).toEqual(["assertion-1", "assertion-2"]);
    expect(forms[0]?.get("scope")).toBe("https://storage.azure.com/.default");
    expect(forms[0]?.get("client_id")).toBe("client");
  });
});

test("what an identity's service refuses is said without the token, the secret or its words", async () => {
  const described = { error: "invalid_client", error_description: "the secret hunter2 is wrong" };
  const env = {
    AZURE_TENANT_ID: "tenant",
    AZURE_CLIENT_ID: "client",
    AZURE_CLIENT_SECRET: "hunter2",
    AZURE_AUTHORITY_HOST: "METADATA",
  };
  const cases: readonly [Record<string, string>, () => StubAnswer, string][] = [
    [env, () => Response.json(described, { status: 401 }), "invalid_client"],
    [{}, () => Response.json({ error: "invalid_request", error_description: "hunter2" }, { status: 400 }), "400"],
    [{}, () => new Response(`{"access_token":"${TOKEN} with a space"}`), "no token"],
    [{}, () => new Response("<html>"), "no token"],
  ];
  for (const [given, answer, said] of cases)
    await withIdentity({ metadata: answer, env: given }, async ({ put }) => {
      const error = await put().catch((thrown: unknown) => thrown);
      if (!(error instanceof BakeliteError)) throw new Error("it has to fail");
      const told = `${describeError(error)} ${error.hint} ${Bun.inspect(error)}`;
      expect(told).toContain(said);
      expect(told).not.toContain("hunter2");
      expect(told).not.toContain(TOKEN);
    });
});
