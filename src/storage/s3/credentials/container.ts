import { BakeliteError } from "../../../util/errors.ts";
import { askDirectly, type HttpAnswer } from "../../http/ask.ts";
import { errorWord, type Origin, parseKeysDocument } from "./keys.ts";
import { readSecretFile, variable } from "./shared-files.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

/** Where Amazon ECS answers. Source: Amazon ECS Developer Guide, "Task IAM role". */
const ECS_ORIGIN = "http://169.254.170.2";
/**
 * Where plain http may go, besides loopback: ECS, and the agent of EKS Pod Identity at its two addresses. Anywhere else
 * the token and the credentials would cross a network in the clear.
 * Source: AWS SDKs and Tools Reference Guide, "Container credential provider".
 */
const LOCAL_HOSTS = new Set(["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]", "localhost", "[::1]"]);
const TIMEOUT_MS = 2000;
/** Of an agent that does not answer, or that answers with 429 or 5xx. */
const ATTEMPTS = 3;

const ORIGIN: Origin = {
  source: "the container credentials service",
  hint: "check the role of the task, or the pod identity association of the service account",
};

/** Whether the environment names a service for container credentials. */
export function hasContainerService(options: CredentialsOptions): boolean {
  return (
    variable(options, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") !== undefined ||
    variable(options, "AWS_CONTAINER_CREDENTIALS_FULL_URI") !== undefined
  );
}

/**
 * Credentials of an ECS task or an EKS pod, from the service that AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, else …_FULL_URI
 * names. The content of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, which is read anew each time since it rotates, else
 * AWS_CONTAINER_AUTHORIZATION_TOKEN, goes along. Throws `storage-denied` when it refuses or the address is not a safe one, and
 * `storage-unreachable` when it does not answer.
 */
export async function containerCredentials(
  options: CredentialsOptions,
  signal: AbortSignal | undefined,
): Promise<AwsCredentials> {
  const url = serviceUrl(options);
  const token = await authorizationToken(options);
  const headers = { accept: "application/json", ...(token === undefined ? {} : { authorization: token }) };
  let answer: HttpAnswer | undefined;
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    answer = await askDirectly({ method: "GET", url, headers, timeoutMs: TIMEOUT_MS, signal });
    if (answer.kind === "answered" && answer.status !== 429 && answer.status < 500) break;
  }
  return readAnswer(answer, url);
}

function readAnswer(answer: HttpAnswer | undefined, url: URL): AwsCredentials {
  // Without the query, in which a secret may stand.
  const subject = `${url.origin}${url.pathname}`;
  const { source, hint } = ORIGIN;
  if (answer === undefined || answer.kind === "no-answer") {
    const why = answer?.why ?? "it was not asked";
    throw new BakeliteError("storage-unreachable", `cannot get AWS credentials from ${source}: ${why}`, {
      subject,
      hint,
    });
  }
  if (answer.status === 200) return parseKeysDocument(answer.body, ORIGIN);
  const later = answer.status === 429 || answer.status >= 500;
  throw new BakeliteError(
    later ? "storage-unreachable" : "storage-denied",
    `cannot get AWS credentials from ${source}: it answered with status ${answer.status}${codeIn(answer.body)}`,
    { subject, hint },
  );
}

/** Both kinds of agent answer a failure with JSON of a `code` and a message; the code is all that is safe to repeat. */
function codeIn(body: string): string {
  const code = /"code"\s*:\s*"([^"]{1,80})"/i.exec(body)?.[1];
  const word = code === undefined ? null : errorWord(code);
  return word === null ? "" : ` (${word})`;
}

function serviceUrl(options: CredentialsOptions): URL {
  const relative = variable(options, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
  if (relative !== undefined) {
    const url = relative.startsWith("/") ? parseUrl(`${options.containerOrigin ?? ECS_ORIGIN}${relative}`) : null;
    if (url === null) throw badAddress("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "is not a path");
    return url;
  }
  const url = parseUrl(variable(options, "AWS_CONTAINER_CREDENTIALS_FULL_URI") ?? "");
  if (url === null) throw badAddress("AWS_CONTAINER_CREDENTIALS_FULL_URI", "is not an http or https URL");
  if (url.protocol === "http:" && !isLocal(url.hostname)) {
    throw badAddress(
      "AWS_CONTAINER_CREDENTIALS_FULL_URI",
      `names ${url.hostname} without https, and plain http is only for this host, ECS (169.254.170.2) and EKS (169.254.170.23)`,
    );
  }
  return url;
}

function parseUrl(text: string): URL | null {
  const url = URL.parse(text);
  return url !== null && (url.protocol === "http:" || url.protocol === "https:") ? url : null;
}

/** `URL` has by now turned every way of writing an IPv4 address into four decimal numbers. */
function isLocal(hostname: string): boolean {
  return LOCAL_HOSTS.has(hostname) || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}

async function authorizationToken(options: CredentialsOptions): Promise<string | undefined> {
  const path = variable(options, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
  if (path === undefined) {
    const token = variable(options, "AWS_CONTAINER_AUTHORIZATION_TOKEN");
    return token === undefined ? undefined : checkedToken(token, "AWS_CONTAINER_AUTHORIZATION_TOKEN");
  }
  const read = await readSecretFile(path, "the token for container credentials");
  if ("text" in read) return checkedToken(read.text.trim(), "the file of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
  throw new BakeliteError("storage-denied", `cannot read the token for container credentials: it is ${read.absence}`, {
    subject: path,
    hint: "check AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, which EKS sets to a file that it mounts",
  });
}

/** It goes into a header: with a line break in it, it would be two. */
function checkedToken(token: string, where: string): string {
  if (/^[\x20-\x7e]+$/.test(token)) return token;
  throw new BakeliteError("storage-denied", `${where} holds no token: it is empty or has control characters in it`, {
    hint: ORIGIN.hint,
  });
}

function badAddress(name: string, what: string): BakeliteError {
  return new BakeliteError("storage-denied", `cannot get AWS credentials from ${ORIGIN.source}: ${name} ${what}`, {
    hint: `set ${name} as ECS or EKS would, or unset it`,
  });
}
