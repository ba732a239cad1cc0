import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { eventually } from "../support/eventually.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { findProgram, freePorts, runProgram, ServerProcess, untilAnswered, untilReady } from "./programs.ts";
import type { S3Account } from "./s3-account.ts";

/** What has to be installed; Debian has it in radosgw, ceph-mon, ceph-osd and ceph-common. */
const PROGRAMS = ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "openssl"];
const READY_DEADLINE_MS = 40_000;
/** A storage class beside STANDARD that the server knows. */
export const RGW_STORAGE_CLASS = "STANDARD_IA";

export interface RgwOptions {
  /** In memory by default, up in 2 s; "disk" outlives a restart of everything, and takes 6 s. */
  readonly store?: "memory" | "disk";
}

export interface RgwUser {
  readonly uid: string;
  /** `read` alone makes a user that can write nothing; all by default. */
  readonly operations?: "read" | "write" | "delete" | "read, write" | "*";
}

/** The programs that `startRgw` needs and this machine lacks; none: it can be started. */
export function missingForRgw(): readonly string[] {
  return PROGRAMS.filter((name) => findProgram(name) === null);
}

/**
 * Starts a whole Ceph cluster of one monitor, one OSD and one RADOS gateway, listening on 127.0.0.1 only, with everything
 * it writes in a folder of its own; disposal kills the three and removes the folder.
 * Source: https://docs.ceph.com/en/pacific/install/manual-deployment/ and .../radosgw/config-ref/
 */
