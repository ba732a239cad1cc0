import { openS3, type S3Table } from "../servers/s3-backends.ts";
import type { S3Server, S3ServerKind } from "../servers/s3-servers.ts";
import { type ConformanceOptions, describeBackend } from "./conformance.ts";

const LOOKS_FIRST = "the server has no conditional put: it looks and then stores, as its capabilities say";
const LOOKS_FIRST_AT_PARTS = "the server does not heed a condition on the end of an upload in parts";

/** The whole suite against one server, each case in a place of its own. */
export function describeS3(
  server: S3Server,
  kind: S3ServerKind,
  {
    skips = {},
    table = {},
    label = "",
  }: ConformanceOptions & { readonly table?: S3Table; readonly label?: string } = {},
): void {
  const races = kind.hasConditionalPut ? {} : { "lets exactly one of eight racing puts win": LOOKS_FIRST };
  const largeRaces = kind.hasConditionalComplete
    ? {}
    : { "lets exactly one of eight racing large puts win": LOOKS_FIRST_AT_PARTS };
  describeBackend(
    `s3 on ${server.name}${label}`,
    async () => {
      const place = await server.newPlace();
      return {
        backend: openS3(place, table),
        sibling: openS3(place, table),
        [Symbol.asyncDispose]: () => place[Symbol.asyncDispose](),
      };
    },
    { skips: { ...races, ...largeRaces, ...skips } },
  );
}
