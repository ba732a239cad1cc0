import type { BakeliteError } from "../../util/errors.ts";
import {
  type Doing as AnyDoing,
  type Explanation,
  explainedRefusal,
  malformedAnswerError,
  type NetworkHints,
  type Refusal,
  shorten,
} from "../http/refusal.ts";
import { childText, parseXml } from "../http/xml.ts";

/** What is being done, for messages. */
export interface Doing extends AnyDoing {
  /** What the credentials must allow: a permission of a SAS and the role that has it. */
  readonly permission: string;
  /** Where the credentials come from. */
  readonly credentialSource: string;
}

/** What to look at when a request gets no answer. */
export const NETWORK_HINTS: NetworkHints = {
  name: "check `account` and `endpoint`, this machine's network and DNS; other clouds than the public one need `endpoint`",
  certificateName: "use the name that the certificate is for in `endpoint`",
};

/** Codes after which the same request may succeed, whatever their status. */
const PASSING = new Set([
  "ContainerBeingDeleted",
  "InternalError",
  "Md5Mismatch",
  "OperationTimedOut",
  "ServerBusy",
  "TooManyRequests",
]);

/** The key, signature or token does not hold. */
const BAD_CREDENTIALS = new Set([
  "AuthenticationFailed",
  "ExpiredAuthenticationToken",
  "InvalidAuthenticationInfo",
  "NoAuthenticationInformation",
]);

/** Somebody protects the blob from being deleted or replaced. */
const IMMUTABLE = new Set(["BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold", "ContainerImmutableDueToPolicy"]);

/**
 * Reads the body of an answer that is no success; HEAD has the code in a header. Of the message only the first line: the next ones repeat the
 * request id and time, and `AuthenticationErrorDetail`, which repeats what was signed, is not looked at.
 * Source: https://learn.microsoft.com/en-us/rest/api/storageservices/status-and-error-codes2
 */
export function parseRefusal(status: number, headers: Headers, body: Uint8Array): Refusal {
  const common = { status, requestId: headers.get("x-ms-request-id") ?? undefined };
  const headerCode = shorten(headers.get("x-ms-error-code") ?? "");
  try {
    const { rootName, root } = parseXml(new TextDecoder().decode(body));
    if (rootName !== "Error") return { ...common, code: headerCode, message: "" };
    const message = (childText(root, "Message") ?? "").split(/\r?\n/, 1)[0] ?? "";
    return { ...common, code: shorten(childText(root, "Code") ?? headerCode), message: shorten(message) };
  } catch {
    return { ...common, code: headerCode, message: "" };
  }
}

export function isPassing({ status, code }: Refusal): boolean {
  if (status === 501 || status === 505 || status === 507) return false;
  return status >= 500 || status === 429 || status === 408 || PASSING.has(code);
}

/** The server did not get as far as looking at permissions. */
export function isAboutCredentials({ status, code }: Refusal): boolean {
  return BAD_CREDENTIALS.has(code) || (status === 401 && code === "");
}

export function isImmutable({ status, code }: Refusal): boolean {
  return status === 409 && IMMUTABLE.has(code);
}

/** The credentials may not do this, whatever the blob. */
export function isDenial({ status, code }: Refusal): boolean {
  return status === 403 && code.startsWith("Authorization");
}

/** The refusal as the operator's problem. */
export function refusalError(refusal: Refusal, about: Doing): BakeliteError {
  return explainedRefusal(refusal, about, explainRefusal(refusal, about));
}

/** An answer that is not what Azure defines. */
export function malformedAnswer(about: AnyDoing, what: string): BakeliteError {
  return malformedAnswerError(about, "Azure Blob Storage", what);
}

