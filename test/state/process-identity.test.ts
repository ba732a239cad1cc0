import { expect, test } from "bun:test";
import { readMachineIdentity } from "../../src/state/machine.ts";
import { isProcessRunning, parseStartTicks, readOwnIdentity } from "../../src/state/process-identity.ts";

const onLinux = process.platform === "linux";

test("the start time is found behind whatever the command is called", () => {
  const rest = "S 1 2 2 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 50";
  expect(parseStartTicks(`42 (bakelite) ${rest}`)).toBe("987654");
  expect(parseStartTicks(`42 (a (b) c) 7) ${rest}`)).toBe("987654");
  expect(parseStartTicks("42 (bakelite) S 1 2")).toBeNull();
  expect(parseStartTicks("")).toBeNull();
});

test("a process is running until it has ended", async () => {
  expect(await isProcessRunning(await readOwnIdentity())).toBe(true);
  const child = Bun.spawn([process.execPath, "-e", "setInterval(() => {}, 1000)"]);
  const identity = { ...(await readOwnIdentity()), pid: child.pid, pid_start_ticks: null };
  expect(await isProcessRunning(identity)).toBe(true);
  child.kill("SIGKILL");
  await child.exited;
  expect(await isProcessRunning(identity)).toBe(false);
});

test.skipIf(!onLinux)("a PID that was given to another process, or another boot, is not the same one", async () => {
  const own = await readOwnIdentity();
  expect(own.pid_start_ticks).toMatch(/^\d+$/);
  expect(await isProcessRunning({ ...own, pid_start_ticks: "1" })).toBe(false);
  expect(await isProcessRunning({ ...own, boot_id: "an earlier one", pid_start_ticks: "1" })).toBe(false);
  expect(await isProcessRunning({ ...own, boot_id: "an earlier one", pid_start_ticks: null })).toBe(false);
  expect(await isProcessRunning({ ...own, boot_id: "an earlier one", pid_namespace: "pid:[1]" })).toBe(false);
});

test.skipIf(!onLinux)(
  "two views of one process's boot, as a sandbox in a container has them, prove nothing",
  async () => {
    expect(await isProcessRunning({ ...(await readOwnIdentity()), boot_id: "another one" })).toBeNull();
  },
);

test.skipIf(!onLinux)("of a process in another PID namespace nothing is known", async () => {
  const own = await readOwnIdentity();
  expect(await isProcessRunning({ ...own, pid: 1, pid_namespace: "pid:[1]" })).toBeNull();
});

test("the machine has one identity, whoever asks", async () => {
  const identity = await readMachineIdentity();
  expect(await readMachineIdentity()).toEqual(identity);
  if (onLinux) expect(identity.bootId).toMatch(/^[0-9a-f-]{36}$/);
  expect(identity.machineId === null || identity.machineId.length > 0).toBe(true);
});
