import { BakeliteError } from "../../../util/errors.ts";
import { containerCredentials, hasContainerService } from "./container.ts";
import { environmentKeys } from "./environment.ts";
import { instanceCredentials } from "./instance.ts";
import { checkedKeys, type Origin, unfit } from "./keys.ts";
import { runCredentialProcess } from "./process.ts";
import { findProfile, type Profile, type SharedFiles } from "./shared-files.ts";
import { assumeRole, assumeRoleWithWebIdentity, type RoleRequest } from "./sts.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

/** Credentials and where they come from, for messages. */
export interface Found {
  readonly credentials: AwsCredentials;
  readonly source: string;
}

interface Search {
  readonly files: SharedFiles;
  readonly options: CredentialsOptions;
  readonly signal: AbortSignal | undefined;
}

/** A profile may take its role with the credentials of another, and that one too; nobody has more than two of them. */
const MAX_ROLE_CHAIN = 5;
const DEFAULT_SESSION_NAME = "bakelite";

/** What means that a profile is to be signed in to by a person, and what to call that. */
const SIGN_IN_SETTINGS: readonly (readonly [string, string])[] = [
  ["sso_session", "IAM Identity Center (SSO)"],
  ["sso_start_url", "IAM Identity Center (SSO)"],
  ["sso_account_id", "IAM Identity Center (SSO)"],
  ["login_session", "`aws login`"],
];

/**
 * The credentials of a profile; null when it holds none, only settings. Of several kinds in one profile the first counts: a
 * role that another profile or a service vouches for, a role for a web identity, keys, `credential_process`. Kinds that need
 * a person (SSO, MFA) throw with what to do instead. Throws `storage-denied` for whatever is incomplete or refused, and
 * `storage-unreachable` when a service does not answer.
 * Source: AWS SDKs and Tools Reference Guide, "Assume role credential provider" and its neighbours.
 */
export async function profileCredentials(search: Search, name: string): Promise<Found | null> {
  const profile = findProfile(search.files, name);
  return profile === null ? null : await credentialsOf(search, profile, []);
}

async function credentialsOf(search: Search, profile: Profile, users: readonly string[]): Promise<Found | null> {
  const roleArn = profile.setting("role_arn");
  const tokenFile = profile.setting("web_identity_token_file");
  // A profile that vouches for its own role does it with its keys.
  const isOwnSource = users.at(-1) === profile.name;
  if (roleArn !== undefined && tokenFile === undefined && !isOwnSource) {
    return await roleOf(search, profile, roleArn, users);
  }
  if (roleArn !== undefined && tokenFile !== undefined) {
    const credentials = await assumeRoleWithWebIdentity(
      { ...roleRequest(search, profile, roleArn), tokenFile },
      originOf(search, profile, `the role of ${nameOf(profile)}`),
    );
    return { credentials, source: `the role of ${nameOf(profile)} (web identity)` };
  }
  const keys = keysOf(search, profile);
  if (keys !== null) return keys;
  const commandLine = profile.setting("credential_process");
  if (commandLine !== undefined) return await processOf(search, profile, commandLine);
  refuseSignIn(search, profile);
  return null;
}

/** Keys of the credentials file, else of the config file; never a half from each. */
function keysOf(search: Search, profile: Profile): Found | null {
  const places = [
    [profile.inCredentials, search.files.credentials.path],
    [profile.inConfig, search.files.config.path],
  ] as const;
  for (const [section, path] of places) {
    const accessKeyId = section.get("aws_access_key_id") || undefined;
    const secretAccessKey = section.get("aws_secret_access_key") || undefined;
    if (accessKeyId === undefined && secretAccessKey === undefined) continue;
    const source = `${nameOf(profile)} in ${path}`;
    const origin = originOf(search, profile, source);
    const credentials = checkedKeys(
      { accessKeyId, secretAccessKey, sessionToken: section.get("aws_session_token") },
      {
        accessKeyId: "aws_access_key_id",
        secretAccessKey: "aws_secret_access_key",
        sessionToken: "aws_session_token",
      },
      { ...origin, hint: `${origin.hint}; an indented line there belongs to the line above it` },
    );
    return { credentials, source };
  }
  return null;
}

async function roleOf(search: Search, profile: Profile, roleArn: string, users: readonly string[]): Promise<Found> {
  const origin = originOf(search, profile, `the role of ${nameOf(profile)}`);
  const sourceProfile = profile.setting("source_profile");
  const credentialSource = profile.setting("credential_source");
  if (profile.setting("mfa_serial") !== undefined) {
    throw unfit("its mfa_serial asks for a code from a person, and a backup runs without one", {
      ...origin,
      hint: "make a role for bakelite whose trust policy asks for no MFA, or a user of its own",
    });
  }
  if (sourceProfile !== undefined && credentialSource !== undefined) {
    throw unfit("it has both source_profile and credential_source, and only one can vouch for the role", origin);
  }
  const request = roleRequest(search, profile, roleArn);
  let base: Found;
  if (sourceProfile !== undefined) base = await sourceOf(search, profile, sourceProfile, users);
  else if (credentialSource !== undefined) base = await namedSource(search, profile, credentialSource);
  else
    throw unfit("it has a role_arn, and neither source_profile, credential_source nor web_identity_token_file", origin);
  const credentials = await assumeRole({ ...request, base: base.credentials }, origin);
  return { credentials, source: `the role of ${nameOf(profile)} (by ${base.source})` };
}

