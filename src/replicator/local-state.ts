import { type Cursor, writeCursor } from "../state/cursor.ts";
import type { MachineIdentity } from "../state/machine.ts";
import type { FullBackupRecord } from "./adopt.ts";
import type { StoredState } from "./stored-state.ts";

export interface LocalStateInputs {
  readonly path: string;
  /** The cursor that was found, or null. */
  readonly found: Cursor | null;
  readonly newSession: string;
  readonly machine: MachineIdentity;
  readonly file: { readonly device: bigint; readonly inode: bigint };
  /** What `destinations` says in the cursor. */
  readonly positions: () => Cursor["destinations"];
  readonly keyFingerprint: string | null;
}

const MAX_PAST_SESSIONS = 16;

/**
 * The cursor: what this host remembers of the replica. It may lag behind the replica, never lead, so it is written before a
 * put (naming the attempt) and some time after one.
 */
export class LocalState {
  readonly #inputs: LocalStateInputs;
  readonly session: string;
  #stored: StoredState | null = null;
  #fullBackup: FullBackupRecord | null = null;
  #attempted: Cursor["attempted"] = null;
  #dirty = false;
  #writing: Promise<void> = Promise.resolve();

  constructor(inputs: LocalStateInputs) {
    this.#inputs = inputs;
    this.session = inputs.found?.session ?? inputs.newSession;
  }

  get fullBackup(): FullBackupRecord | null {
    return this.#fullBackup;
  }

  get isDirty(): boolean {
    return this.#dirty;
  }

  stored(state: StoredState): void {
    this.#stored = state;
    this.#dirty = true;
  }

  tookFullBackup(record: FullBackupRecord | null): void {
    this.#fullBackup = record;
    this.#dirty = true;
  }

  /** Durable before a put, so that what it stores is known as ours after a crash. */
  async attempt(attempted: NonNullable<Cursor["attempted"]>): Promise<void> {
    this.#attempted = attempted;
    await this.write();
  }

  /** Writes one after the other; each write holds what is known when it begins. */
  async write(): Promise<void> {
    const next = this.#writing.then(async () => {
      const cursor = this.#cursor();
      if (cursor === null) return;
      this.#dirty = false;
      try {
        await writeCursor(this.#inputs.path, cursor);
      } catch (error) {
        this.#dirty = true;
        throw error;
      }
    });
    this.#writing = next.catch(() => {});
    await next;
  }

  #cursor(): Cursor | null {
    const state = this.#stored;
    if (state === null) return null;
    const { found, machine, file, positions, keyFingerprint } = this.#inputs;
    return {
      session: this.session,
      pastSessions: (found?.pastSessions ?? []).slice(-MAX_PAST_SESSIONS),
      machineId: machine.machineId,
      bootId: machine.bootId,
      device: String(file.device),
      inode: String(file.inode),
      chain: state.chain,
      index: state.index,
      lineage: state.lineage,
      sizePages: state.sizePages,
      pageSizeBytes: state.pageSizeBytes,
      position: state.position,
      settled: state.settled,
      stampMs: state.stampMs,
      epochs: [...state.epochs],
      attempted: this.#attempted,
      destinations: positions(),
      fullBackup: this.#fullBackup,
      keyFingerprint,
    };
  }
}
