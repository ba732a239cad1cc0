import { createPrivateKey, type KeyObject } from "node:crypto";
import { readFile } from "node:fs/promises";
import { z } from "zod";
import { BakeliteError, describeError } from "../../../util/errors.ts";
import { parseJson } from "../json.ts";

/** A service account's own key. */
export interface ServiceAccountFile {
  readonly type: "service_account";
  readonly clientEmail: string;
  readonly privateKey: KeyObject;
  readonly privateKeyId: string | undefined;
  readonly tokenUri: string;
}

/** A person's, as `gcloud auth application-default login` writes it. */
export interface AuthorizedUserFile {
  readonly type: "authorized_user";
  readonly clientId: string;
  readonly clientSecret: string;
  readonly refreshToken: string;
  readonly tokenUri: string;
}

/** Workload identity federation whose own token is in a file that something else renews. */
export interface ExternalAccountFile {
  readonly type: "external_account";
  readonly audience: string;
  readonly subjectTokenType: string;
  readonly tokenUrl: string;
  readonly impersonationUrl: string | undefined;
  readonly subjectTokenPath: string;
  /** The field of a JSON document that holds the token; undefined: the file is the token. */
  readonly subjectTokenField: string | undefined;
}

export type CredentialFile = ServiceAccountFile | AuthorizedUserFile | ExternalAccountFile;

const GOOGLE_TOKEN_URI = "https://oauth2.googleapis.com/token";

const text = z.string().min(1);
const serviceAccount = z.object({
  type: z.literal("service_account"),
  client_email: text,
  private_key: text,
  private_key_id: text.optional(),
  token_uri: text.optional(),
});
const authorizedUser = z.object({
  type: z.literal("authorized_user"),
  client_id: text,
  client_secret: text,
  refresh_token: text,
  token_uri: text.optional(),
});
const externalAccount = z.object({
  type: z.literal("external_account"),
  audience: text,
  subject_token_type: text,
  token_url: text,
  service_account_impersonation_url: text.optional(),
  credential_source: z.object({
    file: text,
    format: z.object({ type: z.enum(["text", "json"]), subject_token_field_name: text.optional() }).optional(),
  }),
});

/**
 * Reads one of Google's credential files. Throws `storage-denied` for one that cannot be read, is none, or is of a kind that
 * bakelite does not know, with `named` (who names it: "`service_account_file`"); nothing of its content is in a message.
 * Source: https://google.aip.dev/auth/4112 and 4113, 4117.
 */
export async function readCredentialFile(path: string, named: string): Promise<CredentialFile> {
  const fail = (what: string, hint: string, cause?: unknown): BakeliteError =>
    new BakeliteError("storage-denied", `cannot log in to Google Cloud: the credential file ${what}`, {
      subject: path,
      hint,
      ...(cause === undefined ? {} : { cause }),
    });
  let content: string;
  try {
    content = await readFile(path, "utf8");
  } catch (cause) {
    throw fail("cannot be read", `check ${named}, and that the user running bakelite may read the file`, cause);
  }
  const document = parseJson(content);
  const type = z.object({ type: z.string() }).safeParse(document);
  if (!type.success)
    throw fail(
      "is not one of Google's",
      `let ${named} name a JSON file with a \`type\`, such as a service account's key`,
    );
  const broken = (fields: z.ZodError) =>
    fail(
      `lacks ${fields.issues.map(({ path: field }) => `\`${field.join(".")}\``).join(", ")}`,
      "download it again, or write it anew with gcloud",
    );
  switch (type.data.type) {
    case "service_account": {
      const found = serviceAccount.safeParse(document);
      if (!found.success) throw broken(found.error);
      const { client_email, private_key, private_key_id, token_uri = GOOGLE_TOKEN_URI } = found.data;
      const common = { type: "service_account", clientEmail: client_email, privateKeyId: private_key_id } as const;
      const tokenUri = checkedUrl(token_uri, "token_uri", fail);
      try {
        return { ...common, tokenUri, privateKey: createPrivateKey(private_key) };
      } catch {
        // What crypto says of a key may repeat some of it.
        throw fail("holds no private key that can be used", "make a new key for the service account, as JSON");
      }
    }
    case "authorized_user": {
      const found = authorizedUser.safeParse(document);
      if (!found.success) throw broken(found.error);
      const { client_id, client_secret, refresh_token, token_uri = GOOGLE_TOKEN_URI } = found.data;
      const secrets = { clientId: client_id, clientSecret: client_secret, refreshToken: refresh_token };
      return { type: "authorized_user", ...secrets, tokenUri: checkedUrl(token_uri, "token_uri", fail) };
    }
    case "external_account": {
      const found = externalAccount.safeParse(document);
      if (!found.success)
        throw found.error.issues.some(({ path: field }) => field[0] === "credential_source")
          ? fail(
              "gets its token by other means than a file, which bakelite does not support",
              "use a `credential_source` with `file`, or a service account's key",
            )
          : broken(found.error);
      const { credential_source: source, service_account_impersonation_url: impersonation } = found.data;
      return {
        type: "external_account",
        audience: found.data.audience,
        subjectTokenType: found.data.subject_token_type,
        tokenUrl: checkedUrl(found.data.token_url, "token_url", fail),
        impersonationUrl:
          impersonation === undefined
            ? undefined
            : checkedUrl(impersonation, "service_account_impersonation_url", fail),
        subjectTokenPath: source.file,
        subjectTokenField: source.format?.type === "json" ? (source.format.subject_token_field_name ?? "") : undefined,
      };
    }
    default:
      throw fail(
        `is of type ${JSON.stringify(type.data.type.slice(0, 40))}, which bakelite does not support`,
        "use the key of a service account, `gcloud auth application-default login`, or a token in a file (external_account)",
      );
  }
}

/** A secret is sent there: in clear only to this host, as tests do. */
function checkedUrl(url: string, field: string, fail: (what: string, hint: string) => BakeliteError): string {
  const parsedUrl = URL.parse(url);
  const isLocal = parsedUrl !== null && /^(?:127\.\d+\.\d+\.\d+|localhost|\[::1\])$/.test(parsedUrl.hostname);
  if (parsedUrl?.protocol === "https:" || (parsedUrl?.protocol === "http:" && isLocal)) return url;
  throw fail(`has a \`${field}\` that is no https address`, "download it again, or write it anew with gcloud");
}

/** The token of a workload, as it stands in its file now. Throws `storage-denied`. */
export async function readSubjectToken({ subjectTokenPath, subjectTokenField }: ExternalAccountFile): Promise<string> {
  const fail = (what: string) =>
    new BakeliteError("storage-denied", `cannot log in to Google Cloud: the workload's token ${what}`, {
      subject: subjectTokenPath,
      hint: "check `credential_source` of the credential file, and that what renews the token is running",
    });
  let content: string;
  try {
    content = await readFile(subjectTokenPath, "utf8");
  } catch (cause) {
    throw fail(`cannot be read: ${describeError(cause)}`);
  }
  const found = subjectTokenField === undefined ? content.trim() : fieldOf(parseJson(content), subjectTokenField);
  if (found !== null && found !== "") return found;
  throw fail(subjectTokenField === undefined ? "is empty" : `has no ${JSON.stringify(subjectTokenField)}`);
}

function fieldOf(document: unknown, name: string): string | null {
  const found = z.record(z.string(), z.unknown()).safeParse(document);
  const value = found.success ? found.data[name] : undefined;
  return typeof value === "string" ? value : null;
}
