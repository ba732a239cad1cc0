import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { findProgram, freePorts, runProgram, ServerProcess, untilAnswered, untilListening } from "./programs.ts";
import type { S3Account } from "./s3-account.ts";

/** Debian's Swift is for Debian's Python, whatever else is called python3 here. */
const PYTHON = "/usr/bin/python3";
const STORES = ["account", "container", "object"] as const;
const READY_DEADLINE_MS = 60_000;

/** What has to be installed; Debian has it in swift-proxy, swift-account, swift-container, swift-object and memcached. */
const PROGRAMS = [
  "memcached",
  "swift-ring-builder",
  "swift-proxy-server",
  ...STORES.map((name) => `swift-${name}-server`),
];

/** Top to bottom, as a request passes them; all but `cache` and `versioned_writes` without options. */
const FILTERS = [
  "catch_errors",
  "gatekeeper",
  "healthcheck",
  "cache",
  "listing_formats",
  "bulk",
  "s3api",
  "tempauth",
  "copy",
];
const LATER_FILTERS = ["slo", "dlo", "versioned_writes", "symlink"];

/** The programs that `startSwift` needs and this machine lacks; none: it can be started. */
export function missingForSwift(): readonly string[] {
  const missing = PROGRAMS.filter((name) => findProgram(name) === null);
  return existsSync(PYTHON) ? missing : [...missing, PYTHON];
}

/**
 * Starts OpenStack Swift with its S3 interface, one device, everything on 127.0.0.1 and in a folder of its own; disposal
 * kills the five processes and removes the folder. It is stricter than others (region, digests) and has no conditional
 * put. Source: https://docs.openstack.org/swift/latest/middleware.html#module-swift.common.middleware.s3api.s3api
 */
export async function startSwift(): Promise<SwiftServer> {
  const directory = await temporaryDirectory("swift");
  const ports = await freePorts(5);
  const server = new SwiftServer(directory, ports);
  try {
    await server.create();
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

export class SwiftServer implements AsyncDisposable {
  readonly account: S3Account;
  readonly #directory: TemporaryDirectory;
  readonly #proxyPort: number;
  readonly #storePorts: readonly number[];
  readonly #cachePort: number;
  readonly #processes: ServerProcess[] = [];
  #version = "";
  #user = "";

  constructor(directory: TemporaryDirectory, [proxyPort = 0, cachePort = 0, ...storePorts]: readonly number[]) {
    this.#directory = directory;
    this.#proxyPort = proxyPort;
    this.#cachePort = cachePort;
    this.#storePorts = storePorts;
    this.account = {
      endpoint: `http://127.0.0.1:${proxyPort}`,
      region: "us-east-1",
      accessKeyId: "test:tester",
      secretAccessKey: "testing",
    };
  }

  /** As in `note: ran against OpenStack Swift 2.30.1`. */
  get name(): string {
    return `OpenStack Swift ${this.#version}`;
  }

  /** Writes rings and configuration and starts all; to be called once. */
  async create(): Promise<void> {
    const { file } = this.#directory;
    for (const name of ["srv", "etc", "log"]) await mkdir(file(name));
    await mkdir(file("srv", "d1"));
    await writeFile(
      file("etc", "swift.conf"),
      "[swift-hash]\nswift_hash_path_suffix = s\nswift_hash_path_prefix = p\n",
    );
    // Not node:os, whose userInfo() under Bun 1.4.5 goes by the environment variable USER.
    this.#user = (await runProgram(["id", "-un"])).trim();
    const memcached = ["memcached", "-l", "127.0.0.1", "-p", String(this.#cachePort), "-m", "16", "-U", "0"];
    const cache = this.#start([...memcached, "-u", this.#user], "memcached");
    const [version] = await Promise.all([swiftVersion(), ...STORES.map((name, i) => this.#makeStore(name, i))]);
    this.#version = version;
    await writeFile(file("etc", "proxy.conf"), this.#proxyConfig());
    await untilListening(this.#cachePort, cache, READY_DEADLINE_MS);
    for (const name of [...STORES, "proxy"])
      this.#start([PYTHON, `/usr/bin/swift-${name}-server`, file("etc", `${name}.conf`)], name);
    for (const [i, name] of STORES.entries())
      await untilListening(this.#storePorts[i] ?? 0, this.#named(name), READY_DEADLINE_MS);
    const health = `${this.account.endpoint}/healthcheck`;
    await untilAnswered(health, this.#named("proxy"), { deadlineMs: READY_DEADLINE_MS });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#processes.map((each) => each.kill()));
    await this.#directory[Symbol.asyncDispose]();
  }

  #start(command: readonly string[], name: string): ServerProcess {
    const started = new ServerProcess(command, { logPath: this.#directory.file("log", name), label: name });
    this.#processes.push(started);
    return started;
  }

  #named(name: string): ServerProcess {
    const found = this.#processes.find((each) => each.label === name);
    if (found === undefined) throw new Error(`${name} was not started`);
    return found;
  }

  /** The ring, which says that everything is on one device, and the configuration of one of the three stores. */
  async #makeStore(name: (typeof STORES)[number], position: number): Promise<void> {
    const cwd = this.#directory.file("etc");
    const ring = ["swift-ring-builder", `${name}.builder`];
    await runProgram([...ring, "create", "4", "1", "0"], { cwd });
    await runProgram([...ring, "add", `r1z1-127.0.0.1:${this.#storePorts[position]}/d1`, "1"], { cwd });
    // Status 1 is a warning: that the ring could be balanced better.
    await runProgram([...ring, "rebalance"], { cwd, statuses: [0, 1] });
    const lines = [
      ...this.#common(this.#storePorts[position] ?? 0),
      `devices = ${this.#directory.file("srv")}`,
      "mount_check = false",
      "disable_fallocate = true",
      "[pipeline:main]",
      `pipeline = ${name}-server`,
      `[app:${name}-server]`,
      `use = egg:swift#${name}`,
    ];
    await writeFile(this.#directory.file("etc", `${name}.conf`), `${lines.join("\n")}\n`);
  }

  #proxyConfig(): string {
    const own: Readonly<Record<string, readonly string[]>> = {
      cache: ["use = egg:swift#memcache", `memcache_servers = 127.0.0.1:${this.#cachePort}`],
      versioned_writes: ["use = egg:swift#versioned_writes", "allow_object_versioning = true"],
      s3api: ["use = egg:swift#s3api", "location = us-east-1", "storage_domain = s3.localhost"],
      tempauth: ["use = egg:swift#tempauth", "user_test_tester = testing .admin"],
    };
    const filters = [...FILTERS, ...LATER_FILTERS];
    const lines = [
      ...this.#common(this.#proxyPort),
      "[pipeline:main]",
      `pipeline = ${filters.join(" ")} proxy-server`,
      "[app:proxy-server]",
      "use = egg:swift#proxy",
      "account_autocreate = true",
      ...filters.flatMap((name) => [`[filter:${name}]`, ...(own[name] ?? [`use = egg:swift#${name}`])]),
    ];
    return `${lines.join("\n")}\n`;
  }

  /** Without `log_address` it wants /dev/log. */
  #common(port: number): readonly string[] {
    return [
      "[DEFAULT]",
      "bind_ip = 127.0.0.1",
      `bind_port = ${port}`,
      `user = ${this.#user}`,
      `swift_dir = ${this.#directory.file("etc")}`,
      "workers = 0",
      "log_address = /dev/null",
    ];
  }
}

async function swiftVersion(): Promise<string> {
  return (await runProgram([PYTHON, "-c", "import swift; print(swift.__version__)"])).trim();
}