async function sourceOf(
  search: Search,
  profile: Profile,
  sourceName: string,
  users: readonly string[],
): Promise<Found> {
  const origin = originOf(search, profile, `the role of ${nameOf(profile)}`);
  const chain = [...users, profile.name];
  if (users.includes(sourceName)) {
    throw unfit(`its source_profile goes round: ${[...chain, sourceName].join(" -> ")}`, origin);
  }
  if (chain.length >= MAX_ROLE_CHAIN) throw unfit(`more than ${MAX_ROLE_CHAIN} profiles vouch for one another`, origin);
  const source = findProfile(search.files, sourceName);
  if (source === null) throw unfit(`its source_profile ${JSON.stringify(sourceName)} is in neither file`, origin);
  const found = await credentialsOf(search, source, chain);
  if (found === null) throw unfit(`its source_profile ${JSON.stringify(sourceName)} holds no credentials`, origin);
  return found;
}

async function namedSource(search: Search, profile: Profile, name: string): Promise<Found> {
  const origin = originOf(search, profile, `the role of ${nameOf(profile)}`);
  const { options, signal } = search;
  switch (name) {
    case "Environment": {
      const credentials = environmentKeys(options);
      if (credentials === null) throw unfit("its credential_source is the environment, which holds no keys", origin);
      return { credentials, source: "the environment" };
    }
    case "EcsContainer":
      if (!hasContainerService(options)) {
        throw unfit("its credential_source is EcsContainer, and the environment names no container service", origin);
      }
      return { credentials: await containerCredentials(options, signal), source: "the container credentials service" };
    case "Ec2InstanceMetadata": {
      const answer = await instanceCredentials(options, signal);
      if (answer.kind === "absent") throw unfit(`EC2 instance metadata gives none: ${answer.why}`, origin);
      return { credentials: answer.credentials, source: "EC2 instance metadata" };
    }
    default:
      throw unfit("its credential_source is none of Environment, Ec2InstanceMetadata and EcsContainer", origin);
  }
}

async function processOf(search: Search, profile: Profile, commandLine: string): Promise<Found> {
  const source = `the credential_process of ${nameOf(profile)}`;
  const origin = originOf(search, profile, source);
  const file = profile.inCredentials.get("credential_process") ? search.files.credentials : search.files.config;
  // What any user can write there, the user that bakelite runs as would run.
  if (file.isWritableByAll) {
    throw unfit("every user of this host can change the file that names the program", {
      ...origin,
      hint: `run \`chmod 600 ${file.path}\``,
    });
  }
  const { env, processTimeoutMs } = search.options;
  const run = { commandLine, env, timeoutMs: processTimeoutMs, signal: search.signal };
  return {
    credentials: await runCredentialProcess(run, {
      ...origin,
      hint: `${origin.hint}; run the program by hand to see what it says`,
    }),
    source,
  };
}

function refuseSignIn(search: Search, profile: Profile): void {
  const found = SIGN_IN_SETTINGS.find(([setting]) => profile.setting(setting) !== undefined);
  if (found === undefined) return;
  const [setting, what] = found;
  throw new BakeliteError(
    "storage-denied",
    `${nameOf(profile)} signs in by ${what} (${setting}), which bakelite does not support: such a sign-in ends after hours and needs a person`,
    {
      subject: search.files.config.path,
      hint: `give bakelite a role or keys of its own; to try something out, let another profile say \`credential_process = aws configure export-credentials --profile ${profile.name}\``,
    },
  );
}

function roleRequest({ options, signal }: Search, profile: Profile, roleArn: string): RoleRequest {
  const seconds = profile.setting("duration_seconds");
  return {
    options,
    signal,
    roleArn,
    sessionName: profile.setting("role_session_name") ?? DEFAULT_SESSION_NAME,
    externalId: profile.setting("external_id"),
    durationSeconds: seconds,
    profileRegion: profile.setting("region"),
  };
}

function nameOf({ name }: Profile): string {
  return `profile ${JSON.stringify(name)}`;
}

function originOf({ files }: Search, profile: Profile, source: string): Origin {
  const paths = [files.credentials, files.config].filter(({ absence }) => absence === null).map(({ path }) => path);
  return { source, hint: `check [${profile.name}] in ${paths.join(" and ")}` };
}
