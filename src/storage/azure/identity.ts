import { readFile } from "node:fs/promises";
import { z } from "zod";
import type { Clock } from "../../util/clock.ts";
import { delay } from "../../util/delay.ts";
import { BakeliteError } from "../../util/errors.ts";
import { abortError } from "../abort.ts";
import { ask, askDirectly, type HttpAnswer, type HttpQuestion } from "../http/ask.ts";

/** Who this process is to Microsoft Entra, and which service says so. Without secrets but for `client-secret`. */
export type Identity = { readonly source: string; readonly clientId: string | undefined } & (
  | { readonly kind: "federated"; readonly tenantId: string; readonly tokenFile: string; readonly authority: string }
  | { readonly kind: "client-secret"; readonly tenantId: string; readonly secret: string; readonly authority: string }
  /** App Service, Container Apps, Functions. */
  | { readonly kind: "app-service"; readonly endpoint: string; readonly header: string }
  | { readonly kind: "virtual-machine" }
);

export interface TokenPlaces {
  /** Of the metadata service of virtual machines. */
  readonly metadataOrigin: string;
  /** The first wait between two questions; it doubles. */
  readonly baseDelayMs: number;
}

const PLACES: TokenPlaces = { metadataOrigin: "http://169.254.169.254", baseDelayMs: 500 };
/** For which a token is wanted, in every cloud. */
const RESOURCE = "https://storage.azure.com/";
const DEFAULT_AUTHORITY = "https://login.microsoftonline.com/";
const TIMEOUT_MS = 10_000;
/** The service is in the host's own hypervisor; what has not answered by then is no virtual machine of Azure. */
const METADATA_TIMEOUT_MS = 2000;
const ATTEMPTS = 4;
/** 410 while the metadata service is updated, 404 and 429 at times: worth another try, say its documents. */
const PASSING = [404, 408, 410, 429];

/**
 * A workload identity where its three variables are set (as in Kubernetes), else a client secret, else the managed identity of an App
 * Service, else that of the virtual machine.
 */
export function identityOf(
  env: Readonly<Record<string, string | undefined>>,
  managedIdentityClientId: string | undefined,
): Identity {
  const set = (name: string) => (env[name] === "" ? undefined : env[name]);
  const [tenantId, clientId] = [set("AZURE_TENANT_ID"), set("AZURE_CLIENT_ID")];
  const authority = set("AZURE_AUTHORITY_HOST") ?? DEFAULT_AUTHORITY;
  const tokenFile = set("AZURE_FEDERATED_TOKEN_FILE");
  const secret = set("AZURE_CLIENT_SECRET");
  if (managedIdentityClientId === undefined && tenantId !== undefined && clientId !== undefined) {
    if (tokenFile !== undefined)
      return { kind: "federated", source: "the workload identity", clientId, tenantId, tokenFile, authority };
    if (secret !== undefined)
      return { kind: "client-secret", source: "AZURE_CLIENT_SECRET", clientId, tenantId, secret, authority };
  }
  const own = managedIdentityClientId ?? clientId;
  const source = own === undefined ? "the managed identity" : `the managed identity ${own}`;
  const [endpoint, header] = [set("IDENTITY_ENDPOINT"), set("IDENTITY_HEADER")];
  if (endpoint !== undefined && header !== undefined)
    return { kind: "app-service", source, clientId: own, endpoint, header };
  return { kind: "virtual-machine", source, clientId: own };
}

/**
 * A token for blob storage. Throws `storage-denied` when there is no such identity, `storage-unreachable` when its service has
 * a problem. No token, secret or assertion is in any message.
 * Sources: https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token,
 * https://learn.microsoft.com/en-us/azure/app-service/overview-managed-identity,
 * https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow.
 */
export async function tokenOf(
  identity: Identity,
  how: { readonly signal: AbortSignal; readonly clock: Clock; readonly places?: Partial<TokenPlaces> },
): Promise<{ readonly token: string; readonly expiresMs: number }> {
  const places = { ...PLACES, ...how.places };
  const askedMs = how.clock.nowMs();
  const question = await questionOf(identity, places, how.signal);
  const isDirect = identity.kind === "virtual-machine" || identity.kind === "app-service";
  const answer = await askPatiently(question, { isDirect, baseDelayMs: places.baseDelayMs });
  if (answer.kind === "no-answer") throw noIdentity(identity, answer.why, question);
  if (answer.status !== 200) throw refused(identity, answer, question);
  const token = readToken(answer.body);
  if (token === null)
    throw failure("storage-unreachable", identity, "the answer holds no token", question, "it is tried again");
  return { token: token.access_token, expiresMs: expiryOf(token, askedMs) };
}

