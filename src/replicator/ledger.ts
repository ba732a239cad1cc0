import { rm } from "node:fs/promises";
import { lockPageNumber, PAGE_HASH_BYTES } from "../format/pages.ts";
import type { Replica } from "../replica/replica.ts";
import type { OpenedObject } from "../replica/trailers.ts";
import { LedgerFile, replaceLedger } from "../state/ledger-file.ts";
import type { Logger } from "../util/logger.ts";
import { digestOfLedger } from "./digest.ts";
import { stateAfter, walkLineage } from "./lineage-walk.ts";
import type { StoredState } from "./stored-state.ts";

export interface LedgerAt {
  readonly ledger: LedgerFile;
  /** The state that the ledger describes, with its digest. */
  readonly state: StoredState;
}

/**
 * Brings the ledger file at `path` to `target`: by replaying the page lists of the objects since its slot, or from the newest
 * full backup on when the file is absent, damaged, or of another chain. Null when the replica cannot give it. The
 * caller closes it.
 */
export async function openLedgerAt(
  path: string,
  replica: Replica,
  target: StoredState,
  log: Logger,
): Promise<LedgerAt | null> {
  const ledger = await LedgerFile.open(path, { create: true });
  try {
    const slot = ledger.slot;
    if (slot?.complete === true && slot.chain === target.chain && slot.pageSizeBytes === target.pageSizeBytes) {
      if (await replay(ledger, replica, slot, slot.sizePages, target)) return await settle(ledger, target);
      log.info("the page ledger cannot be brought up to date by replay", { slot: slot.index, wanted: target.index });
    }
  } catch (error) {
    await ledger.close();
    throw error;
  }
  await ledger.close();
  return await rebuildLedger(path, replica, target, log);
}

/** Writes the page lists of every object after `from` up to `target`; false, with the entries in any state, if one is missing. */
export async function replay(
  ledger: LedgerFile,
  replica: Replica,
  from: { readonly index: number; readonly lineage: string; readonly chain: string },
  fromSizePages: number,
  target: StoredState,
): Promise<boolean> {
  if (from.index === target.index) return from.lineage === target.lineage;
  if (from.index > target.index) return false;
  let sizePages = fromSizePages;
  for await (const opened of walkLineage(replica, from)) {
    const state = stateAfter(opened);
    if (state.index > target.index) return false;
    await applyPageLists(ledger, opened);
    if (state.sizePages < sizePages) ledger.truncate(state.sizePages);
    sizePages = state.sizePages;
    if (state.index === target.index) return state.lineage === target.lineage;
  }
  return false;
}

/** The entries of every page in the object. Absolute, so they can be applied again. */
export async function applyPageLists(ledger: LedgerFile, { reader }: OpenedObject): Promise<void> {
  for (let i = 0; i < reader.trailer.indexChunks.length; i++) {
    const { pageNumbers, hashes } = await reader.indexChunk(i);
    ledger.write(pageNumbers, hashes);
  }
}

async function rebuildLedger(
  path: string,
  replica: Replica,
  target: StoredState,
  log: Logger,
): Promise<LedgerAt | null> {
  for (const full of replica.catalog.fulls.toReversed()) {
    if (full.first > target.index) continue;
    const opened = await replica.trailers.open(full);
    if (opened === null || opened.reader.header.chain !== target.chain) continue;
    // Pages that were read too late belong to a state after the target: a ledger of them would claim what is not stored.
    if (opened.reader.trailer.settled > target.index) continue;
    log.info("rebuilding the page ledger from the replica", { fullBackup: full.first, index: target.index });
    const newPath = `${path}.new`;
    await rm(newPath, { force: true });
    const ledger = await LedgerFile.open(newPath, { fresh: true });
    try {
      await applyPageLists(ledger, opened);
      const start = { ...stateAfter(opened), index: full.first };
      if (await replay(ledger, replica, start, start.sizePages, target)) {
        const settled = await settle(ledger, target);
        await replaceLedger(path, newPath);
        return settled;
      }
      await ledger.close();
    } catch (error) {
      await ledger.close();
      throw error;
    }
  }
  return null;
}

async function settle(ledger: LedgerFile, target: StoredState): Promise<LedgerAt> {
  ledger.truncate(target.sizePages);
  const digest = digestOfLedger(ledger, target.sizePages, target.pageSizeBytes);
  const state = { ...target, digest };
  await commitLedger(ledger, state);
  return { ledger, state };
}

/** Makes the ledger durable as that of `state`. */
export async function commitLedger(ledger: LedgerFile, state: StoredState): Promise<void> {
  await ledger.commitSlot({
    index: state.index,
    lineage: state.lineage,
    chain: state.chain,
    sizePages: state.sizePages,
    pageSizeBytes: state.pageSizeBytes,
    digest: state.digest,
    complete: true,
  });
}

/** The pages whose hash is not the ledger's, or that state `state` does not have; the lock page is left out. */
export function* pagesThatDiffer(
  ledger: LedgerFile,
  pageNumbers: Uint32Array,
  hashes: Uint8Array,
  state: StoredState,
): Generator<number> {
  const known = ledger.read(pageNumbers);
  const lockPage = lockPageNumber(state.pageSizeBytes);
  for (const [i, page] of pageNumbers.entries()) {
    if (page === lockPage) continue;
    const offset = i * PAGE_HASH_BYTES;
    const same = Buffer.compare(
      hashes.subarray(offset, offset + PAGE_HASH_BYTES),
      known.subarray(offset, offset + PAGE_HASH_BYTES),
    );
    if (page > state.sizePages || same !== 0) yield page;
  }
}
