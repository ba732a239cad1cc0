import { RenewedSecret } from "../../http/renewed-secret.ts";
import { findCredentials } from "./chain.ts";
import { chosenProfile, findProfile, readSharedFiles, variable } from "./shared-files.ts";
import type { AwsCredentials, CredentialsOptions } from "./types.ts";

// The one place to import from: only the files of this folder know types.ts, which keeps imports from going round.
export type { AwsCredentials, CredentialsOptions, ExplicitKeys } from "./types.ts";

export interface CredentialsCallOptions {
  /** Aborted: the call rejects as a call of a backend does. */
  readonly signal?: AbortSignal;
}

export interface RefreshOptions extends CredentialsCallOptions {
  /** The credentials that were refused. When others are at hand by now, those are given without asking again. */
  readonly refused?: AwsCredentials;
}

export interface CredentialsProvider {
  /** Credentials to sign with now. Cheap: they are kept, and renewed before they expire. */
  get(options?: CredentialsCallOptions): Promise<AwsCredentials>;
  /**
   * After a destination refused them as expired or unknown: looks again, even if they should still be good. Gives what it
   * finds, the same or not; a caller tries once with it. Sources are asked at most every few seconds, however often this is
   * called.
   */
  refresh(options?: RefreshOptions): Promise<AwsCredentials>;
  /** Where they come from, for messages: `the environment`, `profile "backup" in /root/.aws/credentials`. */
  readonly source: string;
}

/** A provider that looks in AWS's usual order, as `findCredentials` says. Nothing is read or asked before the first call. */
export function openCredentials(options: CredentialsOptions): CredentialsProvider {
  return new CachedCredentials(options);
}

/**
 * AWS_REGION, AWS_DEFAULT_REGION, or the region of the profile in AWS's shared files, which are read as `readSharedFiles`
 * says; undefined when none says so. That a profile does not exist is for who needs its credentials to say.
 */
export async function regionFromEnvironment(options: CredentialsOptions): Promise<string | undefined> {
  const region = variable(options, "AWS_REGION") ?? variable(options, "AWS_DEFAULT_REGION");
  if (region !== undefined) return region;
  return findProfile(await readSharedFiles(options), chosenProfile(options).name)?.setting("region");
}

class CachedCredentials implements CredentialsProvider {
  readonly #secret: RenewedSecret<AwsCredentials>;

  constructor(options: CredentialsOptions) {
    const { clock, random } = options;
    this.#secret = new RenewedSecret({
      find: async (how) => {
        const { credentials: secret, source } = await findCredentials(options, how);
        return { secret, source };
      },
      isSame,
      what: "AWS credentials",
      clock,
      random,
    });
  }

  get source(): string {
    return this.#secret.source;
  }

  async get({ signal }: CredentialsCallOptions = {}): Promise<AwsCredentials> {
    return await this.#secret.get(signal);
  }

  async refresh(options: RefreshOptions = {}): Promise<AwsCredentials> {
    return await this.#secret.refresh(options);
  }
}

function isSame(one: AwsCredentials, other: AwsCredentials): boolean {
  const names = ["accessKeyId", "secretAccessKey", "sessionToken"] as const;
  return names.every((name) => one[name] === other[name]);
}
