import type { Diagnosis } from "../backend.ts";
import { checkClock, checkTransport } from "../http/diagnose.ts";
import { describeRefusal } from "../http/refusal.ts";
import { child, childText, type XmlNode } from "../http/xml.ts";
import type { S3Client, S3Request } from "./client.ts";

export interface DiagnoseOptions {
  /** As configured; undefined: it was looked up. */
  readonly region: string | undefined;
  /** undefined: Amazon. */
  readonly endpoint: string | undefined;
  readonly sse: string | undefined;
  readonly signal: AbortSignal | undefined;
}

/** S3 refuses requests that are further off than 15 min. */
const CLOCK_FAILURE_MS = 10 * 60_000;
/** What a server without such a thing, or credentials that may not look, are answered. */
const NOT_TOLD = [400, 403, 404, 405, 501];

/**
 * What `bakelite doctor` asks of a bucket. Reads settings of the bucket only: nothing is stored, not even for a moment, so
 * whether conditional puts work is told from what this process has seen.
 */
export async function diagnoseBucket(client: S3Client, options: DiagnoseOptions): Promise<readonly Diagnosis[]> {
  const askedMs = client.ownNowMs();
  const head = await client.send({
    method: "HEAD",
    signal: options.signal,
    doing: "look at the bucket",
    permission: "s3:ListBucket",
    accept: [403, 404],
  });
  const versioning = await ask(
    client,
    options,
    { versioning: "" },
    "VersioningConfiguration",
    "s3:GetBucketVersioning",
  );
  return [
    checkClock(head.headers, { ownMs: (askedMs + client.ownNowMs()) / 2, failureMs: CLOCK_FAILURE_MS }),
    ...checkTransport(options.endpoint),
    await checkRegion(client, options),
    checkConditionalWrites(client),
    checkVersioning(versioning),
    checkObjectLock(
      await ask(
        client,
        options,
        { "object-lock": "" },
        "ObjectLockConfiguration",
        "s3:GetBucketObjectLockConfiguration",
      ),
    ),
    await checkEncryption(client, options),
  ].filter((found) => found !== null);
}

/** What the bucket was asked for; a text says why it did not tell. */
type Told = { readonly root: XmlNode } | { readonly why: string; readonly code: string };

async function ask(
  client: S3Client,
  { signal }: DiagnoseOptions,
  query: S3Request["query"] & {},
  rootName: string,
  permission: string,
): Promise<Told> {
  const { value, answer } = await client.sendForXml(
    { method: "GET", query, signal, doing: "look at the bucket's settings", permission, accept: NOT_TOLD },
    // One known server answers whatever it does not know with its list of objects.
    [rootName, "ListBucketResult"],
    (root, _answer, found) => ({ root, found }),
  );
  if (value?.found === rootName) return { root: value.root };
  const refusal = answer.refusal;
  if (refusal === null) return { why: "the server does not tell", code: "" };
  if (refusal.status === 403) return { why: `the credentials lack ${permission}`, code: refusal.code };
  return { why: describeRefusal(refusal), code: refusal.code };
}

async function checkRegion(client: S3Client, { region }: DiagnoseOptions): Promise<Diagnosis> {
  const inUse = await client.region();
  if (region === undefined || region === inUse) return { check: "region", level: "pass", message: inUse };
  return {
    check: "region",
    level: "warn",
    message: `the bucket is in ${inUse}, not in ${region}: every start costs a refused request`,
    hint: `set region = "${inUse}"`,
  };
}

function checkConditionalWrites({ place }: S3Client): Diagnosis {
  const check = "conditional writes";
  if (place.conditionalPut === "absent" || place.conditionalComplete === "absent")
    return {
      check,
      level: "warn",
      message:
        "the server does not refuse to replace an object in one step: bakelite looks before it stores, and again after",
      hint: "make sure that no two daemons ever write the same database name there",
    };
  if (place.conditionalPut === "proven") return { check, level: "pass", message: "supported" };
  return { check, level: "pass", message: "found out at the first write, since looking takes one" };
}

function checkVersioning(told: Told): Diagnosis {
  const check = "versioning";
  if ("why" in told) return { check, level: "pass", message: `not known: ${told.why}` };
  const status = childText(told.root, "Status");
  if (status === "Enabled")
    return {
      check,
      level: "warn",
      message:
        "on: what is deleted or replaced stays as a noncurrent version, and is paid for; bakelite deletes no version",
      hint: "let a lifecycle rule of the bucket expire noncurrent versions (NoncurrentVersionExpiration), after as many days as you want them back",
    };
  if (status === "Suspended")
    return {
      check,
      level: "warn",
      message: "suspended: versions from before stay, and are paid for",
      hint: "let a lifecycle rule of the bucket expire noncurrent versions, if you do not need them",
    };
  return { check, level: "pass", message: "off" };
}

function checkObjectLock(told: Told): Diagnosis {
  const check = "object lock";
  if ("why" in told) {
    const isOff = told.code === "ObjectLockConfigurationNotFoundError" || told.code === "NoSuchObjectLockConfiguration";
    return { check, level: "pass", message: isOff ? "off" : `not known: ${told.why}` };
  }
  if (childText(told.root, "ObjectLockEnabled") !== "Enabled") return { check, level: "pass", message: "off" };
  const retention = child(child(told.root, "Rule"), "DefaultRetention");
  const mode = childText(retention, "Mode");
  if (mode === undefined)
    return {
      check,
      level: "warn",
      message: "on, without a default retention: nothing locks what bakelite stores",
      hint: "set a default retention on the bucket, as long as nobody may be able to remove a backup",
    };
  const years = childText(retention, "Years");
  const length = years === undefined ? `${childText(retention, "Days") ?? "?"} days` : `${years} years`;
  return { check, level: "pass", message: `on: ${mode.toLowerCase()}, ${length}` };
}

async function checkEncryption(client: S3Client, options: DiagnoseOptions): Promise<Diagnosis> {
  const check = "server-side encryption";
  if (options.sse !== undefined) return { check, level: "pass", message: `${options.sse}, as \`sse\` asks` };
  const rootName = "ServerSideEncryptionConfiguration";
  const told = await ask(client, options, { encryption: "" }, rootName, "s3:GetEncryptionConfiguration");
  if ("why" in told) {
    const isOff = told.code === "ServerSideEncryptionConfigurationNotFoundError";
    return { check, level: "pass", message: isOff ? "off" : `not known: ${told.why}` };
  }
  const rule = child(child(told.root, "Rule"), "ApplyServerSideEncryptionByDefault");
  return { check, level: "pass", message: `${childText(rule, "SSEAlgorithm") ?? "off"}, by default of the bucket` };
}
