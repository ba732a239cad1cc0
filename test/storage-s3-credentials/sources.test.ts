import { describe, expect, test } from "bun:test";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import {
  type CredentialsOptions,
  openCredentials,
  regionFromEnvironment,
} from "../../src/storage/s3/credentials/provider.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { ISSUED, serve, serveInstanceMetadata, serveSts, stsError } from "./stubs.ts";

const SECRET = "PLANTED/secret+key";
const TOKEN = "PLANTED-token";
const NO_METADATA = { AWS_EC2_METADATA_DISABLED: "true" };
const ROLE = "arn:aws:iam::123456789012:role/backup";

/** A home with the given files below it, and options that see nothing else of this host. */
async function home(files: Readonly<Record<string, string>> = {}) {
  const directory = await temporaryDirectory("aws");
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(directory.file(name)), { recursive: true });
    await writeFile(directory.file(name), text, { mode: 0o600 });
  }
  return {
    file: directory.file,
    options: (env: Record<string, string> = {}, more: Partial<CredentialsOptions> = {}): CredentialsOptions => ({
      explicit: undefined,
      credentialsFile: undefined,
      profile: undefined,
      region: undefined,
      env: { ...NO_METADATA, PATH: process.env["PATH"], ...env },
      homeDirectory: directory.path,
      ...more,
    }),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

/** Who was found, and where. */
async function found(options: CredentialsOptions): Promise<readonly [string, string]> {
  const provider = openCredentials(options);
  const { accessKeyId } = await provider.get();
  return [accessKeyId, provider.source];
}

/** The failure, after looking through all of it for anything planted. */
async function failure(options: CredentialsOptions): Promise<BakeliteError> {
  try {
    await openCredentials(options).get();
  } catch (error) {
    expect(error).toBeInstanceOf(BakeliteError);
    expect(everythingIn(error)).not.toContain("PLANTED");
    if (error instanceof BakeliteError) return error;
  }
  throw new Error("credentials were found");
}

/** Every text that a log could take from an error: all of its own properties, and those of its causes. */
function everythingIn(error: unknown): string {
  if (typeof error !== "object" || error === null) return String(error);
  const own = Object.getOwnPropertyNames(error).map((name) => everythingIn(Reflect.get(error, name)));
  return [Bun.inspect(error), ...own].join("\n");
}

const keys = (id: string) => `aws_access_key_id = ${id}\naws_secret_access_key = ${SECRET}\n`;
const envKeys = { AWS_ACCESS_KEY_ID: "AKIAENV", AWS_SECRET_ACCESS_KEY: SECRET };

describe("the order", () => {
  test("keys of the configuration win over everything, then the environment, then the files", async () => {
    await using it = await home({ ".aws/credentials": `[default]\n${keys("AKIAFILE")}` });
    const explicit = { accessKeyId: "AKIACONF", secretAccessKey: SECRET, sessionToken: undefined };
    expect(await found(it.options(envKeys, { explicit }))).toEqual(["AKIACONF", "the configuration"]);
    expect(await found(it.options(envKeys))).toEqual(["AKIAENV", "the environment"]);
    expect((await found(it.options()))[0]).toBe("AKIAFILE");
  });

  test("a profile or a file that the configuration names wins over the environment, and AWS_PROFILE does not", async () => {
    await using it = await home({
      ".aws/credentials": `[default]\n${keys("AKIAFILE")}[other]\n${keys("AKIAOTHER")}`,
      own: `[default]\n${keys("AKIAOWN")}`,
    });
    expect((await found(it.options(envKeys, { profile: "other" })))[0]).toBe("AKIAOTHER");
    expect((await found(it.options(envKeys, { credentialsFile: it.file("own") })))[0]).toBe("AKIAOWN");
    expect((await found(it.options({ ...envKeys, AWS_PROFILE: "other" })))[0]).toBe("AKIAENV");
    expect((await found(it.options({ AWS_PROFILE: "other" })))[0]).toBe("AKIAOTHER");
  });

  test("half of a pair is an error where it stands, and nothing further is looked at", async () => {
    await using it = await home({ ".aws/credentials": `[default]\n${keys("AKIAFILE")}` });
    const error = await failure(it.options({ AWS_SECRET_ACCESS_KEY: SECRET }));
    expect([error.code, error.message]).toEqual([
      "storage-denied",
      "the AWS credentials from the environment cannot be used: AWS_ACCESS_KEY_ID missing",
    ]);
  });

  test("a half is never completed from the other file, and the session token stays with its keys", async () => {
    await using it = await home({
      ".aws/credentials": "[a]\naws_access_key_id = AKIAHALF\n[b]\naws_access_key_id=B\naws_secret_access_key=c\n",
      ".aws/config": `[profile a]\naws_secret_access_key = ${SECRET}\n[profile b]\naws_session_token = ${TOKEN}\n`,
    });
    expect((await failure(it.options({}, { profile: "a" }))).message).toContain("aws_secret_access_key missing");
    expect((await openCredentials(it.options({}, { profile: "b" })).get()).sessionToken).toBeUndefined();
  });

  test("without any, the message lists where was looked and the hint says what to do", async () => {
    await using it = await home({ ".aws/config": "[default]\nregion = eu-north-1\n" });
    const error = await failure(it.options());
    expect(error.code).toBe("storage-denied");
    expect(error.message).toBe(
      `no AWS credentials were found: looked in the configuration, the environment, profile "default" (${it.file(".aws/credentials")} is not there, ${it.file(".aws/config")} was read), web identity, container credentials and EC2 instance metadata (switched off by AWS_EC2_METADATA_DISABLED)`,
    );
    expect(error.hint).toContain("access_key_id");
  });

  test("the region is that of the environment, else of the profile", async () => {
    await using it = await home({ ".aws/config": "[default]\nregion = r1\n[profile x]\nregion = r2\n" });
    expect(await regionFromEnvironment(it.options({ AWS_REGION: "r3", AWS_DEFAULT_REGION: "r4" }))).toBe("r3");
    expect(await regionFromEnvironment(it.options({ AWS_DEFAULT_REGION: "r4" }))).toBe("r4");
    expect(await regionFromEnvironment(it.options({ AWS_PROFILE: "x" }))).toBe("r2");
    expect(await regionFromEnvironment(it.options())).toBe("r1");
    expect(await regionFromEnvironment(it.options({ AWS_PROFILE: "y" }))).toBeUndefined();
  });
});

describe("shared files", () => {
  test("the environment's paths are followed, with ~ for the home, and /dev/null is no file", async () => {
    await using it = await home({
      "c/creds": `[default]\n${keys("AKIAC")}`,
      ".aws/credentials": `[default]\n${keys("D")}`,
    });
    expect((await found(it.options({ AWS_SHARED_CREDENTIALS_FILE: "~/c/creds" })))[0]).toBe("AKIAC");
    expect((await failure(it.options({ AWS_SHARED_CREDENTIALS_FILE: "/dev/null" }))).message).toContain("/dev/null");
  });

  const broken: readonly (readonly [string, string, string])[] = [
    ["a line that is none", `[default]\n${SECRET}\n`, "line 2"],
    ["quotes", `[default]\naws_access_key_id = A\naws_secret_access_key = "${SECRET}"\n`, "in quotes"],
    ["an indented key", `[default]\naws_access_key_id = A\n aws_secret_access_key = ${SECRET}\n`, "missing"],
    ["an indented token", `[default]\n${keys("A")} aws_session_token = ${TOKEN}\n`, "a line break"],
    ["control characters", `[default]\naws_access_key_id = A\naws_secret_access_key = ${SECRET}\u0001\n`, "characters"],
    ["single sign-on", `[default]\nsso_session = x\nsso_account_id = ${TOKEN}\n`, "does not support"],
    ["MFA", `[default]\nrole_arn = ${ROLE}\nmfa_serial = ${TOKEN}\nsource_profile = default\n`, "mfa_serial"],
    ["a role that nobody vouches for", `[default]\nrole_arn = ${ROLE}\n`, "neither source_profile"],
    ["an unknown source of a role", `[default]\nrole_arn = ${ROLE}\ncredential_source = ${TOKEN}\n`, "none of"],
    ["a source that is not there", `[default]\nrole_arn = ${ROLE}\nsource_profile = x\n`, '"x" is in neither'],
  ];
  for (const [what, text, says] of broken) {
    test(`${what} in the file is refused by a message without its content`, async () => {
      await using it = await home({ ".aws/credentials": text });
      const error = await failure(it.options());
      expect([error.code, error.message]).toEqual(["storage-denied", expect.stringContaining(says)]);
    });
  }

  test("a profile, or a file, that was named and is not there is an error and no reason to go on", async () => {
    await using it = await home({ ".aws/credentials": `[default]\n${keys("A")}[bare]\nregion = x\n` });
    expect((await failure(it.options({}, { profile: "gone" }))).message).toContain('no AWS profile "gone"');
    expect((await failure(it.options({ AWS_PROFILE: "gone" }))).hint).toContain("AWS_PROFILE");
    expect((await failure(it.options(envKeys, { profile: "bare" }))).message).toContain("holds no credentials");
    expect((await failure(it.options(envKeys, { credentialsFile: it.file("gone") }))).subject).toBe(it.file("gone"));
    expect((await failure(it.options({}, { credentialsFile: it.file(".aws") }))).message).toContain("a directory");
  });

  test("a file that is there and may not be read is an error, as another user sees it", async () => {
    await using it = await home({ ".aws/credentials": `[default]\n${keys("A")}` });
    await chmod(it.file(".aws/credentials"), 0o000);
    const script = `import { openCredentials } from ${JSON.stringify(new URL("../../src/storage/s3/credentials/provider.ts", import.meta.url).pathname)};
      if (process.getuid() === 0) { process.setgid(65534); process.setuid(65534); }
      const options = { explicit: undefined, credentialsFile: undefined, profile: undefined, region: undefined, env: ${JSON.stringify(NO_METADATA)}, homeDirectory: "." };
      await openCredentials(options).get().catch((error) => console.log(error.code, error.message));`;
    // Begun inside the home: that user may not come in through the directories above it.
    const run = async () => {
      const child = Bun.spawn([process.execPath, "-e", script], { cwd: it.file(), stdout: "pipe", stderr: "inherit" });
      return await new Response(child.stdout).text();
    };
    await chmod(it.file(), 0o755);
    await chmod(it.file(".aws"), 0o755);
    expect(await run()).toBe("storage-denied cannot read AWS's shared file: permission denied\n");
    await chmod(it.file(".aws"), 0o000);
    expect(await run()).toContain("is in a directory that may not be looked into");
    await chmod(it.file(".aws"), 0o700);
  });
});

describe("roles", () => {
  const sts = () => serveSts({ keys: { AKIABASE: { secret: SECRET }, "ASIA-first": ISSUED }, externalId: "ex" });
  const role = (name: string) => `role_arn = arn:aws:iam::1:role/${name}\nexternal_id = ex\n`;

  test("a profile takes its role with another's keys, one role with another's, and with its own", async () => {
    await using stub = await sts();
    await using it = await home({
      ".aws/credentials": `[base]\n${keys("AKIABASE")}[own]\n${keys("AKIABASE")}`,
      ".aws/config": `[profile a]\n${role("first")}source_profile = base\n[profile b]\n${role("second")}source_profile = a\n[profile own]\n${role("mine")}source_profile = own\n`,
    });
    const env = { AWS_ENDPOINT_URL_STS: stub.origin };
    expect((await found(it.options(env, { profile: "a" })))[0]).toBe("ASIA-first");
    expect((await found(it.options(env, { profile: "b" })))[0]).toBe("ASIA-second");
    expect((await found(it.options(env, { profile: "own" })))[0]).toBe("ASIA-mine");
    expect(stub.asked).toEqual(Array(4).fill("POST / 200"));
  });

  test("credential_source takes them from the environment", async () => {
    await using stub = await sts();
    await using it = await home({ ".aws/config": `[profile a]\n${role("first")}credential_source = Environment\n` });
    const env = { AWS_ENDPOINT_URL_STS: stub.origin, AWS_ACCESS_KEY_ID: "AKIABASE", AWS_SECRET_ACCESS_KEY: SECRET };
    expect((await found(it.options(env, { profile: "a" })))[0]).toBe("ASIA-first");
  });

  test("profiles that vouch for one another in a circle are an error", async () => {
    await using it = await home({
      ".aws/config": `[profile a]\n${role("x")}source_profile = b\n[profile b]\n${role("x")}source_profile = a\n`,
    });
    expect((await failure(it.options({}, { profile: "a" }))).message).toContain("a -> b -> a");
  });

  test("a wrong secret is what STS calls it, and a throttled or silent STS is unreachable", async () => {
    await using stub = await serveSts({ keys: { AKIABASE: { secret: "another" } } });
    await using it = await home({
      ".aws/credentials": `[a]\nrole_arn = ${ROLE}\nsource_profile = b\n[b]\n${keys("AKIABASE")}`,
    });
    const refused = await failure(it.options({ AWS_ENDPOINT_URL_STS: stub.origin }, { profile: "a" }));
    expect([refused.code, refused.message]).toEqual([
      "storage-denied",
      expect.stringContaining("SignatureDoesNotMatch"),
    ]);
    for (const failing of [
      stsError(400, "Throttling", "slow down"),
      { status: 503, body: `<html>${SECRET}` },
      { status: 200, body: `<a>${SECRET}` },
    ]) {
      await using down = await serveSts({ failure: failing });
      const error = await failure(it.options({ AWS_ENDPOINT_URL_STS: down.origin }, { profile: "a" }));
      expect(error.code).toBe("storage-unreachable");
    }
    const gone = await failure(it.options({ AWS_ENDPOINT_URL_STS: "http://127.0.0.1:1" }, { profile: "a" }));
    expect(gone.code).toBe("storage-unreachable");
  });

  test("a web identity is exchanged, its file read anew each time, and a refused token is not repeated", async () => {
    await using stub = await serveSts({ webToken: "PLANTED.web.token" });
    await using it = await home({ token: "PLANTED.web.token\n" });
    const env = {
      AWS_ENDPOINT_URL_STS: stub.origin,
      AWS_WEB_IDENTITY_TOKEN_FILE: it.file("token"),
      AWS_ROLE_ARN: ROLE,
      AWS_ROLE_SESSION_NAME: "pod",
    };
    expect(await found(it.options(env))).toEqual(["ASIA-backup", "the web identity"]);
    await writeFile(it.file("token"), "PLANTED.old.token");
    expect((await failure(it.options(env))).message).toContain("InvalidIdentityToken");
    await writeFile(it.file("token"), "");
    expect((await failure(it.options(env))).message).toContain("holds no token");
    expect((await failure(it.options({ ...env, AWS_ROLE_ARN: "" }))).message).toContain("AWS_ROLE_ARN is not");
    const missing = await failure(it.options({ ...env, AWS_WEB_IDENTITY_TOKEN_FILE: it.file("gone") }));
    expect(missing.subject).toBe(it.file("gone"));
  });
});

describe("credential_process", () => {
  const document = { Version: 1, AccessKeyId: "ASIAPROC", SecretAccessKey: SECRET, SessionToken: TOKEN };
  const running = (command: string) => ({ ".aws/config": `[default]\ncredential_process = ${command}\n` });
  const sh = (script: string) => running(`/bin/sh -c '${script}'`);

  test("what it prints is used, and the line is not given to a shell", async () => {
    await using it = await home({
      ...running(`/bin/cat "\${HOME}/doc" ; touch x`),
      doc: JSON.stringify({ ...document, Expiration: "2098-01-01T00:00:00Z" }),
    });
    expect((await failure(it.options({}))).message).toContain("exit status 1");
    await writeFile(it.file(".aws/config"), `[default]\ncredential_process = /bin/cat ${it.file("doc")}\n`);
    expect(await openCredentials(it.options()).get()).toEqual({
      accessKeyId: "ASIAPROC",
      secretAccessKey: SECRET,
      sessionToken: TOKEN,
      expiresMs: Date.parse("2098-01-01T00:00:00Z"),
    });
  });

  for (const [what, files, says] of [
    ["fails", sh(`echo ${SECRET} >&2; echo ${SECRET}; exit 3`), "exit status 3"],
    ["prints no JSON", sh(`echo ${SECRET}`), "not JSON"],
    ["prints another version", sh(`echo "{\\"Version\\":2}"`), "Version 2"],
    ["prints the wrong types", sh(`echo "{\\"AccessKeyId\\":1}"`), "AccessKeyId has the wrong type"],
    ["prints without end", sh(`yes ${SECRET}`), "more than 64 KiB"],
    ["hangs, with a child that holds its output", sh(`sleep 20 & sleep 20`), "did not finish within 300 ms"],
    ["cannot be run", running(`/no/such/program ${SECRET}`), "/no/such/program cannot be run"],
    ["has an unbalanced line", running(`"/bin/echo ${SECRET}`), "a quote in it does not end"],
  ] as const) {
    test(`a program that ${what} is refused, without a word that it printed`, async () => {
      await using it = await home(files);
      const error = await failure(it.options({}, { processTimeoutMs: what.startsWith("hangs") ? 300 : 20_000 }));
      expect([error.code, error.message]).toEqual(["storage-denied", expect.stringContaining(says)]);
    });
  }

  test("a file that every user can change names no program", async () => {
    await using it = await home(sh("true"));
    await chmod(it.file(".aws/config"), 0o666);
    expect((await failure(it.options())).message).toContain("every user of this host can change");
  });
});

describe("container credentials", () => {
  const document = JSON.stringify({
    AccessKeyId: "ASIAECS",
    SecretAccessKey: SECRET,
    Token: TOKEN,
    Expiration: "2099-01-01T00:00:00Z",
  });
  const agent = (token: string | null) =>
    serve((request) =>
      request.headers.get("authorization") === token
        ? { status: 200, body: document }
        : { status: 401, body: `{"code":"Unauthorized","message":"${SECRET}"}` },
    );

  test("a relative address belongs to ECS, and a full one needs the token, which is read anew from its file", async () => {
    await using ecs = await agent(null);
    await using eks = await agent("PLANTED-1");
    await using it = await home({ token: "PLANTED-0\n" });
    const relative = it.options({ AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: "/v2/x" }, { containerOrigin: ecs.origin });
    expect(await found(relative)).toEqual(["ASIAECS", "the container credentials service"]);
    const full = { AWS_CONTAINER_CREDENTIALS_FULL_URI: `${eks.origin}/c?key=PLANTED` };
    const withFile = { ...full, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: it.file("token") };
    const error = await failure(it.options(withFile));
    expect([error.code, error.message]).toEqual([
      "storage-denied",
      expect.stringContaining("status 401 (Unauthorized)"),
    ]);
    await writeFile(it.file("token"), "PLANTED-1\n");
    expect((await found(it.options(withFile)))[0]).toBe("ASIAECS");
    expect((await found(it.options({ ...full, AWS_CONTAINER_AUTHORIZATION_TOKEN: "PLANTED-1" })))[0]).toBe("ASIAECS");
    const split = await failure(it.options({ ...full, AWS_CONTAINER_AUTHORIZATION_TOKEN: "PLANTED\r\nx: y" }));
    expect(split.message).toContain("control characters");
  });

  test("plain http to anywhere but this host, ECS and EKS is refused, however the address is written", async () => {
    await using it = await home();
    for (const address of [
      "http://example.com/",
      "http://169.254.169.254/",
      "http://127.0.0.1.example.com/",
      "http://2130706433.example/",
      "ftp://127.0.0.1/",
      "x",
    ]) {
      const error = await failure(it.options({ AWS_CONTAINER_CREDENTIALS_FULL_URI: address }));
      expect([address, error.code]).toEqual([address, "storage-denied"]);
    }
    const near = await failure(it.options({ AWS_CONTAINER_CREDENTIALS_FULL_URI: "http://2130706433:1/" }));
    expect(near.code).toBe("storage-unreachable");
  });

  test("an agent that fails is asked three times and is then unreachable", async () => {
    await using stub = await serve(() => ({ status: 500, body: SECRET }));
    await using it = await home();
    const error = await failure(it.options({ AWS_CONTAINER_CREDENTIALS_FULL_URI: stub.origin }));
    expect([error.code, stub.asked.length]).toEqual(["storage-unreachable", 3]);
  });
});

describe("instance metadata", () => {
  const document = (more: object = {}) =>
    JSON.stringify({
      Code: "Success",
      AccessKeyId: "ASIAEC2",
      SecretAccessKey: SECRET,
      Token: TOKEN,
      Expiration: "2099-01-01T00:00:00Z",
      ...more,
    });
  const at = (endpoint: string) => ({
    AWS_EC2_METADATA_SERVICE_ENDPOINT: endpoint,
    AWS_EC2_METADATA_DISABLED: "false",
  });

  test("the credentials of the role come by version 2, past any proxy", async () => {
    await using stub = await serveInstanceMetadata(document);
    await using proxy = await serve(() => ({ status: 502 }));
    await using it = await home();
    const before = process.env["http_proxy"];
    process.env["http_proxy"] = proxy.origin;
    try {
      expect(await found(it.options(at(stub.origin)))).toEqual(["ASIAEC2", "EC2 instance metadata"]);
    } finally {
      if (before === undefined) delete process.env["http_proxy"];
      else process.env["http_proxy"] = before;
    }
    expect(proxy.asked).toEqual([]);
    expect(stub.asked.map((line) => line.split(" ", 1)[0])).toEqual(["PUT", "GET", "GET"]);
  });

  test("a service that knows only version 1 is not asked for anything", async () => {
    await using stub = await serve((request) =>
      request.method === "PUT" ? { status: 404 } : { status: 200, body: "role" },
    );
    await using it = await home();
    expect((await failure(it.options(at(stub.origin)))).message).toContain("does not speak version 2");
    expect(stub.asked).toEqual(["PUT /latest/api/token 404"]);
  });

  test("an instance without a role, a role that EC2 cannot assume, and a foreign answer are told apart", async () => {
    await using it = await home();
    await using bare = await serveInstanceMetadata(document, "");
    expect((await failure(it.options(at(bare.origin)))).message).toContain("this instance has no role");
    await using unassumable = await serveInstanceMetadata(() => document({ Code: "AssumeRoleUnauthorizedAccess" }));
    expect((await failure(it.options(at(unassumable.origin)))).message).toContain("AssumeRoleUnauthorizedAccess");
    await using portal = await serve(() => ({ status: 200, body: `<html>${SECRET}</html>` }));
    expect((await failure(it.options(at(portal.origin)))).code).toBe("storage-denied");
    await using cut = await serveInstanceMetadata(() => document().slice(0, 60));
    expect((await failure(it.options(at(cut.origin)))).message).toContain("not JSON");
  });

  test("a host that does not answer is given up after two short attempts", async () => {
    await using stub = await serve(async () => {
      await Bun.sleep(5000);
      return { status: 200 };
    });
    await using it = await home();
    const error = await failure(it.options({ ...at(stub.origin), AWS_METADATA_SERVICE_TIMEOUT: "0.1" }));
    expect(error.message).toContain("no answer within 100 ms");
  });
});
