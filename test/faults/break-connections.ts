import type { Random } from "../support/random.ts";
import type { CutOptions, FaultProxy } from "./proxy.ts";

/**
 * So large a share of the connections of TCP through the proxy break from now on, after 4 KB to 16 MB, most in the middle of
 * something; a few stall instead. The greeting of SSH takes some 3 KB.
 */
export function breakConnections(proxy: FaultProxy, random: Random, share: number): void {
  for (let i = 0; i < 2000; i++)
    proxy.cutNext({
      direction: random.pick(["to-server", "to-client"] as const),
      afterBytes: random.chance(share) ? Math.floor(4000 * 4000 ** random.next()) : Number.POSITIVE_INFINITY,
      how: random.chance(0.02) ? "stall" : random.pick<CutOptions["how"]>(["reset", "end"]),
    });
}
