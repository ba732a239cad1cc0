import { BakeliteError } from "./errors.ts";

export interface ListenAddress {
  /** A host name or an IP address, IPv6 without brackets. */
  readonly host: string;
  readonly port: number;
}

/** What `parseListenAddress` accepts, for messages that list accepted values. */
export const LISTEN_ADDRESS_FORMS = 'an address and port such as "127.0.0.1:9090" or "[::1]:9090"';

/**
 * Parses `host:port` or `[ipv6]:port`. The host is required: listening on every interface must be asked for, by
 * `0.0.0.0` or `[::]`. Port 0 lets the system choose. Throws `usage` for anything else.
 */
export function parseListenAddress(text: string): ListenAddress {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || !(port <= 65_535)) {
    throw new BakeliteError("usage", `${JSON.stringify(text)} is not ${LISTEN_ADDRESS_FORMS}`);
  }
  return { host, port };
}

/** The text that `parseListenAddress` reads back as the same address. */
export function formatListenAddress(address: ListenAddress): string {
  return address.host.includes(":") ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}
