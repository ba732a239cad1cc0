import { type AzureBackendOptions, openAzure } from "../../src/storage/azure/backend.ts";
import type { AzureClientOptions } from "../../src/storage/azure/client.ts";
import { newPlace } from "../../src/storage/azure/place.ts";
import type { Backend } from "../../src/storage/backend.ts";

export const KEY = Buffer.from("a key of an account, as long as need be").toString("base64");

/** A backend with quick retries that knows nothing about the container yet. `options` replace what is usual. */
export function openTestAzure(
  endpoint: string,
  options: Partial<AzureBackendOptions> = {},
  overrides: Partial<AzureClientOptions> = {},
): Backend {
  return openAzure({
    account: "acc",
    container: "con",
    prefix: "",
    endpoint,
    authentication: { method: "account-key", accountKey: KEY },
    storageClass: undefined,
    changeSetStorageClass: undefined,
    caFile: undefined,
    timeoutMs: 20_000,
    retries: 5,
    env: {},
    ...options,
    overrides: { place: newPlace(), baseDelayMs: 5, ...overrides },
  });
}

/** What Azure says instead of doing it: the code in a header too, and a message of several lines. */
export function refuse(status: number, code: string, headers: Record<string, string> = {}): Response {
  const body = `\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>${code}</Code><Message>because.\nRequestId:REQ7\nTime:now</Message><AuthenticationErrorDetail>a secret detail</AuthenticationErrorDetail></Error>`;
  return new Response(body, { status, headers: { "x-ms-error-code": code, "x-ms-request-id": "REQ7", ...headers } });
}

export function created(headers: Record<string, string> = {}): Response {
  return new Response("", { status: 201, headers: { etag: '"0x1"', ...headers } });
}

/** One page of a listing; `marker` "" ends it. */
export function page(names: readonly string[], marker = ""): string {
  const blobs = names.map(
    (name) =>
      `<Blob><Name>${name}</Name><Properties><Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified><Content-Length>3</Content-Length><ResourceType>file</ResourceType></Properties></Blob>`,
  );
  return `\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://acc.blob.core.windows.net/" ContainerName="con"><Prefix/><Blobs>${blobs.join("")}</Blobs><NextMarker>${marker}</NextMarker></EnumerationResults>`;
}
