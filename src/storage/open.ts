import type { Backend } from "./backend.ts";
import { FileBackend, type FileBackendOptions } from "./file.ts";
import { openS3, type S3BackendOptions } from "./s3/backend.ts";
import { openSftp, type SftpBackendOptions } from "./sftp/backend.ts";

/** One member for each kind of destination, told apart by `type`. */
export type BackendOptions =
  | ({ readonly type: "file" } & FileBackendOptions)
  | ({ readonly type: "s3" } & S3BackendOptions)
  | ({ readonly type: "sftp" } & SftpBackendOptions);

/** A backend over a destination. Nothing is touched until its first call. Wrappers are the caller's to add. */
export function openBackend(options: BackendOptions): Backend {
  switch (options.type) {
    case "file":
      return new FileBackend(options);
    case "s3":
      return openS3(options);
    case "sftp":
      return openSftp(options);
  }
}
