import { type LaidState, layPages } from "../../src/replica/lay-pages.ts";
import type { RestorePlan } from "../../src/replica/plan.ts";
import type { Replica } from "../../src/replica/replica.ts";

/** Lays a plan's pages into memory. A page that comes twice, or lies outside, throws. */
export async function layInMemory(
  replica: Replica,
  plan: RestorePlan,
): Promise<{ readonly file: Uint8Array; readonly laid: LaidState }> {
  const file = new Uint8Array(plan.sizePages * plan.pageSizeBytes);
  const seen = new Set<number>();
  const sink = {
    async write(firstPage: number, images: Uint8Array) {
      for (let i = 0; i < images.length / plan.pageSizeBytes; i++) {
        if (seen.has(firstPage + i)) throw new Error(`page ${firstPage + i} came twice`);
        seen.add(firstPage + i);
      }
      file.set(images, (firstPage - 1) * plan.pageSizeBytes);
    },
  };
  return { file, laid: await layPages(replica, plan, { sink }) };
}
