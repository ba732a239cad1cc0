import { createHash } from "node:crypto";
import { conditionNotMet, type Fields, invalid, Refused } from "./answers.ts";
import { crc32cBase64 } from "./crc32c.ts";

/** One generation of one object. */
export interface Stored {
  readonly name: string;
  readonly bytes: Buffer;
  readonly generation: number;
  readonly createdMs: number;
  readonly contentType: string;
  readonly storageClass: string;
  readonly crc32c: string;
  readonly md5: string;
  isHeld: boolean;
  deletedMs: number | null;
}

export interface BucketSettings {
  versioning: boolean;
  /** 0: none. */
  retentionSeconds: number;
  isLocked: boolean;
  /** 0: off. */
  softDeleteSeconds: number;
  defaultEventBasedHold: boolean;
}

const STORAGE_CLASSES = ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];

/** The objects of a bucket, and the rules under which they come and go. */
export class Bucket {
  readonly name: string;
  readonly settings: BucketSettings;
  /** Noncurrent versions, and what soft delete keeps. */
  readonly former: Stored[] = [];
  readonly #live = new Map<string, Stored>();
  #sorted: readonly Stored[] | null = null;
  #generation = 1_700_000_000_000_000;

  constructor(name: string, settings: Partial<BucketSettings>) {
    this.name = name;
    this.settings = {
      ...{
        versioning: false,
        retentionSeconds: 0,
        isLocked: false,
        softDeleteSeconds: 0,
        defaultEventBasedHold: false,
      },
      ...settings,
    };
  }

  get(name: string): Stored | undefined {
    return this.#live.get(name);
  }

  /** Ascending by the bytes of the names. */
  list(): readonly Stored[] {
    this.#sorted ??= [...this.#live.values()].sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
    return this.#sorted;
  }

  /** Throws unless the live generation is the expected one; 0: there is none. A condition is checked before retention. */
  checkGeneration(name: string, expected: string | null): void {
    if (expected === null) return;
    if (!/^\d+$/.test(expected)) throw invalid(`Invalid value for ifGenerationMatch: ${expected}`);
    if ((this.#live.get(name)?.generation ?? 0) !== Number(expected)) throw conditionNotMet();
  }

  /** Source: https://cloud.google.com/storage/docs/objects#naming */
  checkName(name: string): void {
    const isWellKnown = name.startsWith(".well-known/acme-challenge/");
    if (
      name === "" ||
      Buffer.byteLength(name) > 1024 ||
      /[\r\n]/.test(name) ||
      name === "." ||
      name === ".." ||
      isWellKnown
    )
      throw invalid(`Invalid object name: ${JSON.stringify(name)}`);
  }

  put(
    name: string,
    bytes: Buffer,
    description: { readonly contentType: string; readonly storageClass: string | undefined },
    crc32c = crc32cBase64(bytes),
  ): Stored {
    const before = this.#live.get(name);
    if (before !== undefined) this.#retire(before);
    const stored: Stored = {
      name,
      bytes,
      generation: ++this.#generation,
      createdMs: Date.now(),
      contentType: description.contentType,
      storageClass: description.storageClass ?? "STANDARD",
      crc32c,
      md5: createHash("md5").update(bytes).digest("base64"),
      isHeld: this.settings.defaultEventBasedHold,
      deletedMs: null,
    };
    this.#live.set(name, stored);
    this.#sorted = null;
    return stored;
  }

  delete(stored: Stored): void {
    this.#retire(stored);
    this.#live.delete(stored.name);
    this.#sorted = null;
  }

  checkStorageClass(storageClass: string | undefined): void {
    if (storageClass !== undefined && !STORAGE_CLASSES.includes(storageClass))
      throw invalid(`The specified storage class, ${storageClass}, is not valid.`);
  }

  /** Throws when the object may be neither deleted nor replaced. Messages are the service's own, as others have recorded them. */
  #checkKept(stored: Stored): void {
    const where = `Object '${this.name}/${stored.name}'`;
    if (stored.isHeld)
      throw new Refused(
        403,
        "forbidden",
        `${where} is under active Event-Based hold and cannot be deleted, overwritten or archived until hold is removed.`,
      );
    const untilMs = stored.createdMs + this.settings.retentionSeconds * 1000;
    if (this.settings.versioning || Date.now() >= untilMs) return;
    const until = new Date(untilMs).toISOString().replace("Z", "+00:00");
    throw new Refused(
      403,
      "retentionPolicyNotMet",
      `${where} is subject to bucket's retention policy or object retention and cannot be deleted or overwritten until ${until}`,
    );
  }

  #retire(stored: Stored): void {
    this.#checkKept(stored);
    stored.deletedMs = Date.now();
    if (this.settings.versioning || this.settings.softDeleteSeconds > 0) this.former.push(stored);
  }

  resourceOf(stored: Stored): Fields {
    const time = (ms: number) => new Date(ms).toISOString();
    return {
      kind: "storage#object",
      name: stored.name,
      bucket: this.name,
      generation: String(stored.generation),
      size: String(stored.bytes.byteLength),
      timeCreated: time(stored.createdMs),
      updated: time(stored.createdMs),
      ...(stored.deletedMs === null ? {} : { timeDeleted: time(stored.deletedMs) }),
      contentType: stored.contentType,
      storageClass: stored.storageClass,
      crc32c: stored.crc32c,
      md5Hash: stored.md5,
    };
  }

  get resource(): Fields {
    const { versioning, retentionSeconds, isLocked, softDeleteSeconds, defaultEventBasedHold } = this.settings;
    return {
      kind: "storage#bucket",
      name: this.name,
      location: "EUROPE-WEST3",
      storageClass: "STANDARD",
      ...(versioning ? { versioning: { enabled: true } } : {}),
      ...(retentionSeconds > 0
        ? { retentionPolicy: { retentionPeriod: String(retentionSeconds), ...(isLocked ? { isLocked } : {}) } }
        : {}),
      softDeletePolicy: { retentionDurationSeconds: String(softDeleteSeconds) },
      ...(defaultEventBasedHold ? { defaultEventBasedHold } : {}),
    };
  }
}
