import { z } from "zod";

/** 64-bit numbers are text in JSON. Source: https://cloud.google.com/storage/docs/json_api/v1/objects#resource */
const size = z
  .string()
  .regex(/^\d{1,15}$/)
  .transform(Number);
const time = z.iso.datetime({ offset: true }).transform((text) => Math.floor(Date.parse(text)));

/** What we read of an object's resource. */
export const objectSchema = z.object({
  name: z.string(),
  size,
  /** When this content came; `updated` moves with every change of a label. */
  timeCreated: time,
  generation: z.string().regex(/^\d{1,20}$/),
  /** Absent where the object has a key of its customer's. */
  crc32c: z.string().optional(),
});

/** A page of a listing. */
export const pageSchema = z.object({
  items: z.array(objectSchema.pick({ name: true, size: true, timeCreated: true })).optional(),
  nextPageToken: z.string().optional(),
});

/** A page of one that shows more than the newest: `timeDeleted` is there on what is no longer current. */
export const versionsPageSchema = z.object({
  items: z.array(z.object({ size, timeDeleted: z.string().optional() })).optional(),
  nextPageToken: z.string().optional(),
});
