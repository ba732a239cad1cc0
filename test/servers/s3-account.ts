import { AwsClient } from "aws4fetch";

/** Who may use an S3 server, and where it is. */
export interface S3Account {
  /** Without a trailing slash. */
  readonly endpoint: string;
  readonly region: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

export interface ListedUpload {
  readonly key: string;
  readonly uploadId: string;
}

export interface ListedVersion {
  readonly key: string;
  readonly versionId: string;
  readonly isLatest: boolean;
  readonly isDeleteMarker: boolean;
}

export interface BucketKind {
  readonly versioned?: boolean;
  /** With object lock, and so with versions; `retentionDays` of COMPLIANCE or GOVERNANCE for each new object. */
  readonly lock?: { readonly mode: "GOVERNANCE" | "COMPLIANCE"; readonly days: number };
}

type Query = Readonly<Record<string, string>>;

interface RequestOptions {
  readonly query?: Query;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
  /** PEM, for https. */
  readonly ca?: string;
}

const DEADLINE_MS = 30_000;
const XML = { "content-type": "application/xml" };

/**
 * Plain signed requests for what tests set up and look into behind the back of the backend under test. Buckets are in
 * the path. Every method throws, with the answer, unless the status is 2xx; `request` gives any answer.
 */
export class S3Requests {
  readonly account: S3Account;
  readonly #client: AwsClient;

  constructor(account: S3Account) {
    this.account = account;
    const { region, accessKeyId, secretAccessKey } = account;
    this.#client = new AwsClient({ service: "s3", region, accessKeyId, secretAccessKey, retries: 0 });
  }

  /** `path` begins with `/` and is percent-encoded already. */
  async request(method: string, path: string, options: RequestOptions = {}): Promise<Response> {
    const url = new URL(`${this.account.endpoint}${path}`);
    for (const [name, value] of Object.entries(options.query ?? {})) url.searchParams.set(name, value);
    const signed = await this.#client.sign(url.toString(), {
      method,
      headers: { ...options.headers },
      ...(options.body === undefined ? {} : { body: options.body }),
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
    return await fetch(signed, options.ca === undefined ? {} : { tls: { ca: options.ca } });
  }

  async createBucket(bucket: string, kind: BucketKind = {}): Promise<void> {
    const headers = kind.lock === undefined ? {} : { "x-amz-bucket-object-lock-enabled": "true" };
    await this.#succeed("PUT", `/${bucket}`, { headers });
    if (kind.versioned === true) {
      const body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
      await this.#succeed("PUT", `/${bucket}`, { query: { versioning: "" }, body, headers: xmlHeaders(body) });
    }
    if (kind.lock !== undefined) {
      const { mode, days } = kind.lock;
      const rule = `<Rule><DefaultRetention><Mode>${mode}</Mode><Days>${days}</Days></DefaultRetention></Rule>`;
      const body = `<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>${rule}</ObjectLockConfiguration>`;
      await this.#succeed("PUT", `/${bucket}`, { query: { "object-lock": "" }, body, headers: xmlHeaders(body) });
    }
  }

  /** Statements of a bucket policy, as JSON has them. */
  async setPolicy(bucket: string, statements: readonly object[]): Promise<void> {
    const body = JSON.stringify({ Version: "2012-10-17", Statement: statements });
    await this.#succeed("PUT", `/${bucket}`, { query: { policy: "" }, body });
  }

  async putObject(bucket: string, key: string, body: string | Uint8Array): Promise<void> {
    await this.#succeed("PUT", `/${bucket}/${encodeKey(key)}`, { body });
  }

  async getObject(bucket: string, key: string): Promise<Uint8Array> {
    return await (await this.#ok("GET", `/${bucket}/${encodeKey(key)}`)).bytes();
  }

  async deleteObject(bucket: string, key: string, versionId?: string): Promise<void> {
    await this.#succeed("DELETE", `/${bucket}/${encodeKey(key)}`, {
      query: versionId === undefined ? {} : { versionId },
    });
  }

