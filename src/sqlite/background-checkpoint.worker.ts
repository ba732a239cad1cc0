import type { PassiveRequest } from "./background-checkpoint.ts";
import { passiveCheckpoint } from "./control.ts";

declare const self: Worker;

/** The thread that `BackgroundCheckpoints` starts: each answer is null or a failure. */
self.onmessage = ({ data }: MessageEvent<PassiveRequest>) => {
  self.postMessage(passiveCheckpoint(data.databasePath, data.file));
};
