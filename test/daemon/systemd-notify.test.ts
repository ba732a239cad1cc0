import { expect, test } from "bun:test";
import { configPathIn, startDaemon } from "../oracle/daemon-process.ts";
import { eventually } from "../support/eventually.ts";
import { pythonPath } from "../support/python.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const LISTENER = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("listening", flush=True)
while True:
    print(s.recv(4096).decode(), flush=True)
`;

test("the daemon tells systemd when it is ready, keeps the watchdog fed, and says when it stops", async () => {
  await using directory = await temporaryDirectory("notify");
  const socket = directory.file("notify");
  const listener = Bun.spawn([pythonPath(), "-c", LISTENER, socket], { stdout: "pipe", stderr: "inherit" });
  const heard: string[] = [];
  const reading = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of listener.stdout) heard.push(...decoder.decode(chunk).trim().split("\n"));
  })();
  try {
    await eventually(() => heard.includes("listening"), { what: "the listener" });
    const databases = [{ name: "app", path: directory.file("app.db"), replicas: [directory.file("replica")] }];
    const environment = { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000" };
    await using daemon = await startDaemon({
      configPath: configPathIn(directory.path),
      databases,
      program: "executable",
      environment,
    });
    await eventually(() => heard.includes("READY=1"), { what: "READY=1" });
    await eventually(() => heard.filter((line) => line === "WATCHDOG=1").length >= 3, { what: "the watchdog" });
    await daemon.stop();
    await eventually(() => heard.includes("STOPPING=1"), { what: "STOPPING=1" });
    expect(heard.indexOf("READY=1")).toBeLessThan(heard.indexOf("WATCHDOG=1"));
  } finally {
    listener.kill();
    await reading;
  }
});
