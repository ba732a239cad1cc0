import type { Mount } from "./doctor-mounts.ts";
import type { ServiceUnit } from "./doctor-unit.ts";
import type { DaemonUser, People } from "./doctor-users.ts";

/** What every group of checks needs to know of the world. */
export interface Scene {
  /** Whom permissions are checked for; null: nobody knows who that is. */
  readonly user: DaemonUser | null;
  /** The service that runs the configuration, if there is one. */
  readonly unit: ServiceUnit | null;
  readonly people: People;
  readonly mounts: readonly Mount[];
  readonly nowMs: number;
  /** Of each look at something that may hang. */
  readonly deadlineMs: number;
  readonly signal: AbortSignal;
}
