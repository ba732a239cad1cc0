import type { AzureBackendOptions } from "./azure/backend.ts";
import type { Backend } from "./backend.ts";
import { FileBackend, type FileBackendOptions } from "./file.ts";
import type { GcsBackendOptions } from "./gcs/backend.ts";
import type { S3BackendOptions } from "./s3/backend.ts";
import type { SftpBackendOptions } from "./sftp/backend.ts";

/** One member for each kind of destination, told apart by `type`. */
export type BackendOptions =
  | ({ readonly type: "file" } & FileBackendOptions)
  | ({ readonly type: "s3" } & S3BackendOptions)
  | ({ readonly type: "gcs" } & GcsBackendOptions)
  | ({ readonly type: "azure" } & AzureBackendOptions)
  | ({ readonly type: "sftp" } & SftpBackendOptions);

/**
 * A backend over a destination. Nothing is touched until its first call. Wrappers are the caller's to add. What a kind needs is
 * loaded when the first one of it is opened: all kinds together are five megabytes of memory and some of the start-up time.
 */
export function openBackend(options: BackendOptions): Backend {
  switch (options.type) {
    case "file":
      return new FileBackend(options);
    case "s3":
      return (require("./s3/backend.ts") as typeof import("./s3/backend.ts")).openS3(options);
    case "gcs":
      return (require("./gcs/backend.ts") as typeof import("./gcs/backend.ts")).openGcs(options);
    case "azure":
      return (require("./azure/backend.ts") as typeof import("./azure/backend.ts")).openAzure(options);
    case "sftp":
      return (require("./sftp/backend.ts") as typeof import("./sftp/backend.ts")).openSftp(options);
  }
}
