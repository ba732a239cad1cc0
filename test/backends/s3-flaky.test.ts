// deadline: 600 s
import { describe } from "bun:test";
import { FaultProxy, type FaultRates } from "../faults/proxy.ts";
import { openS3, through } from "../servers/s3-backends.ts";
import { forRgw } from "../servers/s3-servers.ts";
import { describeBackend } from "./conformance.ts";

const TRIED_ONCE = "such a body is tried once, and the line may fail before it";

/** Lost answers are left out: the suite asks who was first, which a retry after a lost answer cannot know. */
const BEFORE: FaultRates = {
  refuse: 0.03,
  "cut-request": 0.03,
  "error-500": 0.03,
  "error-503": 0.04,
  "error-429": 0.02,
};
const READING: FaultRates = { ...BEFORE, "cut-head": 0.03, "cut-body": 0.04, truncate: 0.02 };

await forRgw(({ rgw, newPlace, name }) => {
  describe("over a flaky line", () => {
    describeBackend(
      `s3 on ${name} with retries`,
      async () => {
        const place = await newPlace();
        const proxy = await FaultProxy.start({ targetPort: rgw.port, seed: 5 });
        proxy.rates = (operation) => (["get", "head", "list"].includes(operation) ? READING : BEFORE);
        const open = () => openS3(through(place, proxy.url), { retries: 12, timeout: "5s" });
        return {
          backend: open(),
          sibling: open(),
          async [Symbol.asyncDispose]() {
            await proxy[Symbol.asyncDispose]();
            await place[Symbol.asyncDispose]();
          },
        };
      },
      {
        skips: {
          "lets exactly one of eight racing large puts win":
            "the server does not heed a condition on the end of an upload in parts",
          "leaves nothing of a body that throws midway": TRIED_ONCE,
          "leaves nothing of a large body that throws midway, nor of one that is aborted": TRIED_ONCE,
        },
      },
    );
  });
});
