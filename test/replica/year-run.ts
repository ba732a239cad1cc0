// A whole year of a commit every second by day, under the default policy, on paper: `npm run soak:year -- [--days 365]`. Every day the
// number of objects is compared with what the policy allows, and moments of all ages with what it promises. Takes an hour or so,
// which is why `npm test` has two such days and a year of a tenth of it. Ends with 1 at the first broken promise.
import { parseArgs } from "node:util";
import { PaperReplica } from "./paper-replica.ts";
import { assertGranularity, counts, DEFAULT, MINUTE_MS, SECOND_MS, START_MS, workingDay } from "./paper-year.ts";

const { values: flags } = parseArgs({ options: { days: { type: "string", default: "365" } } });
const days = Number(flags.days);
if (!Number.isInteger(days) || days < 1) throw new Error("--days is a whole number");

const replica = new PaperReplica(START_MS);
replica.storeFull(replica.beginChain().index);
const startedMs = performance.now();
let most = 0;
for (let day = 0; day < days; day++) {
  workingDay(replica, DEFAULT, { spacingMs: SECOND_MS, upkeepMs: 30 * MINUTE_MS });
  const [fulls = 0, originals = 0, halfMinutes = 0, fiveMinutes = 0, hours = 0] = counts(replica);
  // What came within the hour, the pass before the last, and the window that is being filled; a day of half minutes, a week of
  // five minutes, and an hour's window each for the rest; what full backups cut counts twice.
  const allowed = [day + 2, 3600 + 2 * 1800 + 300, 1200 + 200, Math.min(day + 1, 8) * 122, (day + 1) * 12];
  for (const [i, count] of [fulls, originals, halfMinutes, fiveMinutes, hours].entries())
    if (count > (allowed[i] ?? 0)) throw new Error(`day ${day + 1}: ${count} objects where ${allowed[i]} are allowed`);
  assertGranularity(replica, DEFAULT, day);
  most = Math.max(most, replica.objects.size);
  const minutes = ((performance.now() - startedMs) / 60_000).toFixed(1);
  console.log(
    `day ${day + 1}: ${replica.states.size} commits in ${replica.objects.size} objects (${fulls} full, ${originals}/${halfMinutes}/${fiveMinutes}/${hours}), ${minutes} min`,
  );
}
console.log(`${days} days, ${replica.states.size} commits: at most ${most} objects, every promise kept`);
