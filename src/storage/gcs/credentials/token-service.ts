import { z } from "zod";
import { type Clock, systemClock } from "../../../util/clock.ts";
import { BakeliteError } from "../../../util/errors.ts";
import { type Dialect, HttpClient, type HttpRequest } from "../../http/client.ts";
import { describeRefusal, networkError, type Refusal, shorten } from "../../http/refusal.ts";
import { parseJson } from "../json.ts";
import type { AccessToken, GcsCredentialsOptions } from "./types.ts";

/** One question for a token. */
export interface TokenQuestion {
  readonly url: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** As a form, or as JSON. */
  readonly form?: Readonly<Record<string, string>>;
  readonly json?: unknown;
  /** What to do about a refusal; by default that the credentials are looked at. */
  readonly hint?: string;
  readonly signal: AbortSignal;
}

interface TokenRequest extends HttpRequest {
  readonly question: TokenQuestion;
}

/** It is sent to whoever it is about and shown to nobody, so a message must not hold one that came back. */
const DOING = { doing: "log in to Google Cloud" } as const;
const CHECK_CREDENTIALS = "check the credentials, and whether the service account or its key was disabled or deleted";

const oauthAnswer = z.object({ access_token: z.string().min(1), expires_in: z.number().positive() });
const impersonationAnswer = z.object({ accessToken: z.string().min(1), expireTime: z.string() });
/** Source: RFC 6749 section 5.2; Google's APIs answer with an object in place of the word. */
const refusalBody = z.object({
  error: z.union([z.string(), z.object({ status: z.string().optional(), message: z.string().optional() })]),
  error_description: z.string().optional(),
});

/**
 * Asks Google's token services: OAuth, security tokens, IAM credentials. Passing failures are tried again; throws
 * `storage-denied` for a refusal, `storage-unreachable` for what may go by itself. No message holds what was sent.
 */
export class TokenService {
  readonly #client: HttpClient<TokenRequest, Refusal, null>;
  readonly #clock: Clock;

  constructor(options: GcsCredentialsOptions) {
    this.#clock = options.clock ?? systemClock;
    this.#client = new HttpClient(dialectOf(this.#clock), options);
  }

  /** Of an answer as OAuth defines it. Source: RFC 6749 section 5.1. */
  async oauth(question: TokenQuestion): Promise<AccessToken> {
    const { access_token, expires_in } = await this.#ask(question, oauthAnswer);
    return { token: checkedToken(access_token, question), expiresMs: this.#clock.nowMs() + expires_in * 1000 };
  }

  /** Of an answer of IAM's generateAccessToken. Source: IAM Service Account Credentials API, v1. */
  async impersonation(question: TokenQuestion): Promise<AccessToken> {
    const { accessToken, expireTime } = await this.#ask(question, impersonationAnswer);
    const expiresMs = Date.parse(expireTime);
    if (Number.isNaN(expiresMs)) throw unfit(question, "its time of expiry is none");
    return { token: checkedToken(accessToken, question), expiresMs };
  }

  async #ask<T>(question: TokenQuestion, schema: z.ZodType<T>): Promise<T> {
    const text =
      question.form === undefined ? JSON.stringify(question.json) : new URLSearchParams(question.form).toString();
    const request: TokenRequest = {
      question,
      method: "POST",
      body: new TextEncoder().encode(text),
      signal: question.signal,
      maxBytes: 256 * 1024,
    };
    return await this.#client.send(request, ({ body }) => {
      const answer = schema.safeParse(parseJson(body));
      if (answer.success) return answer.data;
      throw unfit(question, "it has no token");
    });
  }
}

function dialectOf(clock: Clock): Dialect<TokenRequest, Refusal, null> {
  const about = ({ question }: TokenRequest) => ({ ...DOING, subject: new URL(question.url).origin });
  return {
    async sign({ question }) {
      const type = question.form === undefined ? "application/json" : "application/x-www-form-urlencoded";
      return { url: question.url, headers: new Headers({ "content-type": type, ...question.headers }), used: null };
    },
    parseRefusal,
    isPassing: ({ status }) => status >= 500 || status === 429 || status === 408,
    isAnswer: () => false,
    refusalError(refusal, request) {
      const isPassing = refusal.status >= 500 || refusal.status === 429 || refusal.status === 408;
      const isClock = /invalid jwt.*(?:iat|exp|short-lived|reasonable timeframe)/i.test(refusal.message);
      const isGone =
        refusal.code === "invalid_grant" &&
        /account not found|token has been expired or revoked/i.test(refusal.message);
      return new BakeliteError(
        isPassing ? "storage-unreachable" : "storage-denied",
        `cannot log in to Google Cloud: ${
          isPassing
            ? "the token service has a problem"
            : isClock
              ? "this machine's clock and Google's differ too much"
              : isGone
                ? "the account or its login does not exist any more"
                : "the credentials were refused"
        }`,
        {
          subject: new URL(request.question.url).origin,
          hint: isPassing
            ? "try again later"
            : isClock
              ? "set the clock of this machine (`timedatectl` shows whether it is synchronized)"
              : (request.question.hint ?? CHECK_CREDENTIALS),
          cause: new Error(describeRefusal(refusal)),
        },
      );
    },
    networkError: (cause, request, endpoint) =>
      networkError(cause, about(request), {
        endpoint,
        hints: {
          name: "check this machine's network and DNS",
          certificateName: "check whether a proxy stands in between, and `ca_file`",
        },
      }),
    correct: () => false,
    nowMs: () => clock.nowMs(),
  };
}

function parseRefusal(status: number, headers: Headers, body: Uint8Array): Refusal {
  const found = refusalBody.safeParse(parseJson(body));
  const common = { status, requestId: headers.get("x-request-id") ?? undefined };
  if (!found.success) return { ...common, code: "", message: "" };
  const { error, error_description } = found.data;
  if (typeof error === "string") return { ...common, code: shorten(error), message: shorten(error_description ?? "") };
  return { ...common, code: shorten(error.status ?? ""), message: shorten(error.message ?? "") };
}

/** It goes into a header: with a line break in it, it would be two. */
function checkedToken(token: string, question: TokenQuestion): string {
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw unfit(question, "its token has characters that no token has");
}

function unfit(question: TokenQuestion, what: string): BakeliteError {
  return new BakeliteError("storage-unreachable", `cannot log in to Google Cloud: an answer is of no use, ${what}`, {
    subject: new URL(question.url).origin,
    hint: "check whether a proxy stands in between",
  });
}