async function questionOf(identity: Identity, places: TokenPlaces, signal: AbortSignal): Promise<HttpQuestion> {
  switch (identity.kind) {
    case "virtual-machine": {
      const url = new URL("/metadata/identity/oauth2/token", places.metadataOrigin);
      url.search = queryOf({ "api-version": "2018-02-01", resource: RESOURCE, client_id: identity.clientId });
      return { method: "GET", url, headers: { metadata: "true" }, timeoutMs: METADATA_TIMEOUT_MS, signal };
    }
    case "app-service": {
      const url = urlOf(identity.endpoint, "IDENTITY_ENDPOINT");
      url.search = queryOf({ "api-version": "2019-08-01", resource: RESOURCE, client_id: identity.clientId });
      const headers = { "x-identity-header": identity.header };
      return { method: "GET", url, headers, timeoutMs: TIMEOUT_MS, signal };
    }
    case "federated":
    case "client-secret": {
      const proof =
        identity.kind === "client-secret"
          ? { client_secret: identity.secret }
          : {
              client_assertion_type: "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
              // Kubernetes replaces it long before it expires.
              client_assertion: (await readAssertion(identity.tokenFile)).trim(),
            };
      const authority = urlOf(identity.authority, "AZURE_AUTHORITY_HOST");
      return {
        method: "POST",
        url: new URL(`${encodeURIComponent(identity.tenantId)}/oauth2/v2.0/token`, `${authority.origin}/`),
        headers: { "content-type": "application/x-www-form-urlencoded" },
        body: queryOf({
          grant_type: "client_credentials",
          scope: `${RESOURCE}.default`,
          client_id: identity.clientId,
          ...proof,
        }),
        timeoutMs: TIMEOUT_MS,
        signal,
      };
    }
  }
}

function queryOf(fields: Readonly<Record<string, string | undefined>>): string {
  const given = Object.entries(fields).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return new URLSearchParams(given).toString();
}

function urlOf(text: string, variable: string): URL {
  const url = URL.parse(text);
  if (url !== null && (url.protocol === "http:" || url.protocol === "https:")) return url;
  throw new BakeliteError("storage-denied", `${variable} is not an http or https URL`, {
    hint: "unset it, or correct it in the environment of the daemon",
  });
}

async function readAssertion(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw new BakeliteError("storage-denied", "cannot read the token of the workload identity", {
      subject: path,
      hint: "check AZURE_FEDERATED_TOKEN_FILE, and that the user running bakelite may read that file",
      cause,
    });
  }
}

async function askPatiently(
  question: HttpQuestion,
  { isDirect, baseDelayMs }: { readonly isDirect: boolean; readonly baseDelayMs: number },
): Promise<HttpAnswer> {
  for (let attempt = 1; ; attempt++) {
    // A metadata service means that of this machine, never one beyond a proxy.
    const answer = await (isDirect ? askDirectly(question) : ask(question));
    const mayPass = answer.kind === "no-answer" ? attempt < 2 : PASSING.includes(answer.status) || answer.status >= 500;
    if (!mayPass || attempt === ATTEMPTS) return answer;
    await waitFor(baseDelayMs * 2 ** (attempt - 1), question.signal);
  }
}

async function waitFor(ms: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await delay(ms, signal);
  } catch (cause) {
    throw signal === undefined ? cause : abortError(signal);
  }
}

const seconds = z.union([z.number(), z.string().regex(/^\d{1,12}$/)]).transform(Number);
const tokenSchema = z.object({
  access_token: z.string().regex(/^[\x21-\x7e]+$/),
  expires_in: seconds.optional(),
  expires_on: seconds.optional(),
});

function readToken(body: string): z.output<typeof tokenSchema> | null {
  try {
    return tokenSchema.parse(JSON.parse(body));
  } catch {
    return null;
  }
}

/** By our clock, where the answer says how long; a token that says neither is taken to be good for five minutes. */
function expiryOf(token: z.output<typeof tokenSchema>, askedMs: number): number {
  if (token.expires_in !== undefined) return askedMs + token.expires_in * 1000;
  return token.expires_on === undefined ? askedMs + 300_000 : token.expires_on * 1000;
}

function noIdentity(identity: Identity, why: string, question: HttpQuestion): BakeliteError {
  if (identity.kind !== "virtual-machine")
    return failure("storage-unreachable", identity, why, question, "check this machine's network; it is tried again");
  return new BakeliteError("storage-denied", "no credentials for Azure were found", {
    subject:
      "no AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, and no managed identity",
    hint: "give `account_key_file` or `sas_token_file`, set one of these variables for the daemon, or give the machine an identity",
    cause: new Error(why),
  });
}

function refused(identity: Identity, answer: HttpAnswer & { kind: "answered" }, question: HttpQuestion): BakeliteError {
  if (PASSING.includes(answer.status) || answer.status >= 500)
    return failure("storage-unreachable", identity, `status ${answer.status}`, question, "it is tried again");
  const why = `status ${answer.status}${errorNameIn(answer.body)}`;
  const hint =
    identity.kind === "virtual-machine" || identity.kind === "app-service"
      ? "give the machine a managed identity that may use the account (with several, name one in `managed_identity_client_id`), or give `account_key_file` or `sas_token_file`"
      : "check AZURE_TENANT_ID, AZURE_CLIENT_ID and what proves them, and the trust of the application in Microsoft Entra";
  return failure("storage-denied", identity, why, question, hint);
}

/** `error` of an OAuth answer is one of a few words; its description may quote what was sent. */
function errorNameIn(body: string): string {
  try {
    const { error } = z.object({ error: z.string().regex(/^[a-z_]{1,60}$/) }).parse(JSON.parse(body));
    return ` ${error}`;
  } catch {
    return "";
  }
}

function failure(
  code: "storage-unreachable" | "storage-denied",
  { source }: Identity,
  why: string,
  { url }: HttpQuestion,
  hint: string,
): BakeliteError {
  return new BakeliteError(code, `cannot get a token for ${source}: ${why}`, {
    subject: `${url.origin}${url.pathname}`,
    hint,
  });
}
