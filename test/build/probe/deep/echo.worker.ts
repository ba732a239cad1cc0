declare const self: Worker;

self.onmessage = (event: MessageEvent<unknown>) => {
  postMessage(`${String(event.data)} from a worker`);
};
