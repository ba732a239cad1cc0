import { sign } from "node:crypto";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { systemClock } from "../../../util/clock.ts";
import { BakeliteError, systemErrorCode } from "../../../util/errors.ts";
import {
  type AuthorizedUserFile,
  type ExternalAccountFile,
  readCredentialFile,
  readSubjectToken,
  type ServiceAccountFile,
} from "./credential-file.ts";
import { metadataToken } from "./metadata-server.ts";
import { TokenService } from "./token-service.ts";
import { type AccessToken, type GcsCredentialsOptions, STORAGE_SCOPE, variable } from "./types.ts";

export interface FoundToken {
  readonly secret: AccessToken;
  /** Reads after "from": `the service account a@b.iam.gserviceaccount.com in /etc/key.json`. */
  readonly source: string;
}

interface Search {
  readonly options: GcsCredentialsOptions;
  readonly service: TokenService;
  readonly signal: AbortSignal;
}

const METADATA_SOURCE = "the metadata server of this machine";
/** The longest that a token may be asked for. */
const TOKEN_LIFE_SECONDS = 3600;

/**
 * A token, by the first of these that is *there*; one that is there and broken is a failure, never a reason to go on with other
 * credentials than were meant:
 *
 * 1. `service_account_file`;
 * 2. the file of GOOGLE_APPLICATION_CREDENTIALS;
 * 3. application_default_credentials.json in CLOUDSDK_CONFIG, else in ~/.config/gcloud, where gcloud writes it;
 * 4. the metadata server.
 *
 * Files are read anew each time, so a key that was replaced is used. Throws `storage-denied` when there are none or they are refused,
 * `storage-unreachable` when they cannot be exchanged for a token now.
 * Source: https://cloud.google.com/docs/authentication/application-default-credentials
 */
export async function findToken(
  options: GcsCredentialsOptions,
  { signal, lastSource }: { readonly signal: AbortSignal; readonly lastSource?: string | undefined },
): Promise<FoundToken> {
  const search: Search = { options, service: new TokenService(options), signal };
  const { serviceAccountFile } = options;
  if (serviceAccountFile !== undefined) return await fromFile(serviceAccountFile, "`service_account_file`", search);
  const named = variable(options, "GOOGLE_APPLICATION_CREDENTIALS");
  if (named !== undefined) return await fromFile(named, "GOOGLE_APPLICATION_CREDENTIALS", search);
  const usual = usualFile(options);
  if (usual !== null && (await isThere(usual))) return await fromFile(usual, "CLOUDSDK_CONFIG or HOME", search);
  const answer = await metadataToken(options, signal);
  if (answer.kind === "found") return { secret: answer.token, source: METADATA_SOURCE };
  if (lastSource === METADATA_SOURCE)
    throw new BakeliteError("storage-unreachable", `cannot log in to Google Cloud: ${answer.why}`, {
      hint: "check the metadata server of this machine",
    });
  throw new BakeliteError("storage-denied", "cannot log in to Google Cloud: there are no credentials", {
    hint: `set \`service_account_file\` or GOOGLE_APPLICATION_CREDENTIALS, or run \`gcloud auth application-default login\`; looked at ${usual ?? "no file of gcloud's"}, and asked the metadata server (${answer.why})`,
  });
}

/** One that cannot be looked at is there: it is for `readCredentialFile` to say what is wrong. */
async function isThere(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    return !["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "");
  }
}

/** Source: https://google.aip.dev/auth/4110 */
function usualFile(options: GcsCredentialsOptions): string | null {
  const name = "application_default_credentials.json";
  const folder = variable(options, "CLOUDSDK_CONFIG");
  if (folder !== undefined) return join(folder, name);
  const home = variable(options, "HOME");
  return home === undefined ? null : join(home, ".config", "gcloud", name);
}

async function fromFile(path: string, named: string, search: Search): Promise<FoundToken> {
  const file = await readCredentialFile(path, named);
  switch (file.type) {
    case "service_account":
      return {
        secret: await ofServiceAccount(file, search),
        source: `the service account ${file.clientEmail} in ${path}`,
      };
    case "authorized_user":
      return { secret: await ofUser(file, search), source: `the login in ${path}` };
    case "external_account":
      return { secret: await ofWorkload(file, search), source: `the workload identity in ${path}` };
  }
}

/** Source: RFC 7523 section 2.1; https://developers.google.com/identity/protocols/oauth2/service-account */
async function ofServiceAccount(file: ServiceAccountFile, { options, service, signal }: Search): Promise<AccessToken> {
  const nowSeconds = Math.floor((options.clock ?? systemClock).nowMs() / 1000);
  const assertion = signedJwt(file, {
    iss: file.clientEmail,
    scope: STORAGE_SCOPE,
    aud: file.tokenUri,
    iat: nowSeconds,
    exp: nowSeconds + TOKEN_LIFE_SECONDS,
  });
  const form = { grant_type: "urn:ietf:params:oauth:grant-type:jwt-bearer", assertion };
  return await service.oauth({ url: file.tokenUri, form, signal });
}

/** Source: RFC 7515 section 3.1, RFC 7518 section 3.3 (RS256). */
function signedJwt({ privateKey, privateKeyId }: ServiceAccountFile, claims: object): string {
  const header = { alg: "RS256", typ: "JWT", ...(privateKeyId === undefined ? {} : { kid: privateKeyId }) };
  const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${encode(header)}.${encode(claims)}`;
  return `${signed}.${sign("sha256", Buffer.from(signed), privateKey).toString("base64url")}`;
}

/** Source: RFC 6749 section 6. */
async function ofUser(file: AuthorizedUserFile, { service, signal }: Search): Promise<AccessToken> {
  const { clientId, clientSecret, refreshToken, tokenUri } = file;
  const form = {
    grant_type: "refresh_token",
    client_id: clientId,
    client_secret: clientSecret,
    refresh_token: refreshToken,
  };
  const hint = "run `gcloud auth application-default login` again, or better use a service account";
  return await service.oauth({ url: tokenUri, form, signal, hint });
}

/** Source: RFC 8693 section 2.1; https://google.aip.dev/auth/4117 */
async function ofWorkload(file: ExternalAccountFile, { service, signal }: Search): Promise<AccessToken> {
  const { impersonationUrl } = file;
  const hint = "check the workload identity pool, its audience, and the token that it is given";
  const form = {
    grant_type: "urn:ietf:params:oauth:grant-type:token-exchange",
    audience: file.audience,
    scope: impersonationUrl === undefined ? STORAGE_SCOPE : "https://www.googleapis.com/auth/cloud-platform",
    requested_token_type: "urn:ietf:params:oauth:token-type:access_token",
    subject_token_type: file.subjectTokenType,
    subject_token: await readSubjectToken(file),
  };
  const own = await service.oauth({ url: file.tokenUrl, form, signal, hint });
  if (impersonationUrl === undefined) return own;
  return await service.impersonation({
    url: impersonationUrl,
    headers: { authorization: `Bearer ${own.token}` },
    json: { scope: [STORAGE_SCOPE], lifetime: `${TOKEN_LIFE_SECONDS}s` },
    signal,
    hint: "let the workload impersonate the service account (roles/iam.workloadIdentityUser)",
  });
}
