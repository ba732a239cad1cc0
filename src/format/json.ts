import { z } from "zod";
import { BakeliteError } from "../util/errors.ts";
import { damaged } from "./damage.ts";

/** What a piece of JSON is and where it was found: `{ what: "trailer", subject: "app/full/0000000000000001.p" }`. */
export interface JsonPlace {
  readonly what: string;
  readonly subject: string;
}

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Decodes UTF-8 JSON. Throws `replica-corrupt` for malformed UTF-8, malformed JSON and JSON nested too deeply. */
export function parseJson(bytes: Uint8Array, place: JsonPlace): unknown {
  try {
    return JSON.parse(strictUtf8.decode(bytes));
  } catch (cause) {
    throw damaged(place.subject, `the ${place.what} is not JSON`, cause);
  }
}

/** Returns `value` in the shape that `schema` describes, or throws `replica-corrupt` naming the first field that is not. */
export function checkShape<Shape extends z.ZodType>(schema: Shape, value: unknown, place: JsonPlace): z.output<Shape> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw damaged(place.subject, `the ${place.what} is malformed: ${firstIssue(result.error)}`);
}

/** The first thing wrong, on one line: `page_size: Invalid input: expected number, received string`. */
export function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  if (issue === undefined) return "unknown";
  return issue.path.length === 0 ? issue.message : `${issue.path.join(".")}: ${issue.message}`;
}

export function encodeJson(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

/** Lower-case hexadecimal text of exactly `digits` digits. */
export function hex(digits: number): z.ZodString {
  return z.string().regex(new RegExp(`^[0-9a-f]{${digits}}$`), `expected ${digits} lower-case hexadecimal digits`);
}

/** An integer from 0 to 2^53 - 1: every u64 of the format that we accept. */
export const count = z.int().min(0);

export const u32 = z.int().min(0).max(0xffff_ffff);

/** Throws `internal` when a value that we made ourselves has not the shape that we would accept from a stored object. */
export function assertShape(schema: z.ZodType, value: unknown, what: string): void {
  const result = schema.safeParse(value);
  if (result.success) return;
  throw new BakeliteError(
    "internal",
    `invariant broken: the ${what} to encode is well formed (${firstIssue(result.error)})`,
  );
}
