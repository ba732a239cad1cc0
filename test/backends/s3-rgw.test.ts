import { forEachS3Server } from "../servers/s3-servers.ts";
import { describeS3 } from "./s3-cases.ts";

await forEachS3Server((server, kind) => describeS3(server, kind), ["rgw"]);
