import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { backendSchema } from "../../src/config/backends.ts";
import type { Backend } from "../../src/storage/backend.ts";
import { openBackend } from "../../src/storage/open.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { findProgram, freePorts, programPath, runProgram, ServerProcess, untilListening } from "./programs.ts";

const PROGRAMS = ["sshd", "ssh-keygen", "ssh-agent", "ssh-add"];
const READY_DEADLINE_MS = 30_000;
export const PASSPHRASE = "sesame";

export interface SshdOptions {
  /** Sessions see a directory of root's as `/`, in which `data` is the user's. */
  readonly chroot?: boolean;
  /** Instead of `internal-sftp`, as `/usr/lib/openssh/sftp-server -R`. */
  readonly sftp?: string;
  /** Further lines of sshd_config. */
  readonly lines?: readonly string[];
  /**
   * A user with this password may log in, besides the one who runs the tests. The server then runs in a mount namespace with
   * a passwd and a shadow of its own, which takes root; this machine's users stay as they are.
   */
  readonly password?: string;
}

/** Who logs in by the password. Files are then root's, as those of the one who runs the tests. */
const PASSWORD_USER = "bakelite-by-password";

/** What this machine lacks; Debian has it in openssh-server and openssh-client. */
export function missingForSshd(): readonly string[] {
  return PROGRAMS.filter((name) => findProgram(name) === null);
}

/**
 * OpenSSH's sshd on 127.0.0.1, with two host keys, for the user who runs the tests and the keys `key` and `lockedKey`. All it
 * needs is in a folder of its own, which disposal removes. A chroot has to be below directories that only root can write
 * to, so it is made in /run.
 */
