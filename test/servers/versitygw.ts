import { mkdir } from "node:fs/promises";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { findProgram, freePorts, runProgram, ServerProcess, untilAnswered } from "./programs.ts";
import type { S3Account } from "./s3-account.ts";

const READY_DEADLINE_MS = 20_000;

/** What has to be on the PATH: https://github.com/versity/versitygw is in no distribution yet, so no test needs it. */
export function missingForVersityGateway(): readonly string[] {
  return findProgram("versitygw") === null ? ["versitygw"] : [];
}

/** Starts an S3 server over a directory, with conditional puts and the checks of current AWS clients. */
export async function startVersityGateway(): Promise<VersityGateway> {
  const directory = await temporaryDirectory("versitygw");
  const [port = 0] = await freePorts(1);
  const server = new VersityGateway(directory, port);
  try {
    await server.create(port);
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return server;
}

export class VersityGateway implements AsyncDisposable {
  readonly account: S3Account;
  readonly #directory: TemporaryDirectory;
  #process: ServerProcess | null = null;
  #version = "";

  constructor(directory: TemporaryDirectory, port: number) {
    this.#directory = directory;
    this.account = {
      endpoint: `http://127.0.0.1:${port}`,
      region: "us-east-1",
      accessKeyId: "TESTKEY",
      secretAccessKey: "testsecret",
    };
  }

  get name(): string {
    return `Versity S3 Gateway ${this.#version}`;
  }

  async create(port: number): Promise<void> {
    const { file } = this.#directory;
    for (const name of ["data", "versions"]) await mkdir(file(name));
    this.#version = /Version\s*:\s*(\S+)/.exec(await runProgram(["versitygw", "--version"]))?.[1] ?? "";
    const { accessKeyId, secretAccessKey, endpoint } = this.account;
    const server = ["versitygw", "--access", accessKeyId, "--secret", secretAccessKey, "--port", `127.0.0.1:${port}`];
    const store = ["posix", "--versioning-dir", file("versions"), file("data")];
    this.#process = new ServerProcess([...server, "--quiet", ...store], { logPath: file("log") });
    // Nobody may list the buckets without a signature, and it says so.
    await untilAnswered(`${endpoint}/`, this.#process, { deadlineMs: READY_DEADLINE_MS, statuses: [403] });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process?.kill();
    await this.#directory[Symbol.asyncDispose]();
  }
}
