import type { Duplex } from "node:stream";
import type { Client } from "ssh2";
import { BakeliteError, systemErrorCode } from "../../util/errors.ts";
import { printable } from "../../util/printable.ts";
import { unreachable } from "./errors.ts";
import { knownHostsPaths, readKnownHosts, type VerifiedHostKey, verifyHostKey } from "./host-key.ts";
import { knownKeyTypes } from "./known-hosts.ts";
import { describeLogin, prepareLogin, type SftpAuthentication } from "./login.ts";
import { SftpSession } from "./session.ts";

/** A server and how to log in there. */
export interface SftpServerOptions {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly authentication: SftpAuthentication;
  /** undefined: the usual files of OpenSSH. */
  readonly knownHosts: string | undefined;
  /** Silence that ends a connection, and what a handshake may take. */
  readonly timeoutMs: number;
}

/** A connection that is logged in and has its one channel. */
export interface SftpConnection {
  readonly session: SftpSession;
  readonly hostKey: VerifiedHostKey;
  /** What the server calls itself: `OpenSSH_9.2p1`. */
  readonly serverVersion: string;
}

const KEEPALIVE_MS = 15_000;
const KEEPALIVES_WITHOUT_ANSWER = 3;

/** Best first. Not ssh-rsa, which signs with SHA-1; a host's RSA key serves with the two that are RFC 8332's. */
const HOST_KEY_ALGORITHMS = [
  "ssh-ed25519",
  "ecdsa-sha2-nistp256",
  "ecdsa-sha2-nistp384",
  "ecdsa-sha2-nistp521",
  "rsa-sha2-512",
  "rsa-sha2-256",
];

/** Connects, checks the server's key, logs in and starts SFTP. `onEnd` is called when that connection has ended. */
export async function connectSftp(
  options: SftpServerOptions,
  location: string,
  onEnd: () => void,
): Promise<SftpConnection> {
  // Loaded with the first connection: start-up does not wait for what most configurations never use.
  const ssh2 = await import("ssh2");
  const { host, port, user, timeoutMs } = options;
  const files = await readKnownHosts(options.knownHosts);
  const login = await prepareLogin(user, options.authentication, ssh2.utils.parseKey);
  const knownTypes = knownKeyTypes(files, options).map((type) => (type === "ssh-rsa" ? "rsa-sha2-512" : type));
  const client = new ssh2.Client();
  let hostKey: VerifiedHostKey | undefined;
  let refusal: unknown;
  let attemptCount = 0;
  let accepted: readonly string[] = [];
  const { promise: ready, resolve, reject } = Promise.withResolvers<void>();
  // It may fail before anybody waits for it, and after.
  ready.catch(() => {});
  let session: SftpSession | undefined;

  const fail = (error: Error & { readonly level?: string }) => {
    const reason =
      refusal ??
      connectionError(error, location, () => `${describeLogin(options.authentication)} was refused${offers(accepted)}`);
    reject(reason);
    session?.end("the connection broke", error);
    client.destroy();
  };
  client.on("error", fail);
  client.on("ready", () => resolve());
  client.on("close", () => {
    reject(refusal ?? unreachable(location, "the server closed the connection"));
    session?.end("the server closed the connection");
  });
  try {
    client.connect({
      host,
      port,
      username: user,
      readyTimeout: timeoutMs,
      keepaliveInterval: Math.min(KEEPALIVE_MS, timeoutMs),
      keepaliveCountMax: KEEPALIVES_WITHOUT_ANSWER,
      algorithms: {
        serverHostKey: HOST_KEY_ALGORITHMS.toSorted(
          (a, b) => Number(isOneOf(knownTypes, b)) - Number(isOneOf(knownTypes, a)),
        ),
      },
      hostVerifier: (key) => {
        try {
          const addTo = knownHostsPaths(options.knownHosts)[0] ?? "";
          hostKey = verifyHostKey(Buffer.from(key), { address: options, files, addTo, location });
          return true;
        } catch (error) {
          refusal = error;
          return false;
        }
      },
      // One method, once: more tries with the same key only fill the server's log and its list of those to ban.
      authHandler: (methodsLeft) => {
        accepted = methodsLeft ?? accepted;
        return attemptCount++ === 0 ? login : false;
      },
    });
    await ready;
    const channel = await openChannel(client, { location, timeoutMs });
    session = await SftpSession.start(channel, {
      location,
      timeoutMs,
      onEnd: () => {
        client.end();
        client.destroy();
        onEnd();
      },
    });
  } catch (error) {
    client.destroy();
    if (error instanceof BakeliteError) throw error;
    throw connectionError(error instanceof Error ? error : new Error(String(error)), location, () => "login failed");
  }
  if (hostKey === undefined) throw unreachable(location, "it showed no key");
  return { session, hostKey, serverVersion: printable(client._remoteVer ?? "unknown") };
}

function isOneOf(types: readonly string[], algorithm: string): boolean {
  return types.includes(algorithm) || (algorithm === "rsa-sha2-256" && types.includes("rsa-sha2-512"));
}

function offers(methods: readonly string[]): string {
  return methods.length === 0 ? "" : `; the server takes ${methods.map((method) => printable(method)).join(", ")}`;
}

async function openChannel(
  client: Client,
  { location, timeoutMs }: { readonly location: string; readonly timeoutMs: number },
): Promise<Duplex> {
  const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
  const timer = setTimeout(() => reject(unreachable(location, "no answer in time")), timeoutMs);
  client.on("close", () => reject(unreachable(location, "the server closed the connection")));
  client.subsys("sftp", (error, channel) => {
    if (error === undefined) resolve(channel);
    else
      reject(
        new BakeliteError("storage-denied", "cannot use the SFTP server: it offers no SFTP to this user", {
          subject: location,
          hint: "on the server, check `Subsystem sftp` in sshd_config, and a forced command in authorized_keys",
          cause: error,
        }),
      );
  });
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}

/** What a failed connection means. `refused` completes "cannot log in to the SFTP server: …". */
function connectionError(
  error: Error & { readonly level?: string },
  location: string,
  refused: () => string,
): BakeliteError {
  if (error.level === "client-authentication" || error.level === "agent")
    return new BakeliteError("storage-denied", `cannot log in to the SFTP server: ${refused()}`, {
      subject: location,
      hint: "check `user`, and that the server's authorized_keys has the public part of the key; its log says more (`journalctl -u ssh`)",
      cause: error,
    });
  switch (systemErrorCode(error)) {
    case "ECONNREFUSED":
      return unreachable(location, "nobody listens there", error);
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EAI_NODATA":
    case "EAI_NONAME":
    case "DNS_ENOTFOUND":
      return unreachable(location, "its name has no address", error);
  }
  if (error.level === "client-timeout") return unreachable(location, "no answer in time", error);
  return unreachable(location, "the connection failed", error);
}