export async function startSshd(options: SshdOptions = {}): Promise<SshdServer> {
  const missing = missingForSshd();
  if (missing.length > 0) throw new Error(`${missing.join(", ")} not installed: apt-get install openssh-server`);
  const directory = await temporaryDirectory("sshd");
  const [port = 0] = await freePorts(1);
  const server = new SshdServer(directory, port, options);
  try {
    await server.create();
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

export class SshdServer implements AsyncDisposable {
  readonly port: number;
  readonly #directory: TemporaryDirectory;
  readonly #options: SshdOptions;
  #process: ServerProcess | null = null;
  #jail: string | null = null;
  #user = "";
  #version = "";
  #placeCount = 0;

  constructor(directory: TemporaryDirectory, port: number, options: SshdOptions) {
    this.#directory = directory;
    this.port = port;
    this.#options = options;
  }

  /** As in `note: ran against OpenSSH_9.2p1`. */
  get name(): string {
    return this.#version;
  }

  get key(): string {
    return this.file("id_ed25519");
  }

  /** Locked with `PASSPHRASE`. */
  get lockedKey(): string {
    return this.file("id_locked");
  }

  get knownHosts(): string {
    return this.file("known_hosts");
  }

  get user(): string {
    return this.#user;
  }

  get passwordUser(): string {
    return PASSWORD_USER;
  }

  /** The folder that sessions store in, as this machine sees it. */
  get dataPath(): string {
    return this.#jail === null ? this.file("data") : join(this.#jail, "data");
  }

  file(name: string): string {
    return this.#directory.file(name);
  }

  /** The public part of a host key: `ssh-ed25519 AAAA…`. */
  async hostKey(kind: "ed25519" | "rsa"): Promise<string> {
    return (await readFile(this.file(`host_${kind}.pub`), "utf8")).split(" ").slice(0, 2).join(" ");
  }

  /** Makes keys and configuration and starts it; to be called once. */
  async create(): Promise<void> {
    this.#user = (await runProgram(["id", "-un"])).trim();
    await mkdir("/run/sshd", { recursive: true }).catch(() => {});
    const makeKey = async (name: string, more: readonly string[]) =>
      await runProgram(["ssh-keygen", "-q", "-f", this.file(name), ...more]);
    await Promise.all([
      makeKey("host_ed25519", ["-t", "ed25519", "-N", ""]),
      makeKey("host_rsa", ["-t", "rsa", "-b", "2048", "-N", ""]),
      makeKey("id_ed25519", ["-t", "ed25519", "-N", ""]),
      makeKey("id_rsa", ["-t", "rsa", "-b", "2048", "-N", ""]),
      makeKey("id_locked", ["-t", "ed25519", "-N", PASSPHRASE]),
      makeKey("id_stranger", ["-t", "ed25519", "-N", ""]),
    ]);
    const allowed = ["id_ed25519.pub", "id_rsa.pub", "id_locked.pub"].map((name) => readFile(this.file(name), "utf8"));
    await writeFile(this.file("authorized_keys"), (await Promise.all(allowed)).join(""), { mode: 0o600 });
    const hosts = [await this.hostKey("ed25519"), await this.hostKey("rsa")];
    await writeFile(this.knownHosts, hosts.map((key) => `[127.0.0.1]:${this.port} ${key}\n`).join(""));
    if (this.#options.chroot === true) this.#jail = await mkdtemp("/run/bakelite-sshd-");
    if (this.#jail !== null) await runProgram(["chmod", "755", this.#jail]);
    await mkdir(this.dataPath);
    await writeFile(this.file("sshd_config"), `${this.#config().join("\n")}\n`);
    if (this.#options.password !== undefined) await this.#createPasswordUser(this.#options.password);
    await this.start();
    const banner = await runProgram(["ssh-keyscan", "-p", String(this.port), "127.0.0.1"]).catch(() => "");
    this.#version = /OpenSSH_[\w.]+/.exec(`${banner} ${(await this.#process?.lastWords()) ?? ""}`)?.[0] ?? "OpenSSH";
  }

  async start(): Promise<void> {
    const command = ["sshd", "-D", "-e", "-f", this.file("sshd_config")];
    const mounts = ["passwd", "shadow"].map((name) => `mount --bind ${this.file(name)} /etc/${name}`).join(" && ");
    const run =
      this.#options.password === undefined
        ? command
        : ["unshare", "--mount", "sh", "-c", `${mounts} && exec "$0" "$@"`, programPath("sshd"), ...command.slice(1)];
    this.#process = new ServerProcess(run, { logPath: this.file("log"), label: "sshd" });
    await untilListening(this.port, this.#process, READY_DEADLINE_MS);
  }

  /** SIGKILL to it and to every session, as when its machine dies. */
  async kill(): Promise<void> {
    if (this.#process === null) return;
    for (const pid of [...(await descendantsOf(this.#process.pid))].reverse()) signalIfThere(pid, "SIGKILL");
    await this.#process.kill();
  }

  /** SIGKILL to the sessions only: every connection breaks. */
  async killSessions(): Promise<void> {
    if (this.#process === null) return;
    for (const pid of [...(await descendantsOf(this.#process.pid))].reverse()) signalIfThere(pid, "SIGKILL");
  }

  async sessionCount(): Promise<number> {
    return this.#process === null ? 0 : (await childrenOf(this.#process.pid)).length;
  }

  /** The path, as sessions see it, of a root that does not exist yet. */
  newPath(): string {
    const name = `place-${++this.#placeCount}`;
    return this.#jail === null ? join(this.dataPath, name) : `/data/${name}`;
  }

  /** The keys of a `[[database.backends]]` that stores to `path` there. */
  table(path: string, more: Readonly<Record<string, unknown>> = {}): Readonly<Record<string, unknown>> {
    return {
      ...{ type: "sftp", host: "127.0.0.1", port: this.port, user: this.#user, path },
      ...{ key_file: this.key, known_hosts: this.knownHosts },
      ...more,
    };
  }

  /** A backend as the configuration gives it, without retries. */
  open(path: string, more: Readonly<Record<string, unknown>> = {}): Backend {
    return openTable(this.table(path, more));
  }

  /** The same by another port of 127.0.0.1, such as a proxy's. */
  async tableThrough(
    port: number,
    path: string,
    more: Readonly<Record<string, unknown>> = {},
  ): Promise<Readonly<Record<string, unknown>>> {
    const known = this.file(`known-${port}`);
    await writeFile(known, `[127.0.0.1]:${port} ${await this.hostKey("ed25519")}\n`);
    return this.table(path, { port, known_hosts: known, ...more });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    if (this.#jail !== null) await rm(this.#jail, { recursive: true, force: true });
    await this.#directory[Symbol.asyncDispose]();
  }

  /** Entries of /etc/passwd and /etc/shadow. Source: passwd(5), shadow(5). */
  async #createPasswordUser(password: string): Promise<void> {
    const hash = (await runProgram(["openssl", "passwd", "-6", password])).trim();
    const add = async (name: string, line: string) =>
      await writeFile(this.file(name), `${(await readFile(`/etc/${name}`, "utf8")).trimEnd()}\n${line}\n`, {
        mode: 0o600,
      });
    await add("passwd", `${PASSWORD_USER}:x:0:0::${this.dataPath}:/bin/sh`);
    await add("shadow", `${PASSWORD_USER}:${hash}:19000:0:99999:7:::`);
    await runProgram(["chmod", "644", this.file("passwd")]);
  }

  #config(): readonly string[] {
    const jailed = this.#jail === null ? [] : ["ForceCommand internal-sftp", `ChrootDirectory ${this.#jail}`];
    return [
      `Port ${this.port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${this.file("host_ed25519")}`,
      `HostKey ${this.file("host_rsa")}`,
      "PidFile none",
      `AuthorizedKeysFile ${this.file("authorized_keys")}`,
      "StrictModes no",
      "UsePAM no",
      `PasswordAuthentication ${this.#options.password === undefined ? "no" : "yes"}`,
      "KbdInteractiveAuthentication no",
      `PermitRootLogin ${this.#options.password === undefined ? "prohibit-password" : "yes"}`,
      `Subsystem sftp ${this.#options.sftp ?? "internal-sftp"}`,
      ...(this.#options.lines ?? []),
      ...jailed,
    ];
  }
}

export function openTable(table: Readonly<Record<string, unknown>>): Backend {
  const config = backendSchema.parse({ retries: 0, ...table });
  if (config.type !== "sftp") throw new Error("the table is one of SFTP");
  return openBackend(config);
}

/** OpenSSH's server as a program of its own, which takes options that `internal-sftp` does not. */
export function sftpServerPath(): string {
  const folders = ["/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec"];
  const path = Bun.which("sftp-server", { PATH: folders.join(":") });
  if (path === null) throw new Error(`there is no sftp-server near ${dirname(folders[0] ?? "")}`);
  return path;
}

async function childrenOf(pid: number): Promise<readonly number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8").catch(() => "");
  return text.split(" ").filter(Boolean).map(Number);
}

async function descendantsOf(pid: number): Promise<readonly number[]> {
  const children = await childrenOf(pid);
  return [...children, ...(await Promise.all(children.map(descendantsOf))).flat()];
}

function signalIfThere(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended by itself.
  }
}
