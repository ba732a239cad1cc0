import { readFile } from "node:fs/promises";
import { type Clock, systemClock } from "../../util/clock.ts";
import { BakeliteError } from "../../util/errors.ts";
import { RenewedSecret } from "../http/renewed-secret.ts";
import { identityOf, type TokenPlaces, tokenOf } from "./identity.ts";

/** How to prove who we are, as the configuration says it. */
export type AzureAuthentication =
  | { readonly method: "account-key"; readonly accountKey: string }
  | { readonly method: "account-key-file"; readonly accountKeyFile: string }
  | { readonly method: "sas"; readonly sasToken: string }
  | { readonly method: "sas-file"; readonly sasTokenFile: string }
  | { readonly method: "environment"; readonly managedIdentityClientId: string | undefined };

/** What signs a request. `expiresMs` is Unix time; null for what does not expire, or does not say when. */
export type AzureCredentials =
  | { readonly kind: "shared-key"; readonly key: Uint8Array; readonly expiresMs: null }
  /** The query of a URL, without `?`. */
  | { readonly kind: "sas"; readonly query: string; readonly expiresMs: number | null }
  | { readonly kind: "bearer"; readonly token: string; readonly expiresMs: number };

export interface CredentialsOptions {
  readonly account: string;
  readonly authentication: AzureAuthentication;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly clock?: Clock | undefined;
  /** Other addresses of token services, for tests. */
  readonly places?: Partial<TokenPlaces> | undefined;
}

export type CredentialsProvider = RenewedSecret<AzureCredentials>;

/** Tokens of an identity are the same for all destinations of this process, and their service answers only a few times a second. */
const identities = new Map<string, CredentialsProvider>();

/**
 * Credentials for one account; nothing is read or asked before the first call. A file is read again when what it held is refused or about to
 * expire, so a key is rotated without a restart.
 */
export function openCredentials(options: CredentialsOptions): CredentialsProvider {
  const { authentication, env, clock, places } = options;
  const isIdentity = authentication.method === "environment" && fromVariables(options) === null;
  if (!isIdentity || places !== undefined || clock !== undefined) return newProvider(options);
  const name = JSON.stringify(identityOf(env, authentication.managedIdentityClientId));
  const known = identities.get(name) ?? newProvider(options);
  identities.set(name, known);
  return known;
}

function newProvider(options: CredentialsOptions): CredentialsProvider {
  return new RenewedSecret({
    find: ({ signal }) => find(options, signal),
    isSame,
    what: "Azure credentials",
    clock: options.clock,
  });
}

type Found = { readonly secret: AzureCredentials; readonly source: string };

async function find(options: CredentialsOptions, signal: AbortSignal): Promise<Found> {
  const { account, authentication, env, places, clock = systemClock } = options;
  switch (authentication.method) {
    case "account-key":
      return sharedKey(authentication.accountKey, "`account_key`");
    case "account-key-file": {
      const { accountKeyFile: path } = authentication;
      return fromText(await readSecret(path, "account_key_file"), path, account);
    }
    case "sas":
      return sas(authentication.sasToken, "`sas_token`");
    case "sas-file":
      return sas(await readSecret(authentication.sasTokenFile, "sas_token_file"), authentication.sasTokenFile);
    case "environment": {
      const found = fromVariables(options);
      if (found !== null) return found();
      const identity = identityOf(env, authentication.managedIdentityClientId);
      const { token, expiresMs } = await tokenOf(identity, {
        signal,
        clock,
        ...(places === undefined ? {} : { places }),
      });
      return { secret: { kind: "bearer", token, expiresMs }, source: identity.source };
    }
  }
}

/** null: no variable holds a key or a signature. An identity that is named in the configuration wins over variables. */
function fromVariables({ account, authentication, env }: CredentialsOptions): (() => Found) | null {
  if (authentication.method !== "environment" || authentication.managedIdentityClientId !== undefined) return null;
  const connection = env["AZURE_STORAGE_CONNECTION_STRING"] ?? "";
  if (connection !== "") return () => fromConnectionString(connection, "AZURE_STORAGE_CONNECTION_STRING", account);
  const key = env["AZURE_STORAGE_KEY"] ?? "";
  if (key !== "") return () => sharedKey(key, "AZURE_STORAGE_KEY");
  const token = env["AZURE_STORAGE_SAS_TOKEN"] ?? "";
  if (token !== "") return () => sas(token, "AZURE_STORAGE_SAS_TOKEN");
  return null;
}

/** A file of `account_key_file` may hold the connection string that the portal shows beside the key. */
function fromText(text: string, source: string, account: string): Found {
  return text.includes("AccountKey=") ? fromConnectionString(text, source, account) : sharedKey(text, source);
}

/**
 * Source: https://learn.microsoft.com/en-us/azure/storage/common/storage-configure-connection-string. Only the credentials count, the endpoint is
 * the configuration's.
 */
function fromConnectionString(text: string, source: string, account: string): Found {
  const parts = new Map<string, string>();
  for (const part of text.trim().split(";")) {
    const split = part.indexOf("=");
    if (split > 0) parts.set(part.slice(0, split).toLowerCase(), part.slice(split + 1));
  }
  const named = parts.get("accountname");
  if (named !== undefined && named !== account)
    throw unfit(`the connection string is for another account than \`account = "${account}"\``, source);
  const key = parts.get("accountkey");
  if (key !== undefined) return sharedKey(key, source);
  const signature = parts.get("sharedaccesssignature");
  if (signature !== undefined) return sas(signature, source);
  throw unfit("the connection string has neither AccountKey nor SharedAccessSignature", source);
}

function sharedKey(text: string, source: string): Found {
  const clean = text.trim();
  const key = Buffer.from(clean, "base64");
  if (key.byteLength < 16 || key.toString("base64").replace(/=+$/, "") !== clean.replace(/=+$/, ""))
    throw unfit("that is no key of a storage account, which is base64", source);
  return { secret: { kind: "shared-key", key, expiresMs: null }, source };
}

/** What its `sr`, `sp` and the rest allow is for the server to say; of the expiry `se` we have to know. */
function sas(text: string, source: string): Found {
  const query = text.trim().replace(/^\?/, "");
  const fields = new URLSearchParams(query);
  if (/\s/.test(query) || (fields.get("sig") ?? "") === "" || fields.get("sv") === null)
    throw unfit("that is no shared access signature, which looks like `sv=…&se=…&sp=…&sig=…`", source);
  const expiresMs = Date.parse(fields.get("se") ?? "");
  return { secret: { kind: "sas", query, expiresMs: Number.isNaN(expiresMs) ? null : expiresMs }, source };
}

async function readSecret(path: string, key: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    throw new BakeliteError("storage-denied", `cannot read the file of \`${key}\``, {
      subject: path,
      hint: "check that the file exists and that the user running bakelite may read it",
      cause,
    });
  }
}

function unfit(what: string, source: string): BakeliteError {
  return new BakeliteError("storage-denied", `cannot use the Azure credentials: ${what}`, {
    subject: source,
    hint: "copy it again from the account's page in the Azure portal, under access keys or shared access signature",
  });
}

/** Whether two are one and the same secret. */
export function isSame(one: AzureCredentials, other: AzureCredentials): boolean {
  return secretOf(one) === secretOf(other);
}

function secretOf(credentials: AzureCredentials): string {
  switch (credentials.kind) {
    case "shared-key":
      return Buffer.from(credentials.key).toString("base64");
    case "sas":
      return credentials.query;
    case "bearer":
      return credentials.token;
  }
}
