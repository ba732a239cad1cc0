import { BakeliteError, describeError, type ErrorCode, systemErrorCode } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";

/** What a server said instead of doing it. `code` is "" when it gave none, as in every answer to a HEAD. */
export interface Refusal {
  readonly status: number;
  readonly code: string;
  readonly message: string;
  readonly requestId: string | undefined;
}

/** What is being done, for messages. */
export interface Doing {
  /** Completes "cannot …". */
  readonly doing: string;
  /** `s3://bucket/key`. */
  readonly subject: string;
}

/** A failure as the operator's problem. */
export interface Explanation {
  readonly code: ErrorCode;
  readonly why: string;
  readonly hint: string;
}

/** What to look at, where one service has other keys of the configuration than the next. */
export interface NetworkHints {
  /** The host's name cannot be resolved. */
  readonly name: string;
  /** The certificate is for another name. */
  readonly certificateName: string;
}

const MAX_MESSAGE_LENGTH = 300;

/** One line without control characters, at most 300 characters. */
export function shorten(text: string): string {
  const clean = printable(text);
  return clean.length <= MAX_MESSAGE_LENGTH ? clean : `${clean.slice(0, MAX_MESSAGE_LENGTH)}…`;
}

/** `403 AccessDenied: Access Denied. (request id 4442587FB7D0A2F9)`. */
export function describeRefusal({ status, code, message, requestId }: Refusal): string {
  const text = [code, message].filter((part) => part !== "").join(": ");
  const id = requestId === undefined ? "" : ` (request id ${shorten(requestId)})`;
  return `the server answered ${status}${text === "" ? "" : ` ${text}`}${id}`;
}

/** The refusal as the operator's problem. */
export function explainedRefusal(refusal: Refusal, about: Doing, { code, why, hint }: Explanation): BakeliteError {
  return new BakeliteError(code, `cannot ${about.doing}: ${why}`, {
    subject: about.subject,
    hint,
    cause: new Error(describeRefusal(refusal)),
  });
}

/** A request without an answer: names, connections, certificates, time. Always worth another try, but for certificates. */
export function networkError(
  cause: unknown,
  about: Doing,
  { endpoint, hints }: { readonly endpoint: string; readonly hints: NetworkHints },
): BakeliteError {
  const { code, why, hint } = explainNetwork(systemErrorCode(cause) ?? "", endpoint, hints);
  return new BakeliteError(code, `cannot ${about.doing}: ${why}`, {
    subject: about.subject,
    hint,
    cause: strip(cause),
  });
}

function explainNetwork(systemCode: string, endpoint: string, hints: NetworkHints): Explanation {
  if (/CERT|SELF_SIGNED|ISSUER|LEAF_SIGNATURE|HOSTNAME_MISMATCH/.test(systemCode))
    return explainCertificate(systemCode, endpoint, hints);
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
        hint: hints.name,
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

function explainCertificate(systemCode: string, endpoint: string, hints: NetworkHints): Explanation {
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
      hint: hints.certificateName,
    };
  return {
    code: "storage-denied",
    why: `the certificate of ${endpoint} is not signed by an authority that this machine trusts`,
    hint: "set `ca_file` to the PEM file of the authority that signed it (or of the certificate itself if it signed itself)",
  };
}

/** An answer that is not what `service` defines. */
export function malformedAnswerError(about: Doing, service: string, what: string): BakeliteError {
  return new BakeliteError("storage-unreachable", `cannot ${about.doing}: the answer is not what ${service} defines`, {
    subject: about.subject,
    hint: "check `endpoint`, and whether a proxy stands in between; if it stays, the server is not compatible",
    cause: new Error(what),
  });
}

/**
 * Bun's own advice about fetch is not for the reader. The address that some of its messages repeat goes without its query,
 * where a signature may stand.
 */
function strip(cause: unknown): Error {
  const advice = / ?(?:For more information, pass|Unable to connect\. Is the computer able) .*$/;
  return new Error(
    shorten(
      describeError(cause)
        .replace(/(https?:\/\/[^\s"?]*)\?[^\s"]*/g, "$1")
        .replace(advice, "")
        .replace(/:\s*$/, ""),
    ),
  );
}
