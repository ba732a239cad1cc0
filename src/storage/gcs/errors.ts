import { z } from "zod";
import type { BakeliteError } from "../../util/errors.ts";
import {
  type Doing as CommonDoing,
  type Explanation,
  explainedRefusal,
  malformedAnswerError,
  type NetworkHints,
  type Refusal,
  shorten,
} from "../http/refusal.ts";
import { parseJson } from "./json.ts";

/** What is being done, for messages. */
export interface Doing extends CommonDoing {
  /** The permission that it takes, such as `storage.objects.create`. */
  readonly permission: string;
  /** Where the credentials come from. */
  readonly credentialSource: string;
}

export const NETWORK_HINTS: NetworkHints = {
  name: "check this machine's network and DNS, and `endpoint`",
  certificateName: "use the name that the certificate is for in `endpoint`",
};

/** Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes */
const errorBody = z.object({
  error: z.object({
    message: z.string().optional(),
    errors: z.array(z.object({ reason: z.string().optional() })).optional(),
  }),
});

/** Reasons of a 403 that pass. Source: as above, "403-Forbidden". */
const PASSING_REASONS = new Set(["rateLimitExceeded", "userRateLimitExceeded"]);

/** Reads the body of an answer that is no success: JSON, or a line of text where an object's bytes were asked for. */
export function parseRefusal(status: number, headers: Headers, body: Uint8Array): Refusal {
  const requestId = headers.get("x-guploader-uploadid") ?? undefined;
  const text = new TextDecoder().decode(body);
  const found = errorBody.safeParse(parseJson(text));
  if (found.success) {
    const { message = "", errors = [] } = found.data.error;
    return { status, code: shorten(errors[0]?.reason ?? ""), message: shorten(message), requestId };
  }
  // Google says so in plain text and calls it HTML.
  const isText = (headers.get("content-type") ?? "").startsWith("text/") && !text.trimStart().startsWith("<");
  return { status, code: "", message: isText ? shorten(text.trim()) : "", requestId };
}

/**
 * The same request may succeed later. A sum that does not fit means that the bytes arrived damaged. Source:
 * https://cloud.google.com/storage/docs/retry-strategy
 */
export function isPassing(refusal: Refusal): boolean {
  const { status, code } = refusal;
  if (status === 501 || status === 505) return false;
  return status >= 500 || status === 429 || status === 408 || PASSING_REASONS.has(code) || isDamage(refusal);
}

/** Of a 404: it is the bucket that is missing. */
export function isMissingBucket({ status, message }: Refusal): boolean {
  return status === 404 && /bucket does not exist/i.test(message);
}

/**
 * Google keeps the object, whoever asks: a retention period, or a hold. A hold has the reason of a missing permission, and only its
 * message tells; measured in September 2026 by others, against the documented `objectUnderActiveHold`.
 */
export function isKept({ status, code, message }: Refusal): boolean {
  if (status !== 403) return false;
  return (
    code === "retentionPolicyNotMet" || code === "objectUnderActiveHold" || /is under active .* hold/i.test(message)
  );
}

/** `PERMISSION_DENIED` of the credentials, not of the object. */
export function isDenial(refusal: Refusal): boolean {
  return refusal.status === 403 && !isKept(refusal) && !isPassing(refusal);
}

function isDamage({ status, message }: Refusal): boolean {
  return status === 400 && /crc32c|md5|checksum|hash/i.test(message) && /match|mismatch|invalid/i.test(message);
}

/** The refusal as the operator's problem. */
export function refusalError(refusal: Refusal, about: Doing): BakeliteError {
  return explainedRefusal(refusal, about, explainRefusal(refusal, about));
}

