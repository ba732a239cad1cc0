// The part of ssh2 that is used here. Its own declarations are for another version of Node's types than bun-types'.
declare module "ssh2" {
  import type { Duplex } from "node:stream";

  export interface ParsedKey {
    readonly type: string;
  }

  export interface AuthenticationAttempt {
    readonly type: "publickey" | "password" | "agent";
    readonly username: string;
    readonly key?: Uint8Array;
    readonly passphrase?: string;
    readonly password?: string;
    readonly agent?: string;
  }

  export interface ConnectOptions {
    readonly host: string;
    readonly port: number;
    readonly username: string;
    readonly readyTimeout: number;
    readonly keepaliveInterval: number;
    readonly keepaliveCountMax: number;
    readonly algorithms: { readonly serverHostKey: readonly string[] };
    readonly hostVerifier: (key: Buffer) => boolean;
    readonly authHandler: (
      methodsLeft: readonly string[] | null,
      partialSuccess: boolean | null,
    ) => AuthenticationAttempt | false;
  }

  export class Client {
    connect(options: ConnectOptions): this;
    subsys(name: string, done: (error: Error | undefined, channel: Duplex) => void): this;
    end(): this;
    destroy(): this;
    on(event: "ready" | "close" | "end", listener: () => void): this;
    on(event: "error", listener: (error: Error & { readonly level?: string }) => void): this;
    setNoDelay(noDelay?: boolean): this;
    readonly _remoteVer?: string;
  }

  export const utils: {
    parseKey(data: Uint8Array, passphrase?: string): ParsedKey | ParsedKey[] | Error;
  };
}
