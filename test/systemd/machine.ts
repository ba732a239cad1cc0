import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { findProgram, programPath } from "../servers/programs.ts";
import { eventually, withDeadline } from "../support/eventually.ts";

/** What a small Debian with systemd in it has, beside `minbase`. */
const PACKAGES = ["systemd", "systemd-sysv", "dbus", "ca-certificates", "procps", "rpm", "sqlite3", "cron", "passwd"];
const WITHOUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
/** Made once and kept from one run to the next, since that takes half a minute. Where it is nobody's temporary folder for a run. */
const CACHE = "/var/tmp/bakelite-test-machines";
/**
 * Runs the rest of the command on a disk that is the folder with a layer in memory on top. The mounts are the command's own and
 * gone with it, however it ends.
 */
const ON_TOP = `
root=$1; shift
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/merged
mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/merged
# It ends with 133 when the machine asks for a reboot. Source: src/nspawn/nspawn.c
while status=0; "$@" --directory=/mnt/merged || status=$?; [ $status -eq 133 ]; do :; done
exit $status
`;
const BUILD_DEADLINE_MS = 240_000;
/** Also for another test's machine to end. */
const BOOT_DEADLINE_MS = 150_000;
const RUN_DEADLINE_MS = 60_000;

/** Why no machine can be had here; null when one can. */
export function whyNoMachine(): string | null {
  if (process.platform !== "linux") return "this is not Linux";
  if (process.geteuid?.() !== 0) return "only root can start one";
  const missing = ["systemd-nspawn", "mmdebstrap", "nsenter", "unshare", "flock"].filter(
    (name) => findProgram(name) === null,
  );
  return missing.length === 0 ? null : `${missing.join(", ")} not installed`;
}

export interface RunResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * A machine of its own with systemd as PID 1, in a container that sees no network. What is written in it is gone with it.
 */
export class Machine implements AsyncDisposable {
  readonly #container: Bun.Subprocess<"ignore", "ignore", "ignore">;
  #leaderPid: number;

  private constructor(container: Bun.Subprocess<"ignore", "ignore", "ignore">, leaderPid: number) {
    this.#container = container;
    this.#leaderPid = leaderPid;
  }

