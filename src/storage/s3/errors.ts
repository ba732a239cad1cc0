import { BakeliteError, describeError, type ErrorCode, systemErrorCode } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { childText, parseXml } from "./xml.ts";

/** What an S3 server said instead of doing it. `code` is "" when it gave none, as in every answer to a HEAD. */
export interface S3Refusal {
  readonly status: number;
  readonly code: string;
  readonly message: string;
  readonly requestId: string | undefined;
  /** The region that the bucket is in, where the answer names it. */
  readonly region: string | undefined;
}

/** What is being done, for messages. */
export interface Doing {
  /** Completes "cannot …". */
  readonly doing: string;
  /** `s3://bucket/key`. */
  readonly subject: string;
  /** The permission of AWS that it takes, such as `s3:PutObject`. */
  readonly permission: string;
  /** Where the credentials come from. */
  readonly credentialSource: string;
}

const MAX_MESSAGE_LENGTH = 300;

/** Codes of S3 after which the same request may succeed, whatever their status. */
const PASSING = new Set([
  "BadDigest",
  "ConcurrentModification",
  "ConditionalRequestConflict",
  "IncompleteBody",
  "InternalError",
  "OperationAborted",
  "PriorRequestNotComplete",
  "RequestTimeout",
  "RequestTimeoutException",
  "ServiceUnavailable",
  "SlowDown",
  "Throttling",
  "ThrottlingException",
  "TooManyRequestsException",
  "XAmzContentChecksumMismatch",
  "XAmzContentSHA256Mismatch",
]);

