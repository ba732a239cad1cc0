import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { eventually } from "../support/eventually.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { encodeMark, greatestMark } from "./application-protocol.ts";
import { count, distribution, number, percentile } from "./figures.ts";
import { BENCH_NAMES, type BenchDocument, type BenchRun, intoPage } from "./report.ts";

/** That the benchmarks run and what they write can be used; what they measure is nobody's test. */

const RUN = resolve(import.meta.dir, "run.ts");
const PAGE = resolve(import.meta.dir, "../../docs/performance.md");
const TIMEOUT_MS = 60_000;

function bench(temporaryFolder: string, args: readonly string[]) {
  return Bun.spawn([process.execPath, RUN, "--quick", ...args], {
    env: { ...process.env, TMPDIR: temporaryFolder },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** Gone, or dead and not yet waited for by whoever has inherited it. */
function hasEnded(pid: number): boolean {
  try {
    return /\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return true;
  }
}

test(
  "a quick run measures the executable, tells of the machine, writes JSON and leaves nothing behind",
  async () => {
    await using directory = await temporaryDirectory("bench-out");
    await using folder = await temporaryDirectory("bench-tmp");
    const json = directory.file("bench.json");
    const child = bench(folder.path, ["catalog", "--json", json]);
    const [stdout, stderr, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    expect(status, stderr).toBe(0);
    expect(stdout).toContain("processor");
    expect(stdout).toContain("== catalog ==");
    const document = JSON.parse(await readFile(json, "utf8")) as BenchDocument;
    expect(document.quick).toBe(true);
    expect(document.machine.map(([what]) => what)).toContain("kernel");
    const [run, ...others] = document.runs;
    expect(others).toEqual([]);
    expect(run?.name).toBe("catalog");
    for (const { columns, rows } of run?.tables ?? [])
      expect(new Set(rows.map((row) => row.length))).toEqual(new Set([columns.length]));
    expect(run?.budgets.length).toBeGreaterThan(0);
    expect(await readdir(folder.path)).toEqual([]);
  },
  TIMEOUT_MS,
);

test(
  "a run that is interrupted ends its processes and leaves nothing behind",
  async () => {
    await using folder = await temporaryDirectory("bench-tmp");
    const child = bench(folder.path, ["idle"]);
    let told = "";
    const reading = (async () => {
      for await (const chunk of child.stderr) told += new TextDecoder().decode(chunk);
    })();
    const started = await eventually(
      async () => {
        const states = await Array.fromAsync(
          new Bun.Glob("*/idle/.bakelite/app.status.json").scan({ cwd: folder.path, dot: true }),
        );
        return states[0];
      },
      { what: "the daemon to run", deadlineMs: 30_000, explain: () => told },
    );
    const status = JSON.parse(await readFile(folder.file(started), "utf8")) as { process: { pid: number } };
    process.kill(child.pid, "SIGINT");
    expect(await child.exited).toBe(130);
    await reading;
    await eventually(() => hasEnded(status.process.pid), { what: "the daemon to be gone" });
    expect(await readdir(folder.path)).toEqual([]);
  },
  TIMEOUT_MS,
);

test("a benchmark that there is none of is refused with the names of those that there are", async () => {
  await using folder = await temporaryDirectory("bench-tmp");
  const child = bench(folder.path, ["speed"]);
  const [stderr, status] = await Promise.all([child.stderr.text(), child.exited]);
  expect(status).toBe(2);
  expect(stderr).toBe(`there is no benchmark \`speed\`; there are ${BENCH_NAMES.join(", ")}\n`);
});

describe("the page", () => {
  const run = (name: BenchRun["name"]): BenchRun => ({
    name,
    tables: [{ title: `what ${name} found`, columns: ["", "time"], rows: [["a | b", "1 s"]] }],
    budgets: [{ what: `time of ${name}`, limit: "2 s", measured: "3 s", met: false }],
    notes: [],
    startedAt: "2026-01-02T03:04:05.678Z",
    tookSeconds: 6,
    otherCpuShare: 0.07,
  });
  const document = { machine: [["cores", "2"]] as const, quick: false, runs: BENCH_NAMES.map(run) };

  test("has a place for everything that a whole run finds, and the same run twice changes it once", async () => {
    const once = intoPage(await readFile(PAGE, "utf8"), document);
    for (const name of BENCH_NAMES) expect(once).toContain(`**what ${name} found**`);
    expect(once).toContain("| cores | 2 |");
    expect(once).toContain("| a \\| b | 1 s |");
    expect(once).toContain("| rate | time of rate | 2 s | 3 s | **not met** |");
    expect(once).toContain(
      "Measured 2026-01-02 03:04 UTC in 6 s, while everything else on the machine used 7 % of one core.",
    );
    expect(intoPage(once, document)).toBe(once);
  });

  test("keeps the sections of what was not run", () => {
    const page = "<!-- bench:machine -->\n<!-- /bench:machine -->\n<!-- bench:lag -->\nold\n<!-- /bench:lag -->\n";
    expect(() => intoPage(page, document)).toThrow("the page has no place for rate");
    expect(intoPage(page, { ...document, runs: [] })).toContain("<!-- bench:lag -->\nold\n<!-- /bench:lag -->");
  });
});

describe("figures", () => {
  test("percentiles are by nearest rank, in any order of the values", () => {
    const hundred = Array.from({ length: 100 }, (_, i) => 100 - i);
    expect(distribution(hundred)).toEqual({ count: 100, p50: 50, p99: 99, p999: 100, max: 100 });
    expect(percentile([7], 0.5)).toBe(7);
    expect(distribution([]).p50).toBeNaN();
  });

  test("numbers have three digits and no exponent", () => {
    expect([0, 0.01234, 0.1, 1, 9.999, 99.96, 12345.6, Number.NaN].map(number)).toEqual([
      "0.00",
      "0.0123",
      "0.100",
      "1.00",
      "10.0",
      "100",
      "12,346",
      "–",
    ]);
    expect(count(1234)).toBe("1,234");
  });

  test("the greatest mark of a page is found wherever marks stand, and a cut one is none", () => {
    const page = Buffer.concat([Buffer.alloc(100), encodeMark(7), Buffer.alloc(3), encodeMark(300), encodeMark(9)]);
    expect(greatestMark(page)).toBe(300);
    expect(greatestMark(encodeMark(5).subarray(0, -1))).toBe(0);
    expect(greatestMark(new Uint8Array(0))).toBe(0);
  });
});
