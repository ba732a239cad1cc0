// A program with nothing of bakelite in it but its way of being built: it prints what reached it.
import { workerUrl } from "../../../src/util/worker-url.ts";

const worker = new Worker(workerUrl("deep/echo.worker.ts"));
const { promise, resolve, reject } = Promise.withResolvers<unknown>();
worker.onmessage = (event: MessageEvent<unknown>) => resolve(event.data);
worker.onerror = (event) => reject(new Error(event.message));
worker.postMessage("hello");
const echo = await promise;
worker.terminate();
console.log(JSON.stringify({ echo, dotenv: process.env["PROBE_FROM_DOTENV"] ?? null, argv: process.argv.slice(2) }));
if (process.argv.includes("--throw")) failOnPurpose();

function failOnPurpose(): never {
  throw new Error("on purpose");
}
