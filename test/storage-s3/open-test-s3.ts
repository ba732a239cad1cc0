import { openS3, type S3Backend, type S3BackendOptions } from "../../src/storage/s3/backend.ts";
import type { S3ClientOptions } from "../../src/storage/s3/client.ts";
import { newPlace } from "../../src/storage/s3/place.ts";
import type { S3Account } from "../servers/s3-account.ts";

/** A backend with quick retries that knows nothing about the bucket yet. `options` replace what is usual. */
export function openTestS3(
  account: S3Account,
  options: Partial<S3BackendOptions> & Pick<S3BackendOptions, "bucket">,
  overrides: Partial<S3ClientOptions> = {},
): S3Backend {
  const { accessKeyId, secretAccessKey, endpoint, region } = account;
  return openS3({
    prefix: "",
    region,
    endpoint,
    pathStyle: true,
    storageClass: undefined,
    changeSetStorageClass: undefined,
    sse: undefined,
    sseKmsKeyId: undefined,
    partSizeBytes: 16 * 1024 * 1024,
    concurrency: 4,
    caFile: undefined,
    timeoutMs: 20_000,
    retries: 5,
    credentials: {
      explicit: { accessKeyId, secretAccessKey, sessionToken: undefined },
      credentialsFile: undefined,
      profile: undefined,
      env: {},
    },
    ...options,
    overrides: { place: newPlace(), baseDelayMs: 5, ...overrides },
  });
}
