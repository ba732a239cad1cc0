import * as z from "zod";

/** RFC 3339 in UTC, as `formatTimestamp` writes it. */
export const timestamp = z.iso.datetime();

/** Bytes, objects, attempts. */
export const count = z.int().min(0);

/** The index of a stored state. */
export const index = z.int().min(0);

/** A failure, as an operator reads it. Never a credential. */
export const failure = z.object({
  at: timestamp,
  /** One sentence, causes included. */
  message: z.string(),
  /** The code of a BakeliteError, or "internal". */
  code: z.string(),
});

/** A state that can be restored, and when its last commit was seen. */
export const restorePoint = z.object({ index, at: timestamp });
