import type { S3Backend, S3BackendOptions } from "../../src/storage/s3/backend.ts";
import type { S3ClientOptions } from "../../src/storage/s3/client.ts";
import { openTestS3 } from "./open-test-s3.ts";

export interface StubRequest {
  readonly method: string;
  /** Still percent-encoded. */
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: Headers;
  readonly body: Uint8Array;
}

export type StubAnswer = Response | "hang";

/** A server that says what a test wants to be said, where no real one would. */
export interface Stub extends AsyncDisposable {
  readonly endpoint: string;
  readonly requests: readonly StubRequest[];
  /** `GET ?list-type`, `PUT`, …: the sequence of requests at a glance. */
  readonly log: () => readonly string[];
  open(options?: Partial<S3BackendOptions>, overrides?: Partial<S3ClientOptions>): S3Backend;
}

export const ACCOUNT = { region: "us-east-1", accessKeyId: "STUBKEY", secretAccessKey: "stub-secret-0123456789" };

/** `answer` gets each request and how many came before it. */
export function startStub(answer: (request: StubRequest, earlier: number) => StubAnswer | Promise<StubAnswer>): Stub {
  const requests: StubRequest[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0,
    async fetch(request) {
      const url = new URL(request.url);
      const body = await request.bytes();
      const received = {
        method: request.method,
        path: request.url.slice(url.origin.length).split("?")[0] ?? "",
        query: url.searchParams,
        headers: request.headers,
        body,
      };
      requests.push(received);
      const given = await answer(received, requests.length - 1);
      if (given === "hang") return await new Promise<Response>(() => {});
      return given;
    },
  });
  const endpoint = `http://127.0.0.1:${server.port}`;
  return {
    endpoint,
    requests,
    log: () => requests.map(({ method, query }) => [method, ...[...query.keys()].map((name) => `?${name}`)].join(" ")),
    open: (options = {}, overrides = {}) =>
      openTestS3({ ...ACCOUNT, endpoint }, { bucket: "b", ...options }, overrides),
    async [Symbol.asyncDispose]() {
      await server.stop(true);
    },
  };
}

export function xml(content: string, init: ResponseInit = {}): Response {
  return new Response(`<?xml version="1.0" encoding="UTF-8"?>\n${content}`, init);
}

export function refuse(status: number, code: string, headers: Record<string, string> = {}): Response {
  const body = `<Error><Code>${code}</Code><Message>because</Message><RequestId>REQ1</RequestId></Error>`;
  return xml(body, { status, headers });
}

export function listing(keys: readonly string[], next?: string): Response {
  const items = keys.map(
    (key) =>
      `<Contents><Key>${key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><Size>3</Size></Contents>`,
  );
  const end =
    next === undefined
      ? "<IsTruncated>false</IsTruncated>"
      : `<IsTruncated>true</IsTruncated><NextContinuationToken>${next}</NextContinuationToken>`;
  return xml(`<ListBucketResult><EncodingType>url</EncodingType>${items.join("")}${end}</ListBucketResult>`);
}
