// A server in a process of its own: it takes any part and throws it away, and has one object of BYTES bytes of zeros.
import { xml } from "./stub.ts";

const sizeBytes = Number(process.argv[2]);
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  idleTimeout: 0,
  maxRequestBodySize: 1024 * 1024 * 1024,
  async fetch(request) {
    const { searchParams } = new URL(request.url);
    if (request.method === "PUT") {
      for await (const _ of request.body ?? []) {
        // Thrown away.
      }
      return new Response("", { headers: { etag: '"e"' } });
    }
    if (request.method === "POST")
      return searchParams.has("uploads")
        ? xml("<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
        : xml("<CompleteMultipartUploadResult/>");
    const [, start = "0", end = "0"] = /bytes=(\d+)-(\d+)/.exec(request.headers.get("range") ?? "") ?? [];
    const last = Math.min(sizeBytes - 1, Number(end));
    return new Response(new Uint8Array(last - Number(start) + 1), {
      status: 206,
      headers: { "content-range": `bytes ${start}-${last}/${sizeBytes}`, etag: '"e"' },
    });
  },
});
console.log(`http://127.0.0.1:${server.port}`);
