import { passiveCheckpoint } from "./control.ts";

declare const self: Worker;

/** The thread that `BackgroundCheckpoints` starts: each request is the path of a database, each answer null or a failure. */
self.onmessage = ({ data }: MessageEvent<string>) => {
  self.postMessage(passiveCheckpoint(data));
};
