import { BakeliteError } from "../../../util/errors.ts";
import { containerCredentials, hasContainerService } from "./container.ts";
import { environmentKeys } from "./environment.ts";
import { instanceCredentials } from "./instance.ts";
import { checkedKeys, unfit } from "./keys.ts";
import { type Found, profileCredentials } from "./profile.ts";
import {
  chosenProfile,
  findProfile,
  type ProfileChoice,
  readSharedFiles,
  type SharedFiles,
  variable,
} from "./shared-files.ts";
import { assumeRoleWithWebIdentity } from "./sts.ts";
import type { CredentialsOptions } from "./types.ts";

export const INSTANCE_SOURCE = "EC2 instance metadata";

export interface SearchOptions {
  readonly signal?: AbortSignal | undefined;
  /** What they came from the last time. When instance metadata has none of a sudden, that is then a failure of it. */
  readonly lastSource?: string | undefined;
}

/**
 * Looks for credentials in AWS's usual order and stops at the first source that is *there*: one that is there and broken
 * is a failure, never a reason to go on with other credentials than were meant.
 *
 * 1. keys of bakelite's own configuration;
 * 2. AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY of the environment, unless the configuration names a profile or a file;
 * 3. the profile (of the configuration, AWS_PROFILE, or "default") in AWS's shared files. One that the configuration names
 *    must exist and hold credentials, one of AWS_PROFILE must exist, and "default" counts when it holds credentials;
 * 4. AWS_WEB_IDENTITY_TOKEN_FILE;
 * 5. AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or …_FULL_URI;
 * 6. the instance metadata of EC2, if it answers.
 *
 * Throws `storage-denied` when there are none or those found are of no use, `storage-unreachable` when the service that
 * gives them cannot be asked now. No message or cause holds a secret.
 */
export async function findCredentials(
  options: CredentialsOptions,
  { signal, lastSource }: SearchOptions = {},
): Promise<Found> {
  if (options.explicit !== undefined) return explicitKeys(options.explicit);
  const isFileMeant = options.profile !== undefined || options.credentialsFile !== undefined;
  if (!isFileMeant) {
    const credentials = environmentKeys(options);
    if (credentials !== null) return { credentials, source: "the environment" };
  }
  const files = await readSharedFiles(options);
  const choice = chosenProfile(options);
  mustExist(files, choice, options);
  const ofProfile = await profileCredentials({ files, options, signal }, choice.name);
  if (ofProfile !== null) return ofProfile;
  if (isFileMeant) throw noneInProfile(files, choice, options);
  if (variable(options, "AWS_WEB_IDENTITY_TOKEN_FILE") !== undefined) {
    return await webIdentity(options, signal, findProfile(files, choice.name)?.setting("region"));
  }
  if (hasContainerService(options)) {
    return { credentials: await containerCredentials(options, signal), source: "the container credentials service" };
  }
  const answer = await instanceCredentials(options, signal);
  if (answer.kind === "found") return { credentials: answer.credentials, source: INSTANCE_SOURCE };
  if (lastSource === INSTANCE_SOURCE) throw instanceGone(answer.why);
  throw noneAnywhere(files, choice, answer.why);
}

function explicitKeys(explicit: NonNullable<CredentialsOptions["explicit"]>): Found {
  const credentials = checkedKeys(
    explicit,
    { accessKeyId: "access_key_id", secretAccessKey: "secret_access_key", sessionToken: "session_token" },
    {
      source: "the configuration",
      hint: "correct the keys of the backend in bakelite.toml, or what they are taken from",
    },
  );
  return { credentials, source: "the configuration" };
}

async function webIdentity(
  options: CredentialsOptions,
  signal: AbortSignal | undefined,
  profileRegion: string | undefined,
): Promise<Found> {
  const origin = {
    source: "the web identity",
    hint: "check AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, which EKS sets for a service account that has a role",
  };
  const roleArn = variable(options, "AWS_ROLE_ARN");
  if (roleArn === undefined) throw unfit("AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not", origin);
  const credentials = await assumeRoleWithWebIdentity(
    {
      options,
      signal,
      roleArn,
      sessionName: variable(options, "AWS_ROLE_SESSION_NAME") ?? "bakelite",
      externalId: undefined,
      durationSeconds: undefined,
      profileRegion,
      tokenFile: variable(options, "AWS_WEB_IDENTITY_TOKEN_FILE") ?? "",
    },
    origin,
  );
  return { credentials, source: "the web identity" };
}

function mustExist(files: SharedFiles, choice: ProfileChoice, options: CredentialsOptions): void {
  if (choice.chosenBy === "default" && options.credentialsFile === undefined) return;
  if (findProfile(files, choice.name) !== null) return;
  throw new BakeliteError(
    "storage-denied",
    `there is no AWS profile ${JSON.stringify(choice.name)}: ${places(files)}`,
    {
      hint: `${chosenWhere(choice)}; profiles are [NAME] in the credentials file and [profile NAME] in the config file`,
    },
  );
}

function noneInProfile(files: SharedFiles, choice: ProfileChoice, options: CredentialsOptions): BakeliteError {
  const which = options.credentialsFile === undefined ? "" : ` (credentials_file is ${options.credentialsFile})`;
  return new BakeliteError(
    "storage-denied",
    `AWS profile ${JSON.stringify(choice.name)} holds no credentials${which}: ${places(files)}`,
    {
      hint: `${chosenWhere(choice)}; a profile needs aws_access_key_id and aws_secret_access_key, a role_arn, or a credential_process`,
    },
  );
}

function chosenWhere({ chosenBy }: ProfileChoice): string {
  switch (chosenBy) {
    case "config":
      return "check `profile` of the backend";
    case "AWS_PROFILE":
      return "check AWS_PROFILE, or unset it";
    case "default":
      return "name another one with `profile`";
  }
}

function noneAnywhere(files: SharedFiles, { name }: ProfileChoice, instanceWhy: string): BakeliteError {
  return new BakeliteError(
    "storage-denied",
    `no AWS credentials were found: looked in the configuration, the environment, profile ${JSON.stringify(name)} (${places(files)}), web identity, container credentials and EC2 instance metadata (${instanceWhy})`,
    {
      hint: "set access_key_id and secret_access_key, or credentials_file, of the backend, or give this host a role; in a container on EC2, its metadata hop limit must be 2 or more",
    },
  );
}

function instanceGone(why: string): BakeliteError {
  return new BakeliteError("storage-unreachable", `EC2 instance metadata gives no credentials any more: ${why}`, {
    hint: "check that the instance still has its role; it is asked again",
  });
}

/** `/root/.aws/credentials is not there, /root/.aws/config was read` */
function places({ credentials, config }: SharedFiles): string {
  return [credentials, config]
    .map(({ path, absence }) => (absence === null ? `${path} was read` : `${path} is ${absence}`))
    .join(", ");
}
