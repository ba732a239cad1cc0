import { runIntegrityCheck } from "./restore-check.ts";

declare const self: Worker;

/** The thread that `checkIntegrity` starts: one request, one answer. */
self.onmessage = ({ data }: MessageEvent) => {
  self.postMessage(runIntegrityCheck(data));
};