const FULL = new Set([
  "QuotaExceeded",
  "QuotaExceededException",
  "StorageFull",
  "XMinioStorageFull",
  "InsufficientCapacity",
]);
const BAD_CREDENTIALS = new Set(["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "NotSignedUp"]);
const OLD_CREDENTIALS = new Set(["ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"]);

const BAD_SIGNATURES = new Set(["RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "RequestExpired"]);

/** Reads the body of an answer that is no success; anything but an S3 `<Error>` leaves the code empty. */
export function parseRefusal(status: number, headers: Headers, body: Uint8Array): S3Refusal {
  const common = {
    status,
    requestId: headers.get("x-amz-request-id") ?? undefined,
    region: headers.get("x-amz-bucket-region") ?? undefined,
  };
  try {
    const { rootName, root } = parseXml(new TextDecoder().decode(body));
    if (rootName !== "Error") return { ...common, code: "", message: "" };
    return {
      status,
      code: shorten(childText(root, "Code") ?? ""),
      message: shorten(childText(root, "Message") ?? ""),
      requestId: common.requestId ?? childText(root, "RequestId"),
      region: common.region ?? childText(root, "Region"),
    };
  } catch {
    return { ...common, code: "", message: "" };
  }
}

export function isPassing({ status, code }: S3Refusal): boolean {
  if (FULL.has(code) || status === 501 || status === 505 || status === 507) return false;
  return status >= 500 || status === 429 || status === 408 || PASSING.has(code);
}

/** New credentials may help. A HEAD is answered without a code: 400 is what AWS gives it for an expired token. */
export function isOldCredentials({ status, code }: S3Refusal, method: string): boolean {
  return OLD_CREDENTIALS.has(code) || (method === "HEAD" && code === "" && status === 400);
}

/** The server did not get as far as looking at permissions. */
export function isAboutSignature({ code }: S3Refusal): boolean {
  return BAD_CREDENTIALS.has(code) || OLD_CREDENTIALS.has(code) || BAD_SIGNATURES.has(code);
}

/** The refusal as the operator's problem. */
export function refusalError(refusal: S3Refusal, about: Doing): BakeliteError {
  const { code, why, hint } = explainRefusal(refusal, about);
  return new BakeliteError(code, `cannot ${about.doing}: ${why}`, {
    subject: about.subject,
    hint,
    cause: new Error(describeRefusal(refusal)),
  });
}

/** `403 AccessDenied: Access Denied. (request id 4442587FB7D0A2F9)`. */
export function describeRefusal({ status, code, message, requestId }: S3Refusal): string {
  const text = [code, message].filter((part) => part !== "").join(": ");
  const id = requestId === undefined ? "" : ` (request id ${shorten(requestId)})`;
  return `the server answered ${status}${text === "" ? "" : ` ${text}`}${id}`;
}

interface Explanation {
  readonly code: ErrorCode;
  readonly why: string;
  readonly hint: string;
}

function explainRefusal(refusal: S3Refusal, { permission, credentialSource }: Doing): Explanation {
  const { status, code } = refusal;
  if (FULL.has(code) || status === 507)
    return {
      code: "storage-full",
      why: "there is no room left in the storage",
      hint: "raise the quota of the account or bucket, or keep less with `retention` or `max_total_size`",
    };
  if (BAD_CREDENTIALS.has(code))
    return {
      code: "storage-denied",
      why:
        code === "InvalidAccessKeyId"
          ? "the server does not know the access key"
          : "the secret access key does not fit the access key",
      hint: `check the credentials, which come from ${credentialSource}`,
    };
  if (OLD_CREDENTIALS.has(code))
    return {
      code: "storage-denied",
      why: "the temporary credentials have expired or are no longer valid",
      hint: `renew the credentials, which come from ${credentialSource}`,
    };
  if (code.startsWith("KMS."))
    return {
      code: "storage-denied",
      why: "the server may not or cannot use the KMS key",
      hint: "check that the key of `sse_kms_key_id` is enabled, and that its policy allows kms:GenerateDataKey and kms:Decrypt",
    };
  switch (code) {
    case "NoSuchBucket":
      return {
        code: "storage-denied",
        why: "the bucket does not exist",
        hint: "create the bucket, or check `bucket`, `endpoint` and `path_style`",
      };
    case "RequestTimeTooSkewed":
      return {
        code: "storage-denied",
        why: "this machine's clock and the server's differ too much",
        hint: "set the clock of this machine (`timedatectl` shows whether it is synchronized)",
      };
    case "AuthorizationHeaderMalformed":
    case "PermanentRedirect":
    case "IllegalLocationConstraintException":
      return {
        code: "storage-denied",
        why: refusal.region === undefined ? "the region is wrong" : `the bucket is in region ${refusal.region}`,
        hint: "set `region` to the bucket's",
      };
    case "InvalidStorageClass":
      return {
        code: "storage-denied",
        why: "the server does not have that storage class",
        hint: "check `storage_class` and `change_set_storage_class`",
      };
    case "InvalidObjectState":
      return {
        code: "storage-denied",
        why: "the object lies in an archive and has to be restored there first",
        hint: "restore it from the archive (`aws s3api restore-object`), and choose a `storage_class` that can be read at once",
      };
    case "EntityTooSmall":
    case "EntityTooLarge":
      return {
        code: "storage-denied",
        why: "the server does not take parts of this size",
        hint: "change `part_size`",
      };
    case "NotImplemented":
      return {
        code: "storage-denied",
        why: "the server cannot do this",
        hint: "leave out `sse` and `storage_class`, or use another server",
      };
    case "AccountProblem":
    case "UserSuspended":
      return {
        code: "storage-denied",
        why: "the account is suspended",
        hint: "ask the provider of the storage",
      };
  }
  if (status === 401 || status === 403)
    return {
      code: "storage-denied",
      why: "access denied",
      hint: `allow ${permission} to the credentials, which come from ${credentialSource}, and check that they are right`,
    };
  if (isPassing(refusal))
    return {
      code: "storage-unreachable",
      why: status === 503 || status === 429 ? "the server is overloaded" : "the server has a problem",
      hint: "try again later; if it stays, ask the provider of the storage",
    };
  if (status === 301 || status === 307 || status === 308)
    return {
      code: "storage-denied",
      why: "the server sends us elsewhere",
      hint: "set `region` to the bucket's, or `endpoint` to the server's real address",
    };
  if (code === "" && status === 404)
    return {
      code: "storage-denied",
      why: "the bucket does not exist, or this is not an S3 server",
      hint: "create the bucket, or check `bucket`, `endpoint` and `path_style`",
    };
  if (code === "")
    return {
      code: "storage-unreachable",
      why: "the answer does not look like S3's",
      hint: "check `endpoint` and `path_style`, and whether a proxy stands in between",
    };
  return {
    code: "storage-denied",
    why: "the server refuses the request",
    hint: "check the backend's settings against what the server supports",
  };
}

/** A request without an answer: names, connections, certificates, time. Always worth another try, but for certificates. */
export function networkError(cause: unknown, about: Doing, endpoint: string): BakeliteError {
  const { code, why, hint } = explainNetwork(systemErrorCode(cause) ?? "", endpoint);
  return new BakeliteError(code, `cannot ${about.doing}: ${why}`, {
    subject: about.subject,
    hint,
    cause: strip(cause),
  });
}

function explainNetwork(systemCode: string, endpoint: string): Explanation {
  if (/CERT|SELF_SIGNED|ISSUER|LEAF_SIGNATURE|HOSTNAME_MISMATCH/.test(systemCode))
    return explainCertificate(systemCode, endpoint);
  const code = "storage-unreachable";
  switch (systemCode) {
    case "ECONNREFUSED":
    case "ConnectionRefused":
      return {
        code,
        why: `nothing accepts connections at ${endpoint}`,
        hint: "check that the server is running, and `endpoint`",
      };
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EAI_NODATA":
      return {
        code,
        why: `the name of ${endpoint} cannot be resolved`,
        hint: "check `endpoint` and `bucket`, this machine's network and DNS; a server without names for its buckets needs `path_style = true`",
      };
    case "EHOSTUNREACH":
    case "ENETUNREACH":
      return { code, why: `there is no way to ${endpoint}`, hint: "check this machine's network" };
    case "TIMEOUT":
      return {
        code,
        why: "the server did not answer, or stopped in the middle, for as long as `timeout` allows",
        hint: "check the network and the server; a slow line may need a longer `timeout`",
      };
    default:
      return {
        code,
        why: `the connection to ${endpoint} broke`,
        hint: "check the network and the server; an http:// server needs http:// in `endpoint`, a TLS one https://",
      };
  }
}

function explainCertificate(systemCode: string, endpoint: string): Explanation {
  if (systemCode.includes("EXPIRED") || systemCode.includes("NOT_YET_VALID"))
    return {
      code: "storage-denied",
      why: `the certificate of ${endpoint} is expired or not yet valid`,
      hint: "renew the server's certificate, or set this machine's clock",
    };
  if (systemCode.includes("ALTNAME") || systemCode.includes("HOSTNAME"))
    return {
      code: "storage-denied",
      why: `the certificate is not for the host name of ${endpoint}`,
      hint: "use the name that the certificate is for in `endpoint`; `path_style = true` keeps the bucket out of the host name",
    };
  return {
    code: "storage-denied",
    why: `the certificate of ${endpoint} is not signed by an authority that this machine trusts`,
    hint: "set `ca_file` to the PEM file of the authority that signed it (or of the certificate itself if it signed itself)",
  };
}

/** An answer that is not what S3 defines. */
export function malformedAnswer(about: Doing, what: string): BakeliteError {
  return new BakeliteError("storage-unreachable", `cannot ${about.doing}: the answer is not what S3 defines`, {
    subject: about.subject,
    hint: "check `endpoint`, and whether a proxy stands in between; if it stays, the server is not compatible",
    cause: new Error(what),
  });
}

/** Bun's own advice about fetch is not for the reader. */
function strip(cause: unknown): Error {
  const advice = / ?(?:For more information, pass|Unable to connect\. Is the computer able) .*$/;
  return new Error(shorten(describeError(cause).replace(advice, "")));
}

function shorten(text: string): string {
  const clean = printable(text);
  return clean.length <= MAX_MESSAGE_LENGTH ? clean : `${clean.slice(0, MAX_MESSAGE_LENGTH)}…`;
}
