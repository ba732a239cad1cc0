import { z } from "zod";
import { formatDuration } from "../../util/durations.ts";
import type { Diagnosis } from "../backend.ts";
import { checkClock, checkTransport } from "../http/diagnose.ts";
import type { GcsClient } from "./client.ts";

/** A login is refused when the clock is further off than about 5 min. */
const CLOCK_FAILURE_MS = 4 * 60_000;
const NEEDED = [
  "storage.objects.create",
  "storage.objects.get",
  "storage.objects.list",
  "storage.objects.delete",
] as const;
const seconds = z
  .string()
  .regex(/^\d{1,12}$/)
  .transform(Number);

/** What we read of a bucket's resource. Source: https://cloud.google.com/storage/docs/json_api/v1/buckets#resource */
const bucketSchema = z.object({
  location: z.string().optional(),
  storageClass: z.string().optional(),
  versioning: z.object({ enabled: z.boolean().optional() }).optional(),
  retentionPolicy: z.object({ retentionPeriod: seconds, isLocked: z.boolean().optional() }).optional(),
  softDeletePolicy: z.object({ retentionDurationSeconds: seconds }).optional(),
  defaultEventBasedHold: z.boolean().optional(),
  objectRetention: z.object({ mode: z.string().optional() }).optional(),
});
type Bucket = z.output<typeof bucketSchema>;

/** What `bakelite doctor` asks of a bucket. Reads settings only: nothing is stored, not even for a moment. */
export async function diagnoseBucket(
  client: GcsClient,
  { signal }: { readonly signal: AbortSignal | undefined },
): Promise<readonly Diagnosis[]> {
  const askedMs = client.nowMs();
  const { value: held, answer } = await client.sendForJson(
    {
      doing: "ask for the permissions",
      permission: "storage.objects.list",
      method: "GET",
      at: "permissions",
      query: { permissions: NEEDED },
      signal,
      accept: [400, 403, 404, 405, 501],
    },
    z.object({ permissions: z.array(z.string()).optional() }),
  );
  const ownMs = (askedMs + client.nowMs()) / 2;
  const { value: bucket } = await client.sendForJson(
    {
      doing: "look at the bucket's settings",
      permission: "storage.buckets.get",
      method: "GET",
      at: "bucket",
      query: { fields: Object.keys(bucketSchema.shape).join(",") },
      signal,
      accept: [403],
    },
    bucketSchema,
  );
  const settings =
    bucket === null
      ? [{ check: "bucket", level: "pass" as const, message: "not known: the credentials lack storage.buckets.get" }]
      : judgeBucket(bucket);
  return [
    checkClock(answer.headers, { ownMs, failureMs: CLOCK_FAILURE_MS }),
    ...judgeTransport(client.base),
    ...checkPermissions(held?.permissions ?? null),
    { check: "conditional writes", level: "pass", message: "supported (ifGenerationMatch)" },
    ...settings,
  ];
}

/** A token can be used by whoever has it, unlike a signature. */
function judgeTransport(base: string): readonly Diagnosis[] {
  const message = "the endpoint is http: whoever is on the way can take the access token and do what it allows";
  return checkTransport(base).map((found) => ({ ...found, message }));
}

function checkPermissions(held: readonly string[] | null): readonly Diagnosis[] {
  const check = "permissions";
  if (held === null) return [{ check, level: "pass", message: "not known: the server does not tell" }];
  const missing = NEEDED.filter((permission) => !held.includes(permission));
  if (missing.length === 0) return [{ check, level: "pass", message: "create, get, list and delete objects" }];
  // Google counts replacing as deleting, so even who removes nothing needs it.
  const consequence = missing.includes("storage.objects.delete")
    ? ": CURRENT cannot be replaced, and nothing removed"
    : "";
  return [
    {
      check,
      level: "fail",
      message: `${missing.join(", ")} missing${consequence}`,
      hint: "grant roles/storage.objectUser on the bucket",
    },
  ];
}

function judgeBucket(bucket: Bucket): readonly Diagnosis[] {
  const where = [bucket.location, bucket.storageClass].filter((part) => part !== undefined).join(", ");
  return [
    { check: "bucket", level: "pass", message: where === "" ? "found" : where },
    judgeVersioning(bucket),
    judgeSoftDelete(bucket),
    ...judgeRetention(bucket),
    ...judgeHolds(bucket),
  ];
}

function judgeVersioning({ versioning }: Bucket): Diagnosis {
  const check = "versioning";
  if (versioning?.enabled !== true) return { check, level: "pass", message: "off" };
  return {
    check,
    level: "warn",
    message:
      "on: what is deleted or replaced stays as a noncurrent version, and is paid for; bakelite deletes no version",
    hint: "let a lifecycle rule of the bucket delete noncurrent versions (daysSinceNoncurrentTime), after as many days as you want them back",
  };
}

function judgeSoftDelete({ softDeletePolicy }: Bucket): Diagnosis {
  const check = "soft delete";
  const ms = (softDeletePolicy?.retentionDurationSeconds ?? 0) * 1000;
  if (ms === 0) return { check, level: "pass", message: "off" };
  return {
    check,
    level: "warn",
    message: `on: what is deleted or replaced can be had back for ${formatDuration(ms)}, and is paid for that long`,
    hint: "keep it if you want that; else `gcloud storage buckets update --clear-soft-delete gs://…`",
  };
}

function judgeRetention({ retentionPolicy, versioning }: Bucket): readonly Diagnosis[] {
  const check = "retention policy";
  if (retentionPolicy === undefined) return [{ check, level: "pass", message: "none" }];
  const length = formatDuration(retentionPolicy.retentionPeriod * 1000);
  const lock = retentionPolicy.isLocked === true ? "locked for good" : "not locked";
  // Measured by others in September 2026: with versioning, an object that is kept can still be made noncurrent.
  if (versioning?.enabled === true)
    return [{ check, level: "pass", message: `every version is kept for ${length} (${lock})` }];
  return [
    {
      check,
      level: "warn",
      message: `every object is kept for ${length} (${lock}), so CURRENT cannot be replaced, which \`verify\` reports, and nothing younger is removed`,
      hint: "switch object versioning on for the bucket, which lets a kept object become noncurrent, or use a bucket without a retention policy",
    },
  ];
}

function judgeHolds({ defaultEventBasedHold, objectRetention }: Bucket): readonly Diagnosis[] {
  const found: Diagnosis[] = [];
  if (defaultEventBasedHold === true)
    found.push({
      check: "holds",
      level: "warn",
      message: "every new object is put on hold: nothing can be deleted or replaced until somebody releases it",
      hint: "switch the bucket's default event-based hold off, or release the holds by a job of your own",
    });
  if (objectRetention !== undefined)
    found.push({ check: "object retention", level: "pass", message: "allowed; bakelite sets none" });
  return found;
}
