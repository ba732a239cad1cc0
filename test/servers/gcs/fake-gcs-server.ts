import { type TemporaryDirectory, temporaryDirectory } from "../../support/temporary-directory.ts";
import { findProgram, freePorts, ServerProcess, untilAnswered } from "../programs.ts";

const READY_DEADLINE_MS = 20_000;

/** What has to be on the PATH: https://github.com/fsouza/fake-gcs-server is in no distribution, so no test needs it. */
export function missingForFakeGcsServer(): readonly string[] {
  return findProgram("fake-gcs-server") === null ? ["fake-gcs-server"] : [];
}

/** Somebody else's reading of the JSON API: it looks at no login, and is laxer than Google in much; and it is not ours. */
export class FakeGcsServer implements AsyncDisposable {
  readonly name = "fake-gcs-server";
  readonly port: number;
  readonly #process: ServerProcess;
  readonly #directory: TemporaryDirectory;

  private constructor(port: number, process: ServerProcess, directory: TemporaryDirectory) {
    this.port = port;
    this.#process = process;
    this.#directory = directory;
  }

  static async start(): Promise<FakeGcsServer> {
    const directory = await temporaryDirectory("fake-gcs-server");
    const [port = 0] = await freePorts(1);
    const command = ["fake-gcs-server", "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"];
    const server = new ServerProcess(
      [...command, "-port", String(port), "-public-host", `127.0.0.1:${port}`, "-log-level", "error"],
      { logPath: directory.file("log") },
    );
    const started = new FakeGcsServer(port, server, directory);
    try {
      await untilAnswered(`${started.url}/storage/v1/b?project=p`, server, { deadlineMs: READY_DEADLINE_MS });
    } catch (error) {
      await started[Symbol.asyncDispose]();
      throw error;
    }
    return started;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async createBucket(name: string): Promise<void> {
    const answer = await fetch(`${this.url}/storage/v1/b?project=p`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ name }),
    });
    if (!answer.ok) throw new Error(`fake-gcs-server makes no bucket: ${await answer.text()}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.kill();
    await this.#directory[Symbol.asyncDispose]();
  }
}