  /** All keys that begin with `prefix`. */
  async listKeys(bucket: string, prefix = ""): Promise<readonly string[]> {
    const keys: string[] = [];
    for (let token: string | undefined = ""; token !== undefined; ) {
      const query: Query = {
        "list-type": "2",
        prefix,
        "encoding-type": "url",
        ...(token === "" ? {} : { "continuation-token": token }),
      };
      const xml = await this.#succeed("GET", `/${bucket}`, { query });
      // Versity's server does not encode, and then does not say so; Amazon and MinIO make a space a plus.
      const isEncoded = elements(xml, "EncodingType")[0] === "url";
      for (const item of elements(xml, "Contents")) {
        const key = textOf(item, "Key");
        keys.push(isEncoded ? decodeURIComponent(key.replaceAll("+", " ")) : key);
      }
      token = elements(xml, "NextContinuationToken")[0];
    }
    return keys;
  }

  /** Uploads in parts that were begun and neither completed nor aborted, of keys that begin with `prefix`. */
  async listUploads(bucket: string, prefix = ""): Promise<readonly ListedUpload[]> {
    const xml = await this.#succeed("GET", `/${bucket}`, { query: { uploads: "", prefix } });
    return elements(xml, "Upload").map((item) => ({
      key: textOf(item, "Key"),
      uploadId: textOf(item, "UploadId"),
    }));
  }

  /** Begins an upload in parts, gives it parts of these sizes, and leaves it. */
  async beginUpload(bucket: string, key: string, partSizesBytes: readonly number[] = []): Promise<string> {
    const path = `/${bucket}/${encodeKey(key)}`;
    const uploadId = textOf(await this.#succeed("POST", path, { query: { uploads: "" } }), "UploadId");
    for (const [i, sizeBytes] of partSizesBytes.entries())
      await this.#succeed("PUT", path, {
        query: { partNumber: String(i + 1), uploadId },
        body: new Uint8Array(sizeBytes),
      });
    return uploadId;
  }

  async abortUpload(bucket: string, { key, uploadId }: ListedUpload): Promise<void> {
    await this.#succeed("DELETE", `/${bucket}/${encodeKey(key)}`, { query: { uploadId } });
  }

  async listVersions(bucket: string, prefix = ""): Promise<readonly ListedVersion[]> {
    const versions: ListedVersion[] = [];
    let from: Record<string, string> = {};
    for (;;) {
      const xml = await this.#succeed("GET", `/${bucket}`, { query: { versions: "", prefix, ...from } });
      for (const name of ["Version", "DeleteMarker"])
        for (const item of elements(xml, name))
          versions.push({
            key: textOf(item, "Key"),
            versionId: textOf(item, "VersionId"),
            isLatest: textOf(item, "IsLatest") === "true",
            isDeleteMarker: name === "DeleteMarker",
          });
      if (textOf(xml, "IsTruncated") !== "true") return versions;
      from = { "key-marker": textOf(xml, "NextKeyMarker"), "version-id-marker": textOf(xml, "NextVersionIdMarker") };
    }
  }

  /** Deletes all objects and aborts all uploads whose keys begin with `prefix`. */
  async clear(bucket: string, prefix: string): Promise<void> {
    for (const key of await this.listKeys(bucket, prefix)) await this.deleteObject(bucket, key);
    for (const upload of await this.listUploads(bucket, prefix)) await this.abortUpload(bucket, upload);
  }

  async #succeed(method: string, path: string, options: RequestOptions = {}): Promise<string> {
    return await (await this.#ok(method, path, options)).text();
  }

  async #ok(method: string, path: string, options: RequestOptions = {}): Promise<Response> {
    const response = await this.request(method, path, options);
    if (response.ok) return response;
    throw new Error(
      `${method} ${path} ${JSON.stringify(options.query ?? {})}: ${response.status} ${await response.text()}`,
    );
  }
}

/** A bucket name that no other test uses. */
export function newBucketName(): string {
  return `bakelite-test-${crypto.randomUUID().slice(0, 18)}`;
}

/** Swift wants the digest with every XML body. */
function xmlHeaders(body: string): Readonly<Record<string, string>> {
  return { ...XML, "content-md5": new Bun.CryptoHasher("md5").update(body).digest("base64") };
}

function encodeKey(key: string): string {
  return key.split("/").map(encodeURIComponent).join("/");
}

/** The inner text of every element of this name, without a look at what stands around it. */
function elements(xml: string, name: string): readonly string[] {
  return [...xml.matchAll(new RegExp(`<${name}>([\\s\\S]*?)</${name}>`, "g"))].map((match) => match[1] ?? "");
}

function textOf(xml: string, name: string): string {
  const entities: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  const [inner = ""] = elements(xml, name);
  return inner.replace(/&(lt|gt|quot|apos|amp);/g, (whole, entity: string) => entities[entity] ?? whole);
}