function explainRefusal(refusal: Refusal, about: Doing): Explanation {
  const { status, code } = refusal;
  if (isImmutable(refusal))
    return {
      code: "storage-denied",
      why: "an immutability policy or a legal hold of the container protects what is there",
      hint: "wait until the policy lets it go; to keep backups from being removed and still replace CURRENT, use version-level immutability",
    };
  const known = EXPLAINED[code];
  if (known !== undefined) return { code: "storage-denied", ...known };
  if (isAboutCredentials(refusal))
    return {
      code: "storage-denied",
      why: "the key, signature or token is wrong or has expired",
      hint: `check the credentials, which come from ${about.credentialSource}, \`account\`, and this machine's clock`,
    };
  if (code === "InsufficientAccountPermissions" || isDenial(refusal)) return explainDenial(code, about);
  if (status === 401 || status === 403)
    return {
      code: "storage-denied",
      why: "access denied",
      hint: `allow ${about.permission} to the credentials, which come from ${about.credentialSource}`,
    };
  if (isPassing(refusal))
    return {
      code: "storage-unreachable",
      why: status === 503 || status === 429 ? "the server is overloaded" : "the server has a problem",
      hint: "try again later; if it stays, look at the state of Azure in that region",
    };
  if (code === "" && status >= 300 && status < 400)
    return { code: "storage-denied", why: "the server sends us elsewhere", hint: "check `endpoint`" };
  if (code === "" && status === 404)
    return {
      code: "storage-denied",
      why: "the container does not exist, or this is not Azure Blob Storage",
      hint: "create the container, or check `account`, `container` and `endpoint`",
    };
  if (code === "")
    return {
      code: "storage-unreachable",
      why: "the answer does not look like Azure's",
      hint: "check `endpoint`, and whether a proxy stands in between",
    };
  return {
    code: "storage-denied",
    why: "the server refuses the request",
    hint: "check the backend's settings against what the account supports",
  };
}

function explainDenial(code: string, { permission, credentialSource }: Doing): Explanation {
  if (code === "AuthorizationFailure")
    return {
      code: "storage-denied",
      why: "access denied, perhaps by the network rules of the account",
      hint: `allow this machine in the account's networking, and ${permission} to the credentials, which come from ${credentialSource}`,
    };
  if (code === "AuthorizationProtocolMismatch")
    return { code: "storage-denied", why: "the signature allows https only", hint: "use https in `endpoint`" };
  if (code === "AuthorizationSourceIPMismatch")
    return {
      code: "storage-denied",
      why: "the signature is not for the address of this machine",
      hint: "make a new shared access signature without, or with another, address range",
    };
  return {
    code: "storage-denied",
    why: "access denied",
    hint: `allow ${permission} to the credentials, which come from ${credentialSource}`,
  };
}

const EXPLAINED: Readonly<Record<string, { readonly why: string; readonly hint: string } | undefined>> = {
  AccountIsDisabled: { why: "the storage account is disabled", hint: "look at the account in the Azure portal" },
  BlobArchived: {
    why: "the blob lies in the archive tier and has to be rehydrated first",
    hint: "set its tier to Hot, Cool or Cold (`az storage blob set-tier`) and wait for hours; let no lifecycle rule archive backups",
  },
  BlobBeingRehydrated: {
    why: "the blob comes out of the archive tier, which takes hours",
    hint: "try again when it is there (`az storage blob show` names its tier)",
  },
  BlobTierInadequateForContentLength: {
    why: "the tier does not take blobs of this size",
    hint: "change `storage_class`",
  },
  ContainerDisabled: { why: "the container is disabled", hint: "look at the container in the Azure portal" },
  ContainerNotFound: {
    why: "the container does not exist",
    hint: "create the container, or check `account`, `container` and `endpoint`",
  },
  FeatureVersionMismatch: {
    why: "the account cannot do this",
    hint: "leave out `storage_class`, or use a general-purpose v2 account",
  },
  InvalidHeaderValue: {
    why: "the server does not take a value that was sent",
    hint: "leave out `storage_class` and `change_set_storage_class`; an emulator may be too old for this version of bakelite",
  },
  KeyBasedAuthenticationNotPermitted: {
    why: "the account does not take keys or signatures made with them",
    hint: "use a managed identity, or allow shared keys in the account's configuration",
  },
  LeaseIdMissing: { why: "somebody holds a lease on it", hint: "break the lease (`az storage blob lease break`)" },
  PublicAccessNotPermitted: {
    why: "the request had no credentials that count, and the account is not public",
    hint: "give `account_key_file` or `sas_token_file`",
  },
  SnapshotsPresent: {
    why: "the blob has snapshots that somebody else took",
    hint: "delete the snapshots, or let a lifecycle rule do it; bakelite deletes none",
  },
  UnsupportedHeader: {
    why: "the account cannot do this",
    hint: "leave out `storage_class`, or use a general-purpose v2 account",
  },
};
