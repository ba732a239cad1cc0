import { createPublicKey, generateKeyPairSync, verify } from "node:crypto";

/** How long a token may be asked for, and how far clocks may differ. */
const MAX_LIFE_SECONDS = 3600;
const SKEW_SECONDS = 300;

export interface Identity {
  readonly email: string;
  /** Permissions that it lacks. */
  readonly lacks: ReadonlySet<string>;
}

/**
 * Google's services that give access tokens: OAuth for service accounts (whose assertions are really verified) and for people, security
 * tokens for workloads, IAM for impersonation, and the metadata server. All at one address, below `/auth`.
 */
export class TokenServer {
  /** Life of the tokens that are given from now on. */
  lifeSeconds = 3600;
  /** How often each service was asked. */
  readonly counts: Record<string, number> = {};
  /** The next so many questions are answered 503. */
  failNext = 0;
  nowMs = () => Date.now();
  /** What the workload has to show. */
  subjectToken = "workload-token";
  #url = "";
  readonly #accounts = new Map<string, { readonly publicKey: string; readonly identity: Identity }>();
  readonly #tokens = new Map<string, { readonly identity: Identity; readonly expiresMs: number }>();
  readonly #users = new Map<string, Identity>();
  #count = 0;

  /** The part of the server's URL before `/auth`. */
  begin(url: string): void {
    this.#url = url;
  }

