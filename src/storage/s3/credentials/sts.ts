import { AwsV4Signer } from "aws4fetch";
import { BakeliteError } from "../../../util/errors.ts";
import { printable } from "../../../util/printable.ts";
import { ask, type HttpAnswer } from "../../http/ask.ts";
import { child, childText, parseXml, type XmlDocument, type XmlNode } from "../../http/xml.ts";
import { checkedKeys, errorWord, type Origin, parseExpiration, unfit } from "./keys.ts";
import { readSecretFile, variable } from "./shared-files.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

const API_VERSION = "2011-06-15";
const TIMEOUT_MS = 10_000;
const MAX_MESSAGE_CHARACTERS = 300;

/** Failures that go by themselves. Source: AWS STS API Reference, "Common errors", and its two AssumeRole actions. */
const PASSING_ERRORS = new Set(["Throttling", "ThrottlingException", "RequestLimitExceeded", "IDPCommunicationError"]);

/** What to do about a failure, by its code. */
const HINTS: ReadonlyMap<string, string> = new Map([
  [
    "AccessDenied",
    "check the role's trust policy, which must allow whoever asks to assume it, and the keys of who asks",
  ],
  ["ExpiredTokenException", "the web identity token has expired: check that what writes its file is running"],
  ["InvalidIdentityToken", "check the OpenID Connect provider in IAM: its address and its audience"],
  ["SignatureDoesNotMatch", "check the secret access key, and the clock of this host"],
  ["InvalidClientTokenId", "check the access key: it does not exist, or its session token is missing"],
  ["ExpiredToken", "the credentials that vouch for the role have expired"],
  ["RegionDisabledException", "activate AWS STS for this region in IAM, or set AWS_REGION to another"],
]);

/** A role to ask for. */
export interface RoleRequest {
  readonly options: CredentialsOptions;
  readonly signal: AbortSignal | undefined;
  readonly roleArn: string;
  readonly sessionName: string;
  readonly externalId: string | undefined;
  /** As it stands in the profile. */
  readonly durationSeconds: string | undefined;
  /** The region of the profile. */
  readonly profileRegion: string | undefined;
}

/**
 * Temporary credentials of a role, by the STS action AssumeRole, signed with `base`. Throws `storage-denied` when STS refuses
 * (with its code and message, in which nothing secret is left), `storage-unreachable` when it cannot be asked now.
 * Source: AWS STS API Reference, AssumeRole.
 */
export async function assumeRole(
  request: RoleRequest & { readonly base: AwsCredentials },
  origin: Origin,
): Promise<AwsCredentials> {
  const { base } = request;
  const form = new URLSearchParams({ ...roleFields("AssumeRole", request, origin) });
  if (request.externalId !== undefined) form.set("ExternalId", request.externalId);
  const { url, region } = endpointOf(request);
  const body = form.toString();
  const signed = await new AwsV4Signer({
    method: "POST",
    url: url.href,
    headers: formHeaders(),
    body,
    accessKeyId: base.accessKeyId,
    secretAccessKey: base.secretAccessKey,
    ...(base.sessionToken === undefined ? {} : { sessionToken: base.sessionToken }),
    service: "sts",
    region,
  }).sign();
  const secrets = [base.secretAccessKey, base.sessionToken, request.externalId];
  const answer = await ask({
    method: "POST",
    url,
    headers: Object.fromEntries(signed.headers),
    body,
    timeoutMs: TIMEOUT_MS,
    signal: request.signal,
  });
  return readAnswer(answer, { url, action: "AssumeRole", secrets }, origin);
}

/**
 * Temporary credentials of a role for the token in `tokenFile`, which is read anew each time since it rotates, by the STS
 * action AssumeRoleWithWebIdentity, unsigned. Throws as `assumeRole`, and `storage-denied` when there is no token.
 * Source: AWS STS API Reference, AssumeRoleWithWebIdentity.
 */
