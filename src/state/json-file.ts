import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { dirname } from "node:path";
import * as z from "zod";
import { writeFileAtomically } from "../util/atomic-file.ts";
import { assert, BakeliteError, systemErrorCode } from "../util/errors.ts";
import { inheritedOwner, localError } from "./layout.ts";

/** Far above what we write; a file beyond it is not ours. */
const MAX_FILE_BYTES = 16 * 1024 * 1024;

/** What reading one of the JSON files found. `corrupt` says why, as the end of a sentence: "it is not JSON". */
export type JsonFileResult<T> =
  | { readonly outcome: "read"; readonly value: T }
  | { readonly outcome: "missing" }
  | { readonly outcome: "corrupt"; readonly reason: string };

export interface JsonFileFormat<T> {
  /** The number in the file's field `version`. A greater one is a newer bakelite's. */
  readonly version: number;
  /** For messages: "read the status file". */
  readonly what: string;
  /** Fields that it does not know are dropped, so that a newer bakelite may add some without a new version. */
  readonly schema: z.ZodType<T>;
}

/** Reads and checks. Damage of any kind is a result; only a failure of the machine (permissions, disk) throws. */
export async function readJsonFile<T>(path: string, format: JsonFileFormat<T>): Promise<JsonFileResult<T>> {
  const text = await readText(path, format.what);
  if (typeof text !== "string") return text;
  const document = parseJson(text);
  if (document === undefined) return { outcome: "corrupt", reason: "it is not JSON" };
  return checkDocument(document, format);
}

/** Checks a parsed document against the version first, so that a newer file gives that as the reason, then the schema. */
function checkDocument<T>(document: unknown, { version, schema }: JsonFileFormat<T>): JsonFileResult<T> {
  const found = z.object({ version: z.int() }).safeParse(document).data?.version;
  if (found !== undefined && found > version)
    return {
      outcome: "corrupt",
      reason: `it has version ${found}, written by a newer bakelite; this one reads ${version}`,
    };
  const checked = schema.safeParse(document);
  if (checked.success) return { outcome: "read", value: checked.data };
  return { outcome: "corrupt", reason: describeIssue(checked.error) };
}

/** Replaces the file, 0600, owned as its directory when we are root. A value that breaks its own schema is a bug. */
export async function writeJsonFile<T>(path: string, value: T, { what, schema }: JsonFileFormat<T>): Promise<void> {
  const text = `${JSON.stringify(assertShape(schema, value, what), null, 2)}\n`;
  try {
    const owner = await inheritedOwner(dirname(path));
    await writeFileAtomically(path, text, { mode: 0o600, ...(owner === null ? {} : { owner }) });
  } catch (error) {
    // The helper's own wrapping knows the path but not what the file is for.
    throw localError(error instanceof BakeliteError ? (error.cause ?? error) : error, `write ${what}`, path);
  }
}

/** What we are about to write, without fields that the schema does not know. */
export function assertShape<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const checked = schema.safeParse(value);
  assert(checked.success, `${what} is well-formed: ${checked.success || describeIssue(checked.error)}`);
  return checked.data;
}

async function readText(
  path: string,
  what: string,
): Promise<string | Exclude<JsonFileResult<never>, { outcome: "read" }>> {
  try {
    // O_NONBLOCK: a FIFO in its place must not hang us.
    await using file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const info = await file.stat();
    if (!info.isFile()) return { outcome: "corrupt", reason: "it is not a regular file" };
    if (info.size > MAX_FILE_BYTES) return { outcome: "corrupt", reason: `it is too large, ${info.size} bytes` };
    return await file.readFile("utf8");
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === "ENOENT") return { outcome: "missing" };
    if (code === "ELOOP") return { outcome: "corrupt", reason: "it is a symbolic link" };
    throw localError(error, `read ${what}`, path);
  }
}

/** undefined for what is not JSON, which no JSON document is. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function describeIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  if (issue === undefined) return "it is not as expected";
  const field = issue.path.join(".");
  return field === "" ? issue.message : `field ${field}: ${issue.message}`;
}
