import { type ContainerAddress, serviceUrl } from "./address.ts";

/**
 * What this process has found out about one container. Shared by all destinations there. Nothing of it is kept beyond the
 * process.
 */
export interface Place {
  /** The server's clock minus ours, in milliseconds; 0 until a request was refused for it. */
  clockOffsetMs: number;
  /** Some request was answered with success, so the container is there. */
  isSeen: boolean;
  /** An answer to a write named a version: the account keeps versions. */
  hasVersions: boolean;
}

const places = new Map<string, Place>();

/** The one of this process for that container. */
export function placeOf(address: ContainerAddress): Place {
  const name = `${serviceUrl(address)} ${address.container}`;
  const known = places.get(name) ?? newPlace();
  places.set(name, known);
  return known;
}

export function newPlace(): Place {
  return { clockOffsetMs: 0, isSeen: false, hasVersions: false };
}
