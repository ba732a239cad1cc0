import type { Diagnosis } from "../backend.ts";
import { checkClock, checkTransport } from "../http/diagnose.ts";
import { child, childText, type XmlNode } from "../http/xml.ts";
import { serviceUrl } from "./address.ts";
import type { AzureAnswer, AzureClient } from "./client.ts";
import { noncurrentVersions } from "./list.ts";

export interface DiagnoseOptions {
  readonly keyPrefix: string;
  readonly signal: AbortSignal | undefined;
}

/** What credentials that may not look, or an emulator without such a thing, are answered. */
const NOT_TOLD = [400, 403, 404, 409, 501];
/** Azure refuses requests that are further off than 15 min. */
const CLOCK_FAILURE_MS = 10 * 60_000;

/**
 * What `bakelite doctor` asks of a container. Reads settings only: nothing is stored, not even for a moment. Conditional
 * writes need no look: every version of the service heeds them.
 */
export async function diagnoseContainer(
  client: AzureClient,
  { keyPrefix, signal }: DiagnoseOptions,
): Promise<readonly Diagnosis[]> {
  const askedMs = client.ownNowMs();
  const container = await client.send({
    method: "HEAD",
    query: { restype: "container" },
    signal,
    doing: "look at the container",
    permission: "the role Storage Blob Data Reader",
    accept: [403, 404],
  });
  const answeredMs = client.ownNowMs();
  const account = await askAccount(client, signal);
  return [
    checkClock(container.headers, { ownMs: (askedMs + answeredMs) / 2, failureMs: CLOCK_FAILURE_MS }),
    ...checkTransport(serviceUrl(client.address)),
    { check: "account", level: "pass", message: `opened by ${client.credentialSource}` } as const,
    ...checkPublicAccess(container),
    ...checkNamespace(account),
    { check: "conditional writes", level: "pass", message: "supported" } as const,
    checkImmutability(container),
    await checkSoftDelete(client, signal),
    await checkVersions(client, { keyPrefix, signal }),
  ];
}

async function askAccount(client: AzureClient, signal: AbortSignal | undefined): Promise<AzureAnswer> {
  return await client.send({
    method: "GET",
    query: { restype: "account", comp: "properties" },
    signal,
    doing: "look at the account",
    permission: "a signature",
    accept: NOT_TOLD,
  });
}

function checkPublicAccess({ headers, refusal }: AzureAnswer): readonly Diagnosis[] {
  const access = refusal === null ? headers.get("x-ms-blob-public-access") : null;
  if (access === null) return [];
  return [
    {
      check: "public access",
      level: "warn",
      message: "anybody may read the blobs of this container without credentials",
      hint: "make the container private (`az storage container set-permission --public-access off`), and encrypt what is stored",
    },
  ];
}

function checkNamespace({ headers, refusal }: AzureAnswer): readonly Diagnosis[] {
  if (refusal !== null || headers.get("x-ms-is-hns-enabled") !== "true") return [];
  return [
    {
      check: "namespace",
      level: "warn",
      message:
        "the account has a hierarchical namespace: empty directories stay when what is in them is deleted, and its listings were never tried with bakelite",
      hint: "prefer an account without one for backups",
    },
  ];
}

function checkImmutability({ headers, refusal }: AzureAnswer): Diagnosis {
  const check = "immutability";
  if (refusal !== null) return { check, level: "pass", message: "not known: the credentials may not look" };
  if (headers.get("x-ms-immutable-storage-with-versioning-enabled") === "true")
    return {
      check,
      level: "pass",
      message: "version-level: what is deleted or replaced stays as a version until its time",
    };
  const found = [
    ...(headers.get("x-ms-has-immutability-policy") === "true" ? ["an immutability policy"] : []),
    ...(headers.get("x-ms-has-legal-hold") === "true" ? ["a legal hold"] : []),
  ];
  if (found.length === 0) return { check, level: "pass", message: "off" };
  return {
    check,
    level: "warn",
    message: `${found.join(" and ")} on the whole container: CURRENT cannot be replaced there, which \`verify\` reports, and nothing can be removed`,
    hint: "use version-level immutability, which keeps old versions and lets new ones take their names",
  };
}

async function checkSoftDelete(client: AzureClient, signal: AbortSignal | undefined): Promise<Diagnosis> {
  const check = "soft delete";
  const { value } = await client.sendForXml(
    {
      method: "GET",
      isOfService: true,
      query: { restype: "service", comp: "properties" },
      signal,
      doing: "look at the account's settings",
      permission: "the account's key",
      accept: NOT_TOLD,
    },
    "StorageServiceProperties",
    (root) => ({ days: softDeleteDays(root) }),
  );
  if (value === null) return { check, level: "pass", message: "not known: the credentials may not look" };
  if (value.days === null) return { check, level: "pass", message: "off" };
  return {
    check,
    level: "warn",
    message: `on: what is deleted or replaced stays for ${value.days} days, and is paid for`,
    hint: "keep it if you want deleted backups back for that long; else switch soft delete for blobs off",
  };
}

function softDeleteDays(root: XmlNode): string | null {
  const policy = child(root, "DeleteRetentionPolicy");
  return childText(policy, "Enabled") === "true" ? (childText(policy, "Days") ?? "some") : null;
}

/** Of what bakelite stored: whether the account keeps versions is told only by blobs that have some. */
async function checkVersions(client: AzureClient, { keyPrefix, signal }: DiagnoseOptions): Promise<Diagnosis> {
  const check = "versioning";
  const found = await noncurrentVersions(client, { prefix: keyPrefix, signal });
  if (found === null) return { check, level: "pass", message: "not known: the account does not tell" };
  if (found.count === 0 && !client.place.hasVersions)
    return { check, level: "pass", message: "no old versions are kept" };
  return {
    check,
    level: "warn",
    message: `${found.count} versions that were deleted or replaced are kept, and paid for; bakelite deletes no version`,
    hint: "let a lifecycle rule of the account delete previous versions, after as many days as you want them back",
  };
}
