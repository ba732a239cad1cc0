import { z } from "zod";
import { BakeliteError } from "../../../util/errors.ts";
import type { AwsCredentials } from "./types.ts";

/** Where keys were found, for messages, and what to do when they are not right. */
export interface Origin {
  /** Reads after "in" or "from": `the environment`. */
  readonly source: string;
  readonly hint: string;
}

/** The two halves as they were found; undefined or "" for one that was not. */
interface FoundKeys {
  readonly accessKeyId: string | undefined;
  readonly secretAccessKey: string | undefined;
  readonly sessionToken: string | undefined;
}

/** What each half is called where it was found: `AWS_ACCESS_KEY_ID`. */
interface KeyNames {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken: string;
}

/**
 * Keys that do not say when they expire, after looking at what a mistake does to them: a missing half, quotes around, white
 * space or control characters in them. Throws `storage-denied` that names the half by `names` and never repeats it.
 */
export function checkedKeys(found: FoundKeys, names: KeyNames, origin: Origin): AwsCredentials {
  const { accessKeyId, secretAccessKey } = found;
  const sessionToken = found.sessionToken === "" ? undefined : found.sessionToken;
  const missing = [...(accessKeyId ? [] : [names.accessKeyId]), ...(secretAccessKey ? [] : [names.secretAccessKey])];
  if (!accessKeyId || !secretAccessKey) throw unfit(`${missing.join(" and ")} missing`, origin);
  checkText(accessKeyId, names.accessKeyId, origin);
  checkText(secretAccessKey, names.secretAccessKey, origin);
  if (sessionToken !== undefined) checkText(sessionToken, names.sessionToken, origin);
  return { accessKeyId, secretAccessKey, sessionToken, expiresMs: null };
}

const text = z.string().nullish();
const answerSchema = z.object({
  Version: z.number().optional(),
  Code: text,
  AccessKeyId: text,
  SecretAccessKey: text,
  SessionToken: text,
  Token: text,
  Expiration: text,
});

/**
 * Credentials from a JSON document of the form that the metadata services and a `credential_process` share: AccessKeyId,
 * SecretAccessKey, Token or SessionToken, Expiration (ISO 8601), and Code, which if given is "Success". Throws
 * `storage-denied`, without a word of the document but a code that looks like one.
 */
export function parseKeysDocument(document: string, origin: Origin): AwsCredentials {
  const answer = answerSchema.safeParse(parsedJson(document, origin));
  if (!answer.success) {
    const field = answer.error.issues[0]?.path.join(".") ?? "";
    throw unfit(field === "" ? "the answer is not a JSON object" : `the answer's ${field} has the wrong type`, origin);
  }
  const { Version, Code, AccessKeyId, SecretAccessKey, SessionToken, Token, Expiration } = answer.data;
  if (Version !== undefined && Version !== 1) throw unfit(`the answer has Version ${Version}, and 1 is known`, origin);
  if (Code && Code !== "Success") throw unfit(`the answer is ${errorWord(Code) ?? "a failure"}`, origin);
  const keys = checkedKeys(
    {
      accessKeyId: AccessKeyId ?? undefined,
      secretAccessKey: SecretAccessKey ?? undefined,
      sessionToken: SessionToken ?? Token ?? undefined,
    },
    { accessKeyId: "AccessKeyId", secretAccessKey: "SecretAccessKey", sessionToken: "SessionToken" },
    origin,
  );
  return { ...keys, expiresMs: parseExpiration(Expiration ?? "", origin) };
}

/** Unix milliseconds of an ISO 8601 time; null for "". */
export function parseExpiration(written: string, origin: Origin): number | null {
  if (written === "") return null;
  const expiresMs = /^\d{4}-\d{2}-\d{2}T/.test(written) ? Date.parse(written) : Number.NaN;
  if (Number.isNaN(expiresMs)) throw unfit("the answer's Expiration is not a time", origin);
  return expiresMs;
}

/** What a service calls its failure, if that is a single short word such as `AccessDenied`; else null. */
export function errorWord(code: string): string | null {
  return /^[A-Za-z][A-Za-z0-9.:_-]{0,79}$/.test(code) ? code : null;
}

/** `storage-denied`: credentials were found and are of no use. `what` is a clause without a secret. */
export function unfit(what: string, { source, hint }: Origin): BakeliteError {
  return new BakeliteError("storage-denied", `the AWS credentials from ${source} cannot be used: ${what}`, { hint });
}

function checkText(value: string, name: string, origin: Origin): void {
  if (/^(["']).*\1$/s.test(value)) throw unfit(`${name} is in quotes, which would count as part of it`, origin);
  if (/\s/.test(value)) {
    throw unfit(`${name} has ${value.includes("\n") ? "a line break" : "white space"} in it`, origin);
  }
  // It goes into a header.
  if (!/^[\x21-\x7e]+$/.test(value)) throw unfit(`${name} has characters in it that no key has`, origin);
}

function parsedJson(document: string, origin: Origin): unknown {
  try {
    return JSON.parse(document);
  } catch {
    // No cause: the parser's message repeats what it could not read.
    throw unfit("the answer is not JSON", origin);
  }
}