function explainRefusal(refusal: Refusal, { permission, credentialSource }: Doing): Explanation {
  const { status, code, message } = refusal;
  if (isKept(refusal)) return explainKept(refusal);
  if (isDamage(refusal))
    return {
      code: "storage-unreachable",
      why: "the bytes arrived damaged",
      hint: "try again; if it stays, check this machine's memory and network",
    };
  if (isMissingBucket(refusal))
    return {
      code: "storage-denied",
      why: "the bucket does not exist",
      hint: "create the bucket, or check `bucket` and `endpoint`",
    };
  if (isPassing(refusal))
    return {
      code: "storage-unreachable",
      why: status === 503 || status === 429 || status === 403 ? "the server is overloaded" : "the server has a problem",
      hint: "try again later; if it stays, look at the status page of Google Cloud",
    };
  if (code === "quotaExceeded" || status === 507)
    return {
      code: "storage-full",
      why: "a quota of the project is used up",
      hint: "raise the quota, or keep less with `retention` or `max_total_size`",
    };
  if (/billing account|accountDisabled|billingNotEnabled/i.test(`${code} ${message}`))
    return {
      code: "storage-denied",
      why: "the project has no billing account in use",
      hint: "look at the billing of the project in the Google Cloud console",
    };
  if (/UserProjectMissing|requester pays/i.test(`${code} ${message}`))
    return {
      code: "storage-denied",
      why: "the bucket lets who asks pay (requester pays), which bakelite does not support",
      hint: "use a bucket without it",
    };
  if (/insufficient.*scope|scope.*insufficient|insufficientPermissions/i.test(`${code} ${message}`))
    return {
      code: "storage-denied",
      why: "the credentials are not for Cloud Storage (their scope is too narrow)",
      hint: `give the machine or the login the scope devstorage.read_write or cloud-platform; the credentials come from ${credentialSource}`,
    };
  if (/storage ?class/i.test(message))
    return {
      code: "storage-denied",
      why: "the server does not have that storage class",
      hint: "check `storage_class` and `change_set_storage_class`: STANDARD, NEARLINE, COLDLINE or ARCHIVE",
    };
  if (status === 401)
    return {
      code: "storage-denied",
      why: "the access token was refused",
      hint: `check the credentials, which come from ${credentialSource}`,
    };
  if (status === 403)
    return {
      code: "storage-denied",
      why: "access denied",
      hint: `grant ${permission} on the bucket (roles/storage.objectUser has all that is needed) to the credentials, which come from ${credentialSource}`,
    };
  if (code === "" && status === 404)
    return {
      code: "storage-denied",
      why: "the bucket does not exist, or this is not Google Cloud Storage",
      hint: "create the bucket, or check `bucket` and `endpoint`",
    };
  if (code === "")
    return {
      code: "storage-unreachable",
      why: "the answer does not look like Google's",
      hint: "check `endpoint`, and whether a proxy stands in between",
    };
  return {
    code: "storage-denied",
    why: "the server refuses the request",
    hint: "check the backend's settings against what the server supports",
  };
}

function explainKept({ message }: Refusal): Explanation {
  const until = /\buntil (\d{4}-\d{2}-\d{2}T[0-9:.]+(?:Z|[+-]\d{2}:\d{2}))/.exec(message)?.[1];
  const timeMs = Date.parse(until ?? "");
  if (Number.isNaN(timeMs) && /hold/i.test(message))
    return {
      code: "storage-denied",
      why: "a hold keeps the object, which cannot be deleted or replaced until that is removed",
      hint: "release the hold when nobody needs it any more; bakelite tries again later",
    };
  const when = Number.isNaN(timeMs) ? "its retention ends" : new Date(timeMs).toISOString().replace(/\.\d{3}/, "");
  return {
    code: "storage-denied",
    why: `the object cannot be deleted or replaced until ${when}, as the bucket's retention policy says`,
    hint: "wait, or let `retention` keep backups longer than the bucket does; with object versioning on, what is kept can still be replaced",
  };
}

/** An answer that is not what Google defines. */
export function malformedAnswer(about: CommonDoing, what: string): BakeliteError {
  return malformedAnswerError(about, "Google Cloud Storage", what);
}
