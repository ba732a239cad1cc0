import { createHash, createHmac } from "node:crypto";

/** What a stub was asked, in order: `PUT /latest/api/token 200`. */
export interface Stub extends AsyncDisposable {
  readonly origin: string;
  readonly asked: readonly string[];
}

export type Answer = { readonly status: number; readonly body?: string; readonly type?: string };

export function serve(answer: (request: Request, body: string) => Answer | Promise<Answer>): Stub {
  const asked: string[] = [];
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    async fetch(request) {
      const { status, body, type } = await answer(request, await request.text());
      asked.push(`${request.method} ${new URL(request.url).pathname} ${status}`);
      return new Response(body ?? "", { status, headers: { "content-type": type ?? "text/plain" } });
    },
  });
  return {
    origin: `http://127.0.0.1:${server.port}`,
    asked,
    async [Symbol.asyncDispose]() {
      await server.stop(true);
    },
  };
}

/** Enforces version 2 of EC2's metadata service: a token comes by PUT with a time to live, and every GET needs it. */
export function serveInstanceMetadata(document: () => string, role = "backup-role"): Stub {
  const tokens = new Set<string>();
  return serve((request) => {
    const { pathname } = new URL(request.url);
    if (request.headers.has("x-forwarded-for")) return { status: 403 };
    if (pathname === "/latest/api/token") {
      if (request.method !== "PUT") return { status: 405 };
      const seconds = Number(request.headers.get("x-aws-ec2-metadata-token-ttl-seconds"));
      if (!(seconds >= 1 && seconds <= 21_600)) return { status: 400 };
      const token = `session-${tokens.size}-${crypto.randomUUID()}`;
      tokens.add(token);
      return { status: 200, body: token };
    }
    if (request.method !== "GET") return { status: 405 };
    if (!tokens.has(request.headers.get("x-aws-ec2-metadata-token") ?? "")) return { status: 401 };
    const base = "/latest/meta-data/iam/security-credentials/";
    if (pathname === base) return role === "" ? { status: 404 } : { status: 200, body: role };
    if (pathname === `${base}${role}`) return { status: 200, body: document(), type: "application/json" };
    return { status: 404 };
  });
}

export interface StsRules {
  /** The secret of each access key that may assume roles, with its session token. */
  readonly keys?: Readonly<Record<string, { readonly secret: string; readonly token?: string }>>;
  /** The only web identity token that is accepted. */
  readonly webToken?: string;
  readonly externalId?: string;
  readonly region?: string;
  readonly expiration?: () => string;
  /** Instead of an answer. */
  readonly failure?: Answer;
}

export const ISSUED = { secret: "issued-secret", token: "issued-token" };

/** Enforces the query protocol of STS for AssumeRole, the signature included, and AssumeRoleWithWebIdentity. */
export function serveSts(rules: StsRules): Stub {
  return serve((request, body) => {
    if (rules.failure !== undefined) return rules.failure;
    const form = new URLSearchParams(body);
    const action = form.get("Action") ?? "";
    const isForm = request.headers.get("content-type")?.startsWith("application/x-www-form-urlencoded");
    if (request.method !== "POST" || !isForm || form.get("Version") !== "2011-06-15") {
      return stsError(400, "InvalidAction", "not a query request");
    }
    if (!form.get("RoleArn")?.startsWith("arn:") || !form.get("RoleSessionName")) {
      return stsError(400, "ValidationError", "RoleArn and RoleSessionName are needed");
    }
    if (action === "AssumeRoleWithWebIdentity") {
      if (request.headers.has("authorization")) return stsError(400, "ValidationError", "this action is not signed");
      if (form.get("WebIdentityToken") !== rules.webToken) {
        return stsError(400, "InvalidIdentityToken", `cannot verify ${form.get("WebIdentityToken")}`);
      }
    } else if (action === "AssumeRole") {
      const refused = checkSignature(request, body, rules);
      if (refused !== null) return refused;
      if ((form.get("ExternalId") ?? undefined) !== rules.externalId) {
        return stsError(403, "AccessDenied", `not authorized to perform sts:AssumeRole on ${form.get("RoleArn")}`);
      }
    } else {
      return stsError(400, "InvalidAction", "no such action");
    }
    const role = form.get("RoleArn")?.split("/").at(-1);
    const expiration = rules.expiration?.() ?? "2099-01-01T00:00:00Z";
    return {
      status: 200,
      type: "text/xml",
      body: `<${action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><${action}Result><Credentials><AccessKeyId>ASIA-${role}</AccessKeyId><SecretAccessKey>${ISSUED.secret}</SecretAccessKey><SessionToken>${ISSUED.token}</SessionToken><Expiration>${expiration}</Expiration></Credentials></${action}Result></${action}Response>`,
    };
  });
}

/**
 * Calculates the signature of what arrived from the secret on record, by the book and without the package that made it.
 * Source: AWS IAM User Guide, "Create a signed AWS API request" (Signature Version 4).
 */
function checkSignature(request: Request, body: string, rules: StsRules): Answer | null {
  const match =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([\w-]+)\/sts\/aws4_request, SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})$/.exec(
      request.headers.get("authorization") ?? "",
    );
  const [, id = "", day = "", region = "", names = "", signature = ""] = match ?? [];
  const key = rules.keys?.[id];
  if (key === undefined || (request.headers.get("x-amz-security-token") ?? undefined) !== key.token) {
    return stsError(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
  }
  const time = request.headers.get("x-amz-date") ?? "";
  if (region !== (rules.region ?? "us-east-1") || !time.startsWith(day) || !names.split(";").includes("host")) {
    return stsError(403, "SignatureDoesNotMatch", "wrong scope");
  }
  const url = new URL(request.url);
  const canonical = [
    request.method,
    url.pathname,
    url.search.slice(1),
    ...names.split(";").map((name) => `${name}:${name === "host" ? url.host : request.headers.get(name)?.trim()}`),
    "",
    names,
    createHash("sha256").update(body).digest("hex"),
  ].join("\n");
  const scope = `${day}/${region}/sts/aws4_request`;
  const toSign = ["AWS4-HMAC-SHA256", time, scope, createHash("sha256").update(canonical).digest("hex")].join("\n");
  const hmac = (secret: string | Buffer, text: string) => createHmac("sha256", secret).update(text).digest();
  const signingKey = [day, region, "sts", "aws4_request"].reduce<string | Buffer>(hmac, `AWS4${key.secret}`);
  if (hmac(signingKey, toSign).toString("hex") === signature) return null;
  return stsError(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.");
}

export function stsError(status: number, code: string, message: string): Answer {
  return {
    status,
    type: "text/xml",
    body: `<ErrorResponse><Error><Type>Sender</Type><Code>${code}</Code><Message>${message}</Message></Error></ErrorResponse>`,
  };
}
