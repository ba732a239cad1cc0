import type { TimeEpoch } from "../format/trailer.ts";
import type { WalPosition } from "../sqlite/wal.ts";

/** What is known of the newest state that a destination has confirmed. */
export interface StoredState {
  /** 32 hex digits. */
  readonly chain: string;
  readonly index: number;
  /** 64 hex digits. */
  readonly lineage: string;
  readonly pageSizeBytes: number;
  readonly sizePages: number;
  /** State digest, 32 hex digits; null while the chain's first full backup runs, which is when no ledger exists. */
  readonly digest: string | null;
  /** The first index from which nothing that this state's object read too early or too late matters. */
  readonly settled: number;
  readonly stampMs: number;
  readonly epochs: readonly TimeEpoch[];
  /** Where in the WAL the state ends; null when no WAL had been seen. */
  readonly position: WalPosition | null;
}