export async function assumeRoleWithWebIdentity(
  request: RoleRequest & { readonly tokenFile: string },
  origin: Origin,
): Promise<AwsCredentials> {
  const read = await readSecretFile(request.tokenFile, "the web identity token");
  if (!("text" in read)) {
    throw new BakeliteError("storage-denied", `cannot read the web identity token: it is ${read.absence}`, {
      subject: request.tokenFile,
      hint: origin.hint,
    });
  }
  const token = read.text.trim();
  if (!/^[\x21-\x7e]{4,20000}$/.test(token)) throw unfit("the file of the web identity token holds no token", origin);
  const action = "AssumeRoleWithWebIdentity";
  const form = new URLSearchParams({ ...roleFields(action, request, origin), WebIdentityToken: token });
  const { url } = endpointOf(request);
  const answer = await ask({
    method: "POST",
    url,
    headers: formHeaders(),
    body: form.toString(),
    timeoutMs: TIMEOUT_MS,
    signal: request.signal,
  });
  return readAnswer(answer, { url, action, secrets: [token] }, origin);
}

function roleFields(action: string, request: RoleRequest, origin: Origin): Record<string, string> {
  const { roleArn, sessionName, durationSeconds } = request;
  if (!/^arn:[\w-]+:[\x21-\x7e]{1,2000}$/.test(roleArn))
    throw unfit("the role's ARN does not begin with `arn:`", origin);
  if (!/^[\w+=,.@-]{2,64}$/.test(sessionName)) {
    throw unfit("the session name is not 2 to 64 letters, digits and +=,.@-", origin);
  }
  const fields = { Action: action, Version: API_VERSION, RoleArn: roleArn, RoleSessionName: sessionName };
  if (durationSeconds === undefined) return fields;
  const seconds = Number(durationSeconds);
  if (!Number.isInteger(seconds) || seconds < 900 || seconds > 43_200) {
    throw unfit("duration_seconds is not a number from 900 to 43200", origin);
  }
  return { ...fields, DurationSeconds: String(seconds) };
}

function formHeaders(): Record<string, string> {
  return { "content-type": "application/x-www-form-urlencoded; charset=utf-8", accept: "text/xml" };
}

interface Endpoint {
  readonly url: URL;
  /** That the request is signed for. */
  readonly region: string;
}

/**
 * Where STS is: what AWS_ENDPOINT_URL_STS or AWS_ENDPOINT_URL say, else the endpoint of the region where this host is, else of
 * the profile's, else of the bucket's if it is one of AWS (other servers call theirs `garage` or `auto`), else the global one.
 */
