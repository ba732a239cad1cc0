import { BakeliteError } from "../../../util/errors.ts";
import { askDirectly, type HttpAnswer, type HttpQuestion } from "../../http/ask.ts";
import { type Origin, parseKeysDocument, unfit } from "./keys.ts";
import { variable } from "./shared-files.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

const IPV4_ENDPOINT = "http://169.254.169.254";
const IPV6_ENDPOINT = "http://[fd00:ec2::254]";
const ROLE_PATH = "/latest/meta-data/iam/security-credentials/";
/** 6 h, the longest there is. Asked anew for every look-up, since hours lie between two. */
const TOKEN_TTL_SECONDS = 21_600;
/** The service is in the host's own hypervisor; what has not answered by then is not EC2. */
const DEFAULT_TIMEOUT_MS = 1000;
/** Of the first question, for which anything but EC2 has no answer. AWS's own default is 1. */
const DEFAULT_TOKEN_ATTEMPTS = 2;
/** Of the questions after it: by then we know that the service is there. */
const ATTEMPTS = 3;

const ORIGIN: Origin = {
  source: "EC2 instance metadata",
  hint: "check the instance profile and its role in the EC2 console",
};

/** `absent` says why there are none, as a clause: `no answer within 1000 ms from 169.254.169.254`. */
export type InstanceAnswer =
  | { readonly kind: "found"; readonly credentials: AwsCredentials; readonly role: string }
  | { readonly kind: "absent"; readonly why: string };

/**
 * Credentials of the role of this EC2 instance, by version 2 of its metadata service: a PUT for a session token, then a
 * GET for the name of the role, then one for its credentials. It never falls back to version 1, which needs no token and can be
 * asked by a request that somebody tricked another program of this host into.
 *
 * Honours AWS_EC2_METADATA_DISABLED, AWS_EC2_METADATA_SERVICE_ENDPOINT, AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE (`IPv6`),
 * AWS_METADATA_SERVICE_TIMEOUT (seconds) and AWS_METADATA_SERVICE_NUM_ATTEMPTS. Throws `storage-unreachable` when the
 * service gave a token and then failed, `storage-denied` when its answer is of no use.
 * Source: Amazon EC2 User Guide, "Use the Instance Metadata Service to access instance metadata".
 */
export async function instanceCredentials(
  options: CredentialsOptions,
  signal: AbortSignal | undefined,
): Promise<InstanceAnswer> {
  if (variable(options, "AWS_EC2_METADATA_DISABLED")?.toLowerCase() === "true") {
    return { kind: "absent", why: "switched off by AWS_EC2_METADATA_DISABLED" };
  }
  const endpoint = endpointOf(options);
  const timeoutMs = positive(options, "AWS_METADATA_SERVICE_TIMEOUT", 60, DEFAULT_TIMEOUT_MS / 1000) * 1000;
  const session = await openSession(options, { endpoint, timeoutMs, signal });
  if ("why" in session) return { kind: "absent", why: session.why };
  const look = (path: string) =>
    asked({
      method: "GET",
      url: new URL(path, endpoint),
      headers: { "x-aws-ec2-metadata-token": session.token },
      timeoutMs,
      signal,
    });
  const listed = await look(ROLE_PATH);
  if (listed.status === 404) return { kind: "absent", why: "this instance has no role" };
  const role = listed.body.split("\n", 1)[0]?.trim() ?? "";
  // The characters of a role's name. Anything else, such as a page of a captive portal, must not become part of a path.
  if (listed.status !== 200 || !/^[\w+=,.@-]{1,64}$/.test(role)) {
    throw unfit(`the name of the role was answered with status ${listed.status}, without a name`, ORIGIN);
  }
  const answer = await look(`${ROLE_PATH}${role}`);
  if (answer.status !== 200) throw unfit(`the credentials were answered with status ${answer.status}`, ORIGIN);
  return { kind: "found", credentials: parseKeysDocument(answer.body, ORIGIN), role };
}

interface Service {
  readonly endpoint: URL;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

async function openSession(
  options: CredentialsOptions,
  { endpoint, timeoutMs, signal }: Service,
): Promise<{ readonly token: string } | { readonly why: string }> {
  const attempts = positive(options, "AWS_METADATA_SERVICE_NUM_ATTEMPTS", 10, DEFAULT_TOKEN_ATTEMPTS);
  let why = "";
  for (let attempt = 1; attempt <= attempts; attempt++) {
    const answer = await askDirectly({
      method: "PUT",
      url: new URL("/latest/api/token", endpoint),
      headers: { "x-aws-ec2-metadata-token-ttl-seconds": String(TOKEN_TTL_SECONDS) },
      timeoutMs,
      signal,
    });
    if (answer.kind === "no-answer") {
      why = answer.why;
      continue;
    }
    const token = answer.body.trim();
    if (answer.status === 200 && /^[\x21-\x7e]+$/.test(token)) return { token };
    why = describeRefusal(answer.status, endpoint.host);
    if (answer.status < 500) break;
  }
  return { why };
}

/** Why there is no session: 403 is what the service says when it is switched off, 404 and 405 what knows no version 2. */
function describeRefusal(status: number, host: string): string {
  if (status === 403) return `switched off for this instance, says ${host}`;
  if (status === 404 || status === 405) return `${host} does not speak version 2 of it`;
  return `${host} answered with status ${status} instead of a session token`;
}

async function asked(question: HttpQuestion): Promise<Extract<HttpAnswer, { kind: "answered" }>> {
  let why = "";
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const answer = await askDirectly(question);
    if (answer.kind === "answered" && answer.status < 500) return answer;
    why = answer.kind === "no-answer" ? answer.why : `status ${answer.status} from ${question.url.host}`;
  }
  throw new BakeliteError("storage-unreachable", `cannot get AWS credentials from ${ORIGIN.source}: ${why}`, {
    subject: `${question.url.origin}${ROLE_PATH}`,
    hint: "the service gave a session and then no credentials; it is retried",
  });
}

function endpointOf(options: CredentialsOptions): URL {
  const named = variable(options, "AWS_EC2_METADATA_SERVICE_ENDPOINT");
  const isIpv6 = variable(options, "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")?.toLowerCase() === "ipv6";
  const url = URL.parse(named ?? (isIpv6 ? IPV6_ENDPOINT : IPV4_ENDPOINT));
  if (url !== null && (url.protocol === "http:" || url.protocol === "https:")) return url;
  throw new BakeliteError("storage-denied", "AWS_EC2_METADATA_SERVICE_ENDPOINT is not an http or https URL", {
    hint: "unset it; it is only for another address of the metadata service",
  });
}

/** A number above 0 and up to `max`; what is not one counts as not set. */
function positive(options: CredentialsOptions, name: string, max: number, otherwise: number): number {
  const number = Number(variable(options, name) ?? otherwise);
  return number > 0 && number <= max ? number : otherwise;
}
