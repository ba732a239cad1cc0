import { backendSchema } from "../../src/config/backends.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { openBackend } from "../../src/storage/open.ts";
import type { S3Place } from "./s3-servers.ts";

type Value = string | number | boolean;
export type S3Table = Readonly<Record<string, Value>>;

/** Where something is stored, and by whom. */
export type S3Target = Pick<S3Place, "account" | "bucket" | "prefix">;

/** The keys of a `[[database.backends]]` that stores to this place, with parts as small as S3 allows. */
export function s3Table({ account, bucket, prefix }: S3Target, more: S3Table = {}): S3Table {
  return {
    type: "s3",
    endpoint: account.endpoint,
    region: account.region,
    bucket,
    ...(prefix === "" ? {} : { prefix }),
    access_key_id: account.accessKeyId,
    secret_access_key: account.secretAccessKey,
    part_size: "5MiB",
    ...more,
  };
}

/** A backend as the configuration gives it, without retries unless `more` asks for some. */
export function openS3(target: S3Target, more: S3Table = {}): Backend {
  const config = backendSchema.parse(s3Table(target, { retries: 0, ...more }));
  if (config.type !== "s3") throw new Error("the table is one of S3");
  const { credentials, credentialsFile, profile, ...options } = config;
  return openBackend({ ...options, credentials: { explicit: credentials, credentialsFile, profile, env: {} } });
}

/** The same place by another endpoint: that of a proxy. */
export function through<T extends S3Target>(target: T, endpoint: string): T {
  return { ...target, account: { ...target.account, endpoint } };
}