  /** The JSON key file of a new service account. */
  serviceAccount(name: string, lacks: readonly string[] = []): string {
    const email = `${name}@project.iam.gserviceaccount.com`;
    const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    const id = `key-of-${name}`;
    this.#accounts.set(id, {
      publicKey: publicKey.export({ type: "spki", format: "pem" }).toString(),
      identity: { email, lacks: new Set(lacks) },
    });
    return JSON.stringify({
      type: "service_account",
      project_id: "project",
      private_key_id: id,
      private_key: privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
      client_email: email,
      token_uri: `${this.#url}/auth/token`,
    });
  }

  /** As gcloud writes it for a person. */
  authorizedUser(name: string): string {
    const refreshToken = `refresh-${name}`;
    this.#users.set(refreshToken, { email: name, lacks: new Set() });
    return JSON.stringify({
      type: "authorized_user",
      client_id: "client",
      client_secret: "client-secret",
      refresh_token: refreshToken,
      token_uri: `${this.#url}/auth/token`,
    });
  }

  /** Of a workload whose token is in the file at `path`. */
  externalAccount(path: string, impersonates: boolean): string {
    return JSON.stringify({
      type: "external_account",
      audience: "//iam.googleapis.com/pool",
      subject_token_type: "urn:ietf:params:oauth:token-type:jwt",
      token_url: `${this.#url}/auth/sts`,
      ...(impersonates ? { service_account_impersonation_url: `${this.#url}/auth/impersonate` } : {}),
      credential_source: { file: path, format: { type: "json", subject_token_field_name: "token" } },
    });
  }

  deleteKey(id: string): void {
    this.#accounts.delete(id);
  }

  /** All tokens that were given are refused from now on. */
  revokeAll(): void {
    this.#tokens.clear();
  }

  /** Who has this Authorization header; null: nobody. */
  whoHas(authorization: string | null): Identity | null {
    const token = /^Bearer (\S+)$/.exec(authorization ?? "")?.[1];
    const found = this.#tokens.get(token ?? "");
    return found !== undefined && this.nowMs() < found.expiresMs ? found.identity : null;
  }

  async answer(request: Request, url: URL): Promise<Response> {
    const service = url.pathname.replace(/^\/auth\//, "").replace(/\/.*/, "");
    this.counts[service] = (this.counts[service] ?? 0) + 1;
    if (this.failNext > 0) {
      this.failNext--;
      return new Response("busy", { status: 503 });
    }
    switch (service) {
      case "token":
        return this.#token(new URLSearchParams(await request.text()));
      case "sts":
        return this.#exchange(new URLSearchParams(await request.text()));
      case "impersonate":
        return await this.#impersonate(request);
      default:
        return new Response(null, { status: 404 });
    }
  }

  /** The metadata server, which has its own path. */
  metadata(request: Request): Response {
    this.counts["metadata"] = (this.counts["metadata"] ?? 0) + 1;
    if (request.headers.get("metadata-flavor") !== "Google") return new Response("missing header", { status: 403 });
    return Response.json(this.#grant({ email: "machine", lacks: new Set() }));
  }

  #token(form: URLSearchParams): Response {
    if (form.get("grant_type") === "refresh_token") {
      const user = this.#users.get(form.get("refresh_token") ?? "");
      if (user === undefined || form.get("client_secret") !== "client-secret")
        return refuse("invalid_grant", "Token has been expired or revoked.");
      return Response.json(this.#grant(user));
    }
    if (form.get("grant_type") !== "urn:ietf:params:oauth:grant-type:jwt-bearer")
      return refuse("unsupported_grant_type", "Invalid grant_type");
    return this.#assertion(form.get("assertion") ?? "");
  }

  /** Source: https://developers.google.com/identity/protocols/oauth2/service-account#jwt-auth */
  #assertion(assertion: string): Response {
    const [head = "", claims = "", signature = ""] = assertion.split(".");
    const decode = (part: string) => JSON.parse(Buffer.from(part, "base64url").toString("utf8"));
    const { alg, typ, kid } = decode(head);
    const { iss, scope, aud, iat, exp } = decode(claims);
    const account = this.#accounts.get(kid);
    if (alg !== "RS256" || typ !== "JWT" || account === undefined)
      return refuse("invalid_grant", "Invalid grant: account not found");
    const key = createPublicKey(account.publicKey);
    if (!verify("sha256", Buffer.from(`${head}.${claims}`), key, Buffer.from(signature, "base64url")))
      return refuse("invalid_grant", "Invalid JWT Signature.");
    if (iss !== account.identity.email) return refuse("invalid_grant", "Invalid JWT: issuer");
    if (aud !== `${this.#url}/auth/token`) return refuse("invalid_grant", "Invalid JWT audience.");
    if (!/^https:\/\/www\.googleapis\.com\/auth\/devstorage\.\w+$/.test(scope))
      return refuse("invalid_scope", "Invalid OAuth scope or ID token audience provided.");
    const nowSeconds = this.nowMs() / 1000;
    const isTimely = iat <= nowSeconds + SKEW_SECONDS && exp > nowSeconds && exp - iat <= MAX_LIFE_SECONDS;
    if (!isTimely || iat < nowSeconds - SKEW_SECONDS)
      return refuse(
        "invalid_grant",
        "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.",
      );
    return Response.json(this.#grant(account.identity));
  }

  #exchange(form: URLSearchParams): Response {
    const isRight =
      form.get("grant_type") === "urn:ietf:params:oauth:grant-type:token-exchange" &&
      form.get("audience") === "//iam.googleapis.com/pool" &&
      form.get("subject_token") === this.subjectToken &&
      form.get("subject_token_type") === "urn:ietf:params:oauth:token-type:jwt";
    return isRight
      ? Response.json(this.#grant({ email: "workload", lacks: new Set() }))
      : refuse("invalid_grant", "The given credential is rejected by the attribute condition.");
  }

  async #impersonate(request: Request): Promise<Response> {
    if (this.whoHas(request.headers.get("authorization"))?.email !== "workload")
      return Response.json({ error: { code: 403, status: "PERMISSION_DENIED", message: "denied" } }, { status: 403 });
    const { access_token: accessToken } = this.#grant({ email: "impersonated", lacks: new Set() });
    const expireTime = new Date(this.nowMs() + this.lifeSeconds * 1000).toISOString();
    return Response.json({ accessToken, expireTime });
  }

  #grant(identity: Identity) {
    const token = `ya29.${++this.#count}-${crypto.randomUUID()}`;
    this.#tokens.set(token, { identity, expiresMs: this.nowMs() + this.lifeSeconds * 1000 });
    return { access_token: token, expires_in: this.lifeSeconds, token_type: "Bearer" };
  }
}

function refuse(error: string, error_description: string): Response {
  return Response.json({ error, error_description }, { status: 400 });
}
