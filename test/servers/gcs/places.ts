import { writeFile } from "node:fs/promises";
import { backendSchema } from "../../../src/config/backends.ts";
import type { Backend } from "../../../src/storage/backend.ts";
import type { GcsCredentials } from "../../../src/storage/gcs/credentials/provider.ts";
import { openBackend } from "../../../src/storage/open.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../../support/temporary-directory.ts";
import { GcsStub } from "./stub.ts";

type Value = string | number | boolean;
export type GcsTable = Readonly<Record<string, Value>>;

/** Our stand-in, and a service account that may do everything there. */
export class GcsScene implements AsyncDisposable {
  readonly stub: GcsStub;
  readonly keyFile: string;
  readonly #directory: TemporaryDirectory;
  #bucketCount = 0;

  private constructor(stub: GcsStub, directory: TemporaryDirectory) {
    this.stub = stub;
    this.keyFile = directory.file("key.json");
    this.#directory = directory;
  }

  static async start(): Promise<GcsScene> {
    const directory = await temporaryDirectory("gcs");
    const scene = new GcsScene(GcsStub.start(), directory);
    await writeFile(scene.keyFile, scene.stub.tokens.serviceAccount("backup"), { mode: 0o600 });
    return scene;
  }

  file(name: string): string {
    return this.#directory.file(name);
  }

  /** The key file of another account, which lacks permissions. */
  async keyFileOf(name: string, lacks: readonly string[]): Promise<string> {
    await writeFile(this.file(`${name}.json`), this.stub.tokens.serviceAccount(name, lacks), { mode: 0o600 });
    return this.file(`${name}.json`);
  }

  /** The name of a bucket that exists from now on. */
  newBucket(settings: Parameters<GcsStub["createBucket"]>[1] = {}): string {
    const name = `bucket-${++this.#bucketCount}`;
    this.stub.createBucket(name, settings);
    return name;
  }

  /** The keys of a `[[database.backends]]` that stores there. */
  table(bucket: string, more: GcsTable = {}): GcsTable {
    return { type: "gcs", endpoint: this.stub.url, bucket, service_account_file: this.keyFile, ...more };
  }

  /** A backend as the configuration gives it, without retries unless `more` asks for some. */
  open(bucket: string, more: GcsTable = {}, how: OpenOptions = {}): Backend {
    return openGcs(this.table(bucket, more), how);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stub[Symbol.asyncDispose]();
    await this.#directory[Symbol.asyncDispose]();
  }
}

export interface OpenOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** The first wait between tries is at most this. */
  readonly baseDelayMs?: number;
  /** Instead of those that this process shares. */
  readonly credentials?: GcsCredentials;
}

export function openGcs(table: GcsTable, { env = {}, baseDelayMs = 10, credentials }: OpenOptions = {}): Backend {
  const config = backendSchema.parse({ retries: 0, ...table });
  if (config.type !== "gcs") throw new Error("the table is one of Google Cloud Storage");
  return openBackend({
    ...config,
    env,
    overrides: { baseDelayMs, ...(credentials === undefined ? {} : { credentials }) },
  });
}