  /** `files`: paths of this host by where they are seen there, read-only. */
  static async boot(files: Readonly<Record<string, string>>): Promise<Machine> {
    const root = await machineRoot();
    const container = Bun.spawn(
      [
        // Whatever ends this, takes the machine with it: systemd-nspawn that is killed would leave it running.
        // One at a time: two would have one tree of cgroups, and each systemd would take the other's processes for its own.
        ...[programPath("flock"), "--no-fork", `${CACHE}/running`],
        ...[programPath("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"],
        ...["sh", "-euc", ON_TOP, "sh", root],
        ...[programPath("systemd-nspawn"), "--quiet", "--boot", "--register=no", "--keep-unit"],
        ...[`--machine=bakelite-${process.pid}`, "--resolv-conf=off", "--timezone=off", "--link-journal=no"],
        ...["--console=pipe", "--private-network"],
        ...Object.entries(files).map(([there, here]) => `--bind-ro=${here}:${there}`),
      ],
      { stdin: "ignore", stdout: "ignore", stderr: "ignore" },
    );
    try {
      return new Machine(container, await untilBooted(container, null));
    } catch (error) {
      await end(container);
      throw error;
    }
  }

  /** Everything that runs there ends, and what is on its disk is there again. */
  async reboot(): Promise<void> {
    const before = this.#leaderPid;
    await this.tryRun("systemctl", "reboot");
    this.#leaderPid = await untilBooted(this.#container, before);
  }

  /** Runs a command there, as root, to its end. */
  async tryRun(...command: readonly string[]): Promise<RunResult> {
    return await runInside(this.#leaderPid, command);
  }

  /** What it printed. Throws unless it ends with status 0. */
  async run(...command: readonly string[]): Promise<string> {
    const { status, stdout, stderr } = await this.tryRun(...command);
    if (status !== 0) throw new Error(`${command.join(" ")} ended with ${status}: ${stdout}${stderr}`);
    return stdout;
  }

  /** The same for a script of the shell. */
  async sh(script: string): Promise<string> {
    return await this.run("sh", "-euc", script);
  }

  async write(path: string, text: string): Promise<void> {
    await this.run("sh", "-euc", 'mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"', "sh", path, text);
  }

  /** A property of a unit, as `systemctl show` prints it. */
  async property(unit: string, name: string): Promise<string> {
    return (await this.run("systemctl", "show", "--value", `--property=${name}`, "--", unit)).trim();
  }

  /** What a unit has said. */
  async journal(unit: string): Promise<string> {
    return await this.run("journalctl", "--no-pager", "--output=cat", `--unit=${unit}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#container);
  }
}

/** The leader's PID, once systemd there says that it has started everything; another one than `before`. */
async function untilBooted(
  container: Bun.Subprocess<"ignore", "ignore", "ignore">,
  before: number | null,
): Promise<number> {
  const leaderPid = await eventually(
    async () => {
      if (container.exitCode !== null) return -1;
      const pid = leaderOf(container);
      if (pid === null || pid === before) return null;
      const { stdout } = await runInside(pid, ["systemctl", "is-system-running"]);
      return /^(running|degraded)$/.test(stdout.trim()) ? pid : null;
    },
    { what: "the machine to boot", deadlineMs: BOOT_DEADLINE_MS, pollMs: 50 },
  );
  if (leaderPid === -1) throw new Error(`systemd-nspawn ended with status ${container.exitCode}`);
  return leaderPid;
}

async function end(container: Bun.Subprocess<"ignore", "ignore", "ignore">): Promise<void> {
  const leader = leaderOf(container);
  container.kill("SIGKILL");
  await withDeadline(container.exited, { what: "the machine to end" });
  // Its first process goes last, once all others there have gone.
  await eventually(() => leader === null || !existsSync(`/proc/${leader}`), { what: "the machine's processes to end" });
}

/** Below unshare there are the shell, systemd-nspawn, and the machine's PID 1. */
function leaderOf(container: Bun.Subprocess<"ignore", "ignore", "ignore">): number | null {
  let pid: number | null = container.pid;
  for (let depth = 0; depth < 3 && pid !== null; depth++) pid = childOf(pid);
  return pid;
}

function childOf(pid: number): number | null {
  try {
    const [child] = readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").split(" ");
    return child === undefined || child === "" ? null : Number(child);
  } catch {
    return null;
  }
}

async function runInside(leaderPid: number, command: readonly string[]): Promise<RunResult> {
  const child = Bun.spawn(
    [
      programPath("nsenter"),
      ...["--target", String(leaderPid), "--all"],
      ...["env", "-i", "--chdir=/", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"],
      "DEBIAN_FRONTEND=noninteractive",
      ...command,
    ],
    { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  );
  const ended = Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  try {
    const options = { what: `${command.join(" ")} in the machine`, deadlineMs: RUN_DEADLINE_MS };
    const [stdout, stderr, status] = await withDeadline(ended, options);
    return { status, stdout, stderr };
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
  }
}

/** A folder with the machine's files, of the same release as this host. */
async function machineRoot(): Promise<string> {
  const system = readFileSync("/etc/os-release", "utf8");
  const release = /^VERSION_CODENAME=(\w+)$/m.exec(system)?.[1] ?? "stable";
  // Where Ubuntu keeps rpm.
  const components = /^ID=ubuntu$/m.test(system) ? ["--components=main,universe"] : [];
  const recipe = new Bun.CryptoHasher("sha256").update(JSON.stringify([release, PACKAGES, WITHOUT])).digest("hex");
  const root = join(CACHE, `${release}-${recipe.slice(0, 12)}`);
  mkdirSync(CACHE, { recursive: true, mode: 0o700 });
  // Where everybody may write, somebody else may have been first.
  if (statSync(CACHE).uid !== process.geteuid?.()) throw new Error(`${CACHE} is somebody else's: remove it`);
  if (existsSync(root)) return root;
  // Whoever comes second waits for the first. What an interrupted run left behind is no finished one.
  const script =
    'if [ ! -d "$1" ]; then rm -rf "$1.new"; out=$1.new; shift; "$@" "$out" && mv "$out" "${out%.new}"; fi';
  const child = Bun.spawn(
    [
      ...[programPath("flock"), `${CACHE}/lock`, "sh", "-c", script, "sh", root],
      ...[programPath("mmdebstrap"), "--quiet", "--variant=minbase", `--include=${PACKAGES.join(",")}`],
      ...[...components, ...WITHOUT.map((path) => `--dpkgopt=path-exclude=${path}`), release],
    ],
    { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  );
  const what = `mmdebstrap to make ${root}`;
  const [said, status] = await withDeadline(Promise.all([child.stderr.text(), child.exited]), {
    what,
    deadlineMs: BUILD_DEADLINE_MS,
  });
  if (status !== 0) throw new Error(`mmdebstrap ended with ${status}: ${said.slice(-2000)}`);
  for (const old of readdirSync(CACHE)) if (old.endsWith(".new")) throw new Error(`${what} left ${old} behind`);
  return root;
}
