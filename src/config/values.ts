import { resolve } from "node:path";
import { z } from "zod";
import { BYTE_SIZE_FORMS, parseByteSize } from "../util/byte-sizes.ts";
import { DURATION_FORMS, parseDuration } from "../util/durations.ts";
import { BakeliteError } from "../util/errors.ts";
import { LISTEN_ADDRESS_FORMS, parseListenAddress } from "../util/listen-address.ts";

/**
 * The kinds of value that keys of bakelite.toml have. The message of each schema is the clause that follows the
 * key: what it must be, never what was found, which may be a secret.
 */

/** A value that `parse` turns into ours; undefined from `parse`, or a BakeliteError of code `usage`, means not accepted. */
function parsed<T>(accepted: string, parse: (input: unknown) => T | undefined) {
  return z.unknown().transform((input, context): T => {
    const value = valueOrUndefined(() => parse(input));
    if (value !== undefined) return value;
    context.issues.push({ code: "custom", message: `must be ${accepted}`, input });
    return z.NEVER;
  });
}

function valueOrUndefined<T>(parse: () => T | undefined): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof BakeliteError && error.code === "usage") return undefined;
    throw error;
  }
}

/** A string that `accepts` holds for. */
function string(accepted: string, accepts: (text: string) => boolean) {
  return parsed(accepted, (input) => (typeof input === "string" && accepts(input) ? input : undefined));
}

/** Milliseconds. */
export const duration = parsed(`${DURATION_FORMS}, or "0s"`, parseDurationValue);

/** Milliseconds, at least one. */
export const positiveDuration = parsed(`${DURATION_FORMS}, more than zero`, (input) => {
  const durationMs = parseDurationValue(input);
  return durationMs === 0 ? undefined : durationMs;
});

function parseDurationValue(input: unknown): number | undefined {
  return typeof input === "string" ? parseDuration(input) : undefined;
}

/** Bytes, from `minBytes` to `maxBytes`; `range` says so in words when it is not obvious. */
export function byteSize(range = "", minBytes = 0, maxBytes: number = Number.MAX_SAFE_INTEGER) {
  return parsed(`${BYTE_SIZE_FORMS}${range}`, (input) => {
    const bytes = typeof input === "string" ? parseByteSize(input) : input;
    return typeof bytes === "number" && Number.isSafeInteger(bytes) && bytes >= minBytes && bytes <= maxBytes
      ? bytes
      : undefined;
  });
}

/** A whole number from `min` to `max`. */
export function integer(min: number, max: number) {
  return parsed(`a whole number from ${min} to ${max}`, (input) =>
    typeof input === "number" && Number.isInteger(input) && input >= min && input <= max ? input : undefined,
  );
}

export const boolean = z.boolean({ error: "must be true or false" });

export function oneOf<const T extends string>(values: readonly T[]) {
  const quoted = values.map((value) => JSON.stringify(value));
  return z.enum(values, { error: `must be ${quoted.slice(0, -1).join(", ")} or ${quoted.at(-1)}` });
}

/** Any text but the empty one, in one line. */
export const text = string("one line of text, not empty", (value) => /^[^\p{Cc}]+$/u.test(value));

/** What can be an argument of a program or part of a URL: no white space, and no dash in front. */
export const word = string("text without spaces that does not start with `-`", (value) =>
  /^(?!-)[^\s\p{Cc}/]+$/u.test(value),
);

export const databaseName = string(
  'letters, digits, "-", "_" and ".", at most 128 of them and no "." in front',
  (value) => /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/.test(value),
);

/** An absolute path, without `..`, double slashes or a slash at its end. */
export const absolutePath = parsed("an absolute path (`~` is not expanded; `${HOME}` is)", (input) =>
  typeof input === "string" && input.startsWith("/") && !input.includes("\0") ? resolve(input) : undefined,
);

/** Keys of objects begin with it: path segments without slashes at the ends; "" for none. */
export const keyPrefix = parsed('a key prefix such as "backups/app", without "." or ".." segments', (input) => {
  if (typeof input !== "string" || /\p{Cc}/u.test(input)) return undefined;
  const segments = input.split("/").filter((segment) => segment !== "");
  return segments.some((segment) => /^\.\.?$/.test(segment)) ? undefined : segments.join("/");
});

/** An http or https URL, without credentials, query or a slash at its end. */
export const httpUrl = parsed('a URL such as "https://s3.example.com"', (input) => {
  if (typeof input !== "string" || !URL.canParse(input)) return undefined;
  const url = new URL(input);
  const isPlain = /^https?:$/.test(url.protocol) && url.username + url.password + url.search + url.hash === "";
  return isPlain ? url.href.replace(/\/+$/, "") : undefined;
});

/** An http or https URL to call as it is. It may say who calls, and so is a secret; user and password are not sent, and refused. */
export const heartbeatUrl = string('a URL such as "https://heartbeat.example/your-id"', (value) => {
  if (!URL.canParse(value) || /[\s\p{Cc}]/u.test(value)) return false;
  const { protocol, username, password } = new URL(value);
  return /^https?:$/.test(protocol) && username + password === "";
});

export const listenAddress = parsed(LISTEN_ADDRESS_FORMS, (input) =>
  typeof input === "string" ? parseListenAddress(input) : undefined,
);
