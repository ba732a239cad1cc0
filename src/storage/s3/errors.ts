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

/** What an S3 server said instead of doing it. `code` is "" when it gave none, as in every answer to a HEAD. */
export interface S3Refusal extends Refusal {
  /** The region that the bucket is in, where the answer names it. */
  readonly region: string | undefined;
}

/** What is being done, for messages. */
export interface Doing extends AnyDoing {
  /** The permission of AWS that it takes, such as `s3:PutObject`. */
  readonly permission: string;
  /** Where the credentials come from. */
  readonly credentialSource: string;
}

/** What to look at when a request gets no answer. */
export const NETWORK_HINTS: NetworkHints = {
  name: "check `endpoint` and `bucket`, this machine's network and DNS; a server without names for its buckets needs `path_style = true`",
  certificateName:
    "use the name that the certificate is for in `endpoint`; `path_style = true` keeps the bucket out of the host name",
};

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
  return explainedRefusal(refusal, about, explainRefusal(refusal, about));
}

/** An answer that is not what S3 defines. */
export function malformedAnswer(about: AnyDoing, what: string): BakeliteError {
  return malformedAnswerError(about, "S3", what);
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
