import { Semaphore } from "../../util/semaphore.ts";
import { connectSftp, type SftpConnection, type SftpServerOptions } from "./connect.ts";

/** How long a connection without requests is kept. */
const IDLE_MS = 60_000;

/** One at a time for each server: sshd drops connections that are not logged in yet when there are too many (MaxStartups). */
const handshakes = new Map<string, Semaphore>();
const shared = new Map<string, SharedConnection>();

/** The connection that all destinations of this process with the same server and login have in common. */
export function sharedConnection(options: SftpServerOptions, location: string): SharedConnection {
  const { host, port, user, authentication, knownHosts, timeoutMs } = options;
  const key = JSON.stringify([host, port, user, authentication, knownHosts, timeoutMs]);
  const found = shared.get(key);
  if (found !== undefined) return found;
  const made = new SharedConnection(options, location);
  shared.set(key, made);
  return made;
}

/** Connects when needed, again after it broke, and disconnects after a minute without use. */
export class SharedConnection {
  readonly #options: SftpServerOptions;
  readonly #location: string;
  #current: Promise<SftpConnection> | null = null;
  #idleTimer: ReturnType<typeof setTimeout> | undefined;
  #holderCount = 0;

  constructor(options: SftpServerOptions, location: string) {
    this.#options = options;
    this.#location = location;
  }

  /** A connection that was open a moment ago. Those who wait for the same handshake share its failure. */
  async get(): Promise<SftpConnection> {
    this.#postponeIdle();
    if (this.#current !== null) {
      const connection = await this.#current;
      if (connection.session.isOpen) return connection;
    }
    if (this.#current === null) {
      const connecting = this.#connect();
      this.#current = connecting;
      connecting.catch(() => {
        if (this.#current === connecting) this.#current = null;
      });
    }
    return await this.#current;
  }

  /** Until it is disposed, the connection counts as used. */
  hold(): Disposable {
    this.#holderCount++;
    return {
      [Symbol.dispose]: () => {
        this.#holderCount--;
        this.#postponeIdle();
      },
    };
  }

  async #connect(): Promise<SftpConnection> {
    const server = `${this.#options.host}:${this.#options.port}`;
    const semaphore = handshakes.get(server) ?? new Semaphore(1);
    handshakes.set(server, semaphore);
    using _turn = await semaphore.acquire();
    return await connectSftp(this.#options, this.#location, () => {
      this.#current = null;
      clearTimeout(this.#idleTimer);
    });
  }

  #postponeIdle(): void {
    clearTimeout(this.#idleTimer);
    this.#idleTimer = setTimeout(async () => {
      const connection = await this.#current?.catch(() => null);
      if (connection === null || connection === undefined) return;
      if (this.#holderCount > 0 || connection.session.pendingCount > 0) this.#postponeIdle();
      else connection.session.end("it was not needed any more");
    }, IDLE_MS);
    this.#idleTimer.unref();
  }
}
