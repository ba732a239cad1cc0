import type { Clock } from "../../../util/clock.ts";

/** What signs a request. `expiresMs` is Unix time; null for keys that do not expire, or that do not say when. */
export interface AwsCredentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken: string | undefined;
  readonly expiresMs: number | null;
}

/** Keys as the configuration gives them. */
export interface ExplicitKeys {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken: string | undefined;
}

export interface CredentialsOptions {
  /** Keys written in bakelite's configuration: they win over everything else. */
  readonly explicit: ExplicitKeys | undefined;
  /** Read in place of `~/.aws/credentials`. It must exist. */
  readonly credentialsFile: string | undefined;
  /** A profile of AWS's shared files. It must exist and hold credentials. */
  readonly profile: string | undefined;
  /** The region of the bucket, if it is known; it chooses where to ask for a role when nothing else does. */
  readonly region: string | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Where `.aws` is; by default $HOME, else what the system says. */
  readonly homeDirectory?: string;
  readonly clock?: Clock;
  /** From 0 up to but not including 1; `Math.random` by default. */
  readonly random?: () => number;
  /** Instead of `http://169.254.170.2`, where a relative address of container credentials belongs. For tests. */
  readonly containerOrigin?: string;
  /** Instead of 60 s for a `credential_process`. For tests. */
  readonly processTimeoutMs?: number;
}