export async function startRgw(options: RgwOptions = {}): Promise<RgwServer> {
  const directory = await temporaryDirectory("rgw");
  const [httpPort = 0, httpsPort = 0, monitorPort = 0] = await freePorts(3);
  const server = new RgwServer(directory, { httpPort, httpsPort, monitorPort, store: options.store ?? "memory" });
  try {
    await server.create();
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

interface RgwSetup {
  readonly httpPort: number;
  readonly httpsPort: number;
  readonly monitorPort: number;
  readonly store: "memory" | "disk";
}

/** A real S3 server with signatures, versions, object lock, quotas, policies and conditional puts. */
export class RgwServer implements AsyncDisposable {
  /** The owner of what tests make, who may do everything. */
  readonly account: S3Account;
  /** The same by TLS, with a certificate that only `caFile` vouches for. */
  readonly httpsEndpoint: string;
  readonly caFile: string;
  /** Buckets are also to be had as `http://BUCKET.s3.localhost:<port>`. */
  readonly virtualHostEndpoint: string;
  readonly #directory: TemporaryDirectory;
  readonly #setup: RgwSetup;
  readonly #processes = new Map<"mon" | "osd" | "gateway", ServerProcess>();
  #version = "";

  constructor(directory: TemporaryDirectory, setup: RgwSetup) {
    this.#directory = directory;
    this.#setup = setup;
    this.account = {
      endpoint: `http://127.0.0.1:${setup.httpPort}`,
      region: "us-east-1",
      accessKeyId: "TESTKEY",
      secretAccessKey: "testsecret",
    };
    this.httpsEndpoint = `https://127.0.0.1:${setup.httpsPort}`;
    this.virtualHostEndpoint = `http://s3.localhost:${setup.httpPort}`;
    this.caFile = directory.file("tls.crt");
  }

  /** As in `note: ran against Ceph RGW 16.2.15`. */
  get name(): string {
    return `Ceph RGW ${this.#version}`;
  }

  get port(): number {
    return this.#setup.httpPort;
  }

  /** Lays the cluster out and starts it; to be called once. */
  async create(): Promise<void> {
    const [fsid, osdId] = [crypto.randomUUID(), crypto.randomUUID()];
    const { file } = this.#directory;
    for (const name of ["mon", "osd", "run", "log"]) await mkdir(file(name));
    await writeFile(this.#configPath, cephConfig(fsid, this.#directory, this.#setup));
    const monitorAddress = `[v2:127.0.0.1:${this.#setup.monitorPort}]`;
    const [versionLine] = await Promise.all([
      runProgram(["radosgw", "--version"]),
      makeCertificate(file("tls.key"), file("tls.crt")),
      runProgram(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitorAddress, file("monmap")]),
      this.#makeKeyring(),
    ]);
    this.#version = /ceph version (\S+)/.exec(versionLine)?.[1] ?? "of an unknown version";
    const keyring = file("keyring");
    await runProgram([
      ...["ceph-mon", "-c", this.#configPath, "-i", "a", "--mkfs"],
      ...["--monmap", file("monmap"), "--keyring", keyring],
    ]);
    this.#start("mon");
    await this.#ceph("osd", "new", osdId);
    await this.#ceph("auth", "import", "-i", keyring);
    await runProgram([
      ...["ceph-osd", "-c", this.#configPath, "-i", "0", "--mkfs"],
      ...["--osd-uuid", osdId, "--no-mon-config"],
    ]);
    this.#start("osd");
    const { accessKeyId, secretAccessKey } = this.account;
    // The first call of this tool makes the zone.
    await this.admin(
      "user",
      "create",
      "--uid=test",
      "--display-name=test",
      ...keyArguments(accessKeyId, secretAccessKey),
    );
    const placement = ["--placement-id", "default-placement", "--storage-class", RGW_STORAGE_CLASS];
    await this.admin("zonegroup", "placement", "add", "--rgw-zonegroup", "default", ...placement);
    await this.admin("zone", "placement", "add", "--rgw-zone", "default", ...placement, "--data-pool", "ia.data");
    await this.startGateway();
  }

  /** Runs radosgw-admin, and gives what it printed. */
  async admin(...args: readonly string[]): Promise<string> {
    return await runProgram(["radosgw-admin", "-c", this.#configPath, "-n", "client.admin", ...args]);
  }

  /** A further user, who owns nothing: a bucket policy has to let it in. */
  async addUser({ uid, operations = "*" }: RgwUser): Promise<S3Account> {
    const keys = { accessKeyId: `KEY${uid.toUpperCase()}`, secretAccessKey: `secret-of-${uid}` };
    const args = [`--uid=${uid}`, `--display-name=${uid}`, `--op-mask=${operations}`];
    await this.admin("user", "create", ...args, ...keyArguments(keys.accessKeyId, keys.secretAccessKey));
    return { ...this.account, ...keys };
  }

  /** The owner may store so many bytes in all; null: any amount. */
  async setQuota(maxSizeBytes: number | null): Promise<void> {
    const scope = ["--uid=test", "--quota-scope=user"];
    if (maxSizeBytes === null) await this.admin("quota", "disable", ...scope);
    else {
      await this.admin("quota", "set", ...scope, `--max-size=${maxSizeBytes}`);
      await this.admin("quota", "enable", ...scope);
    }
  }

  /** More requests at once than this are answered with 503 SlowDown. */
  async setMaxConcurrentRequests(count: number): Promise<void> {
    const socket = this.#directory.file("run", "client.rgw.a.asok");
    await runProgram(["ceph", "daemon", socket, "config", "set", "rgw_max_concurrent_requests", String(count)]);
  }

  /** SIGSTOP: connections are accepted, by the kernel, and nothing is answered. Resolves when every thread stands still. */
  async freeze(): Promise<void> {
    const gateway = this.#process("gateway");
    gateway.signal("SIGSTOP");
    const tasks = `/proc/${gateway.pid}/task`;
    await eventually(
      async () => {
        const states = (await readdir(tasks)).map((task) => readFile(`${tasks}/${task}/stat`, "latin1"));
        return (await Promise.all(states)).every((stat) => stat.slice(stat.lastIndexOf(")") + 2).startsWith("T"));
      },
      { what: "the gateway to stand still", pollMs: 5 },
    );
  }

  thaw(): void {
    this.#process("gateway").signal("SIGCONT");
  }

  /** SIGKILL of the gateway in the middle of whatever it does; what was stored stays. */
  async killGateway(): Promise<void> {
    await this.#process("gateway").kill();
  }

  async startGateway(): Promise<void> {
    await rm(this.#directory.file("run", "client.rgw.a.asok"), { force: true });
    const gateway = this.#start("gateway");
    await untilAnswered(`${this.account.endpoint}/`, gateway, { deadlineMs: READY_DEADLINE_MS });
  }

  /** SIGKILL of everything, as when the machine dies; only a store on disk comes back from it. */
  async crash(): Promise<void> {
    await Promise.all([...this.#processes.values()].map((each) => each.kill()));
  }

  async startAgain(): Promise<void> {
    for (const name of ["mon.a", "osd.0"]) await rm(this.#directory.file("run", `${name}.asok`), { force: true });
    this.#start("mon");
    this.#start("osd");
    await this.startGateway();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#processes.get("gateway")?.signal("SIGCONT");
    await this.crash();
    await this.#directory[Symbol.asyncDispose]();
  }

  get #configPath(): string {
    return this.#directory.file("ceph.conf");
  }

  #process(name: "mon" | "osd" | "gateway"): ServerProcess {
    const found = this.#processes.get(name);
    if (found === undefined) throw new Error(`${name} was not started`);
    return found;
  }

  #start(name: "mon" | "osd" | "gateway"): ServerProcess {
    const config = ["-c", this.#configPath, "--foreground"];
    const commands = {
      mon: ["ceph-mon", "-i", "a", ...config],
      osd: ["ceph-osd", "-i", "0", "--no-mon-config", ...config],
      gateway: ["radosgw", "-n", "client.rgw.a", "--no-mon-config", ...config],
    };
    const started = new ServerProcess(commands[name], { logPath: this.#directory.file("log", `${name}.stderr`) });
    this.#processes.set(name, started);
    return started;
  }

  async #ceph(...args: readonly string[]): Promise<void> {
    const command = ["ceph", "-c", this.#configPath, "--connect-timeout", "5", ...args];
    // The monitor needs a moment before it answers.
    const answered = async () => {
      await runProgram(command);
      return true;
    };
    await untilReady(this.#process("mon"), answered, { what: command.join(" "), deadlineMs: READY_DEADLINE_MS });
  }

  async #makeKeyring(): Promise<void> {
    const keyring = this.#directory.file("keyring");
    const tool = ["ceph-authtool", keyring, "--gen-key"];
    await runProgram([...tool, "--create-keyring", "-n", "mon.", "--cap", "mon", "allow *"]);
    const caps = ["mon", "osd", "mgr"].flatMap((kind) => ["--cap", kind, "allow *"]);
    for (const name of ["client.admin", "client.rgw.a", "osd.0"]) await runProgram([...tool, "-n", name, ...caps]);
  }
}

function keyArguments(accessKeyId: string, secretAccessKey: string): readonly string[] {
  return [`--access-key=${accessKeyId}`, `--secret-key=${secretAccessKey}`];
}

async function makeCertificate(keyPath: string, certificatePath: string): Promise<void> {
  await runProgram([
    ...["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
    ...["-days", "30", "-subj", "/CN=s3.localhost", "-keyout", keyPath, "-out", certificatePath],
    ...["-addext", "subjectAltName=DNS:localhost,DNS:s3.localhost,DNS:*.s3.localhost,IP:127.0.0.1"],
  ]);
}

/**
 * `paxos ...` and one placement group for each pool make it start in 2 s instead of 12; `rgw rados pool pg num min` is
 * for the lack of a manager daemon; without `tcp_nodelay` each GET takes 40 ms (Nagle's algorithm against delayed ACKs); the large `osd report timeout` for machines that stand still under other tests.
 */
function cephConfig(fsid: string, { file }: TemporaryDirectory, setup: RgwSetup): string {
  const { httpPort, httpsPort, monitorPort, store } = setup;
  const tls = `ssl_endpoint=127.0.0.1:${httpsPort} ssl_certificate=${file("tls.crt")} ssl_private_key=${file("tls.key")}`;
  return `[global]
fsid = ${fsid}
mon host = v2:127.0.0.1:${monitorPort}/0
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind msgr1 = false
auth allow insecure global id reclaim = true
mon allow pool size one = true
mon data avail crit = 1
mon max pg per osd = 1000
mon osd report timeout = 900
paxos propose interval = 0.05
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
osd objectstore = ${store === "memory" ? "memstore" : "bluestore"}
memstore device bytes = 4294967296
bluestore block size = 2147483648
osd data = ${file("osd")}
mon data = ${file("mon")}
admin socket = ${file("run")}/$name.asok
pid file = ${file("run")}/$name.pid
log file = ${file("log")}/$name.log
keyring = ${file("keyring")}
[client.rgw.a]
rgw frontends = beast tcp_nodelay=1 endpoint=127.0.0.1:${httpPort} ${tls}
rgw dns name = s3.localhost
rgw rados pool pg num min = 1
rgw rados pool autoscale bias = 1
rgw s3 auth use sts = true
rgw sts key = sixteen-letters!
debug rgw = 1/1
`;
}
