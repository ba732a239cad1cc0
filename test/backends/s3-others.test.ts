import { expect, test } from "bun:test";
import { findServers, forEachS3Server } from "../servers/s3-servers.ts";
import { describeS3 } from "./s3-cases.ts";

const UNENCODED = {
  "keeps control characters in keys": "its listings hold them as they are, for which XML has no way",
};

// None of them is there unless somebody put it there.
const ids = ["versitygw", "own"] as const;
test("servers that nobody needs are found or not", () => {
  const { found, lacking } = findServers(ids);
  expect(found.length + lacking.length).toBe(ids.length);
});

await forEachS3Server((server, kind) => {
  describeS3(server, kind, { skips: kind.id === "versitygw" ? UNENCODED : {} });
}, ids);
