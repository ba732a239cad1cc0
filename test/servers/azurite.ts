import { createHmac } from "node:crypto";
import { mkdir, mkdtemp, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { backendSchema } from "../../src/config/backends.ts";
import { openAzure } from "../../src/storage/azure/backend.ts";
import type { AzureClientOptions } from "../../src/storage/azure/client.ts";
import { sharedKeyAuthorization } from "../../src/storage/azure/shared-key.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { findProgram, freePorts, ServerProcess, untilListening } from "./programs.ts";

/**
 * Microsoft's emulator of its blob storage. It brings 370 packages along, which nothing else here needs, so it is no
 * dependency: a test that wants it installs it, once for each machine, into a cache folder.
 */
const VERSION = "3.35.0";
const INSTALL_DEADLINE_MS = 240_000;
const READY_DEADLINE_MS = 30_000;

/** The emulator's own account, which everybody knows. Source: https://learn.microsoft.com/en-us/azure/storage/common/storage-use-azurite */
export const AZURITE_ACCOUNT = "devstoreaccount1";
export const AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

type Value = string | number | boolean;
export type AzureTable = Readonly<Record<string, Value>>;

/** Starts one, or says why there is none: it cannot be downloaded here. */
export async function startAzurite(): Promise<Azurite | { readonly lacking: string }> {
  const installed = await install();
  if ("lacking" in installed) return installed;
  const directory = await temporaryDirectory("azurite");
  const [port = 0] = await freePorts(1);
  const server = new Azurite(directory, port);
  try {
    await server.start(installed.script);
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

/** Why `startAzurite` would start none; null: it would. */
export async function whyNoAzurite(): Promise<string | null> {
  const installed = await install();
  return "lacking" in installed ? installed.lacking : null;
}

/** The blob service of Azurite on 127.0.0.1, with everything it writes in a folder of its own. */
export class Azurite implements AsyncDisposable {
  readonly name = `Azurite ${VERSION}`;
  readonly port: number;
  readonly endpoint: string;
  readonly #directory: TemporaryDirectory;
  #process: ServerProcess | null = null;
  #containerCount = 0;

  constructor(directory: TemporaryDirectory, port: number) {
    this.#directory = directory;
    this.port = port;
    this.endpoint = `http://127.0.0.1:${port}/${AZURITE_ACCOUNT}`;
  }

  async start(script: string): Promise<void> {
    const { file } = this.#directory;
    const where = ["--blobHost", "127.0.0.1", "--blobPort", String(this.port), "--location", file("data")];
    const command = ["node", script, ...where, "--silent", "--disableTelemetry"];
    this.#process = new ServerProcess(command, { logPath: file("log"), label: this.name });
    await untilListening(this.port, this.#process, READY_DEADLINE_MS);
  }

  /** A new, empty container. */
  async newContainer(): Promise<string> {
    const container = `container-${++this.#containerCount}`;
    await this.send("PUT", container, { restype: "container" });
    return container;
  }

  /** One request of our own, signed with the account's key, at a path below the account. Throws unless it succeeds. */
  async send(
    method: string,
    path: string,
    query: Readonly<Record<string, string>>,
    more: { readonly headers?: Readonly<Record<string, string>>; readonly body?: string } = {},
  ): Promise<Response> {
    const url = new URL(`${this.endpoint}/${path}`);
    url.search = new URLSearchParams(query).toString();
    const headers = new Headers({
      ...more.headers,
      "x-ms-version": "2024-11-04",
      "x-ms-date": new Date().toUTCString(),
    });
    if (more.body !== undefined) headers.set("content-type", "text/plain");
    const signable = { method, url, headers, contentBytes: Buffer.byteLength(more.body ?? "") };
    const key = Buffer.from(AZURITE_KEY, "base64");
    headers.set("authorization", sharedKeyAuthorization(signable, { account: AZURITE_ACCOUNT, key }));
    const response = await fetch(url, { method, headers, ...(more.body === undefined ? {} : { body: more.body }) });
    if (response.ok) return response;
    throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process?.kill();
    await this.#directory[Symbol.asyncDispose]();
  }
}

/** The keys of a `[[database.backends]]` that stores to this container. */
export function azureTable(endpoint: string, container: string, more: AzureTable = {}): AzureTable {
  return { type: "azure", account: AZURITE_ACCOUNT, container, endpoint, account_key: AZURITE_KEY, ...more };
}

/** A backend as the configuration gives it, without retries unless `more` asks for some. */
export function openAt(
  endpoint: string,
  container: string,
  more: AzureTable = {},
  overrides: Partial<AzureClientOptions> = {},
): Backend {
  return openTable(azureTable(endpoint, container, more), overrides);
}

/** The same of a whole table. */
export function openTable(table: AzureTable, overrides: Partial<AzureClientOptions> = {}): Backend {
  const config = backendSchema.parse({ retries: 0, ...table });
  if (config.type !== "azure") throw new Error("the table is one of Azure");
  return openAzure({ ...config, env: {}, overrides });
}

/**
 * A signature that allows `permissions` on all blobs of the account for an hour.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/create-account-sas
 */
export function accountSas(permissions: string): string {
  const fields = { sv: "2024-11-04", ss: "b", srt: "sco", sp: permissions, se: isoTime(Date.now() + 3600_000) };
  const { sv, ss, srt, sp, se } = fields;
  const signed = [AZURITE_ACCOUNT, sp, ss, srt, "", se, "", "", sv, "", ""].join("\n");
  const sig = createHmac("sha256", Buffer.from(AZURITE_KEY, "base64")).update(signed).digest("base64");
  return new URLSearchParams({ ...fields, sig }).toString();
}

function isoTime(ms: number): string {
  return new Date(ms).toISOString().replace(/\.\d{3}/, "");
}

/** Where it is installed, or why not. Several test files may come at once: the first to be ready gives the folder its name. */
async function install(): Promise<{ readonly script: string } | { readonly lacking: string }> {
  const cache = process.env["BAKELITE_TEST_CACHE"] ?? join(homedir(), ".cache", "bakelite-tests");
  const folder = join(cache, `azurite-${VERSION}`);
  const script = join(folder, "node_modules", "azurite", "dist", "src", "blob", "main.js");
  if (await exists(script)) return { script };
  if (findProgram("npm") === null || findProgram("node") === null) return { lacking: "there is no npm or no node" };
  await mkdir(cache, { recursive: true });
  const staging = await mkdtemp(join(cache, "installing-"));
  try {
    const command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", staging];
    const npm = Bun.spawn([...command, `azurite@${VERSION}`], {
      cwd: staging,
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
      timeout: INSTALL_DEADLINE_MS,
    });
    const [said, status] = await Promise.all([npm.stderr.text(), npm.exited]);
    if (status !== 0) return { lacking: `npm cannot install it: ${said.slice(-300).trim()}` };
    // Taken already: another test file was faster.
    await rename(staging, folder).catch(() => {});
    return (await exists(script)) ? { script } : { lacking: `what npm installed has no ${script}` };
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}