function endpointOf({ options, profileRegion }: RoleRequest): Endpoint {
  const regions = [
    variable(options, "AWS_REGION"),
    variable(options, "AWS_DEFAULT_REGION"),
    profileRegion,
    options.region,
  ];
  const region = regions.find((name) => name !== undefined && /^[a-z]{2,3}(?:-[a-z]+)+-\d{1,2}$/.test(name));
  const ignored = variable(options, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")?.toLowerCase() === "true";
  const named = variable(options, "AWS_ENDPOINT_URL_STS") ?? variable(options, "AWS_ENDPOINT_URL");
  if (named !== undefined && !ignored) {
    const url = URL.parse(named);
    if (url !== null && (url.protocol === "http:" || url.protocol === "https:") && url.username === "") {
      return { url, region: region ?? "us-east-1" };
    }
    throw new BakeliteError("storage-denied", "AWS_ENDPOINT_URL_STS or AWS_ENDPOINT_URL is not an http or https URL", {
      hint: "correct or unset it; it is only for an STS that is not AWS's own",
    });
  }
  const host = region === undefined ? "sts.amazonaws.com" : `sts.${region}.${domainOf(region)}`;
  return { url: new URL(`https://${host}/`), region: region ?? "us-east-1" };
}

/** Of the partition that the region is in. Source: the partitions file of AWS's SDKs (endpoint rules). */
function domainOf(region: string): string {
  const domains: readonly (readonly [RegExp, string])[] = [
    [/^cn-/, "amazonaws.com.cn"],
    [/^us-iso-/, "c2s.ic.gov"],
    [/^us-isob-/, "sc2s.sgov.gov"],
    [/^eu-isoe-/, "cloud.adc-e.uk"],
    [/^us-isof-/, "csp.hci.ic.gov"],
    [/^eusc-/, "amazonaws.eu"],
  ];
  return domains.find(([pattern]) => pattern.test(region))?.[1] ?? "amazonaws.com";
}

interface Asked {
  readonly url: URL;
  readonly action: string;
  /** What must not show in a message, even if STS repeats it. */
  readonly secrets: readonly (string | undefined)[];
}

function readAnswer(answer: HttpAnswer, { url, action, secrets }: Asked, origin: Origin): AwsCredentials {
  const subject = url.origin;
  if (answer.kind === "no-answer") {
    throw new BakeliteError("storage-unreachable", `cannot ask for ${origin.source}: ${answer.why}`, {
      subject,
      hint: "check the network; STS of another region or a private endpoint is chosen by AWS_REGION or AWS_ENDPOINT_URL_STS",
    });
  }
  if (answer.status !== 200) throw refusal(answer, subject, secrets, origin);
  const document = documentOf(answer.body);
  if (document === null) {
    // An answer cut short is the usual reason.
    throw new BakeliteError("storage-unreachable", `cannot ask for ${origin.source}: the answer of STS is not XML`, {
      subject,
      hint: "check that nothing between this host and STS, such as a proxy, answers in its place",
    });
  }
  const keys =
    document.rootName === `${action}Response`
      ? child(child(document.root, `${action}Result`), "Credentials")
      : undefined;
  if (keys === undefined) throw unfit("the answer of STS holds no credentials", origin);
  const found = checkedKeys(
    {
      accessKeyId: textOf(keys, "AccessKeyId"),
      secretAccessKey: textOf(keys, "SecretAccessKey"),
      sessionToken: textOf(keys, "SessionToken"),
    },
    { accessKeyId: "AccessKeyId", secretAccessKey: "SecretAccessKey", sessionToken: "SessionToken" },
    origin,
  );
  return { ...found, expiresMs: parseExpiration(textOf(keys, "Expiration") ?? "", origin) };
}

function refusal(
  { status, body }: Extract<HttpAnswer, { kind: "answered" }>,
  subject: string,
  secrets: readonly (string | undefined)[],
  origin: Origin,
): BakeliteError {
  const document = documentOf(body);
  // Servers other than AWS may answer in the form of S3, whose root is the error itself.
  const error = document?.rootName === "Error" ? document.root : child(document?.root, "Error");
  const code = errorWord(textOf(error, "Code") ?? "") ?? "";
  const told = safeMessage(textOf(error, "Message") ?? "", secrets);
  const passing = status === 429 || status >= 500 || PASSING_ERRORS.has(code);
  const what = [code === "" ? `status ${status}` : code, ...(told === "" ? [] : [told])].join(": ");
  return new BakeliteError(
    passing ? "storage-unreachable" : "storage-denied",
    `STS ${passing ? "failed to give" : "refused"} ${origin.source}: ${what}`,
    { subject, hint: HINTS.get(code) ?? origin.hint },
  );
}

/** null when it is not XML, as the page of a proxy or a load balancer. */
function documentOf(body: string): XmlDocument | null {
  try {
    return parseXml(body);
  } catch {
    return null;
  }
}

/** undefined when there is no such child, or it is not a text. */
function textOf(node: XmlNode | undefined, name: string): string | undefined {
  return typeof child(node, name) === "string" ? childText(node, name)?.trim() : undefined;
}

/** STS's sentence, in one short line; "" if it repeats any of what we sent in secret, whole or in part. */
function safeMessage(message: string, secrets: readonly (string | undefined)[]): string {
  const line = printable(message.replace(/\s+/g, " ").trim());
  for (const secret of secrets) {
    if (secret === undefined) continue;
    // The parts of a token are secrets too, and so is a token that the answer has cut.
    for (const part of secret.split(".")) {
      if (part !== "" && line.includes(part.slice(0, 8))) return "";
    }
  }
  return line.length > MAX_MESSAGE_CHARACTERS ? `${line.slice(0, MAX_MESSAGE_CHARACTERS)}…` : line;
}
