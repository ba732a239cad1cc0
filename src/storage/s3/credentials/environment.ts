import { checkedKeys } from "./keys.ts";
import { variable } from "./shared-files.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

const NAMES = {
  accessKeyId: "AWS_ACCESS_KEY_ID",
  secretAccessKey: "AWS_SECRET_ACCESS_KEY",
  sessionToken: "AWS_SESSION_TOKEN",
};

/** The keys of the environment; null when it has neither half, `storage-denied` when it has one. */
export function environmentKeys(options: CredentialsOptions): AwsCredentials | null {
  const accessKeyId = variable(options, NAMES.accessKeyId);
  const secretAccessKey = variable(options, NAMES.secretAccessKey);
  if (accessKeyId === undefined && secretAccessKey === undefined) return null;
  return checkedKeys({ accessKeyId, secretAccessKey, sessionToken: variable(options, NAMES.sessionToken) }, NAMES, {
    source: "the environment",
    hint: "correct the two where they are set; for a service of systemd that is its Environment= and EnvironmentFile=",
  });
}
