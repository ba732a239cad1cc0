import { describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { inflateSync } from "node:zlib";
import { STATUS_PAGE_POLICY, statusPage } from "../../src/daemon/status-page.ts";
import { buildInfo } from "../../src/util/build-info.ts";
import { configPathIn, startDaemon } from "../oracle/daemon-process.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { daemonView, files, HOSTILE, type Scene, variedScenes, verified } from "./http-scene.ts";

function page(scenes: readonly Scene[]): string {
  return statusPage(daemonView(scenes), buildInfo);
}

/** The text between the tags, entities turned back. */
function textOf(markup: string): string {
  return markup
    .replace(/<style>.*?<\/style>/s, "")
    .replace(/<[^>]*>/g, " ")
    .replace(/&(lt|gt|quot|#39|amp);/g, (_, name: string) => ENTITIES[name] ?? "")
    .replace(/\s+/g, " ");
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", quot: '"', "#39": "'", amp: "&" };

describe("what the page says", () => {
  test("one database that is well is shown with all that there is to say, opened", () => {
    const markup = page([{ status: { database: "app" }, verify: verified(files.verify(7200)) }]);
    expect(markup).toContain("<title>1 ok - bakelite</title>");
    expect(markup).toContain("<details open>");
    const text = textOf(markup);
    expect(text).toContain("The database is being backed up");
    expect(text).toContain("newest restore point 3s ago , number 42");
    expect(text).toContain("verify clean (deep), 2h ago");
    expect(text).toContain("/var/backups/app (file) : in sync");
  });

  test("those that need a person come first, closed, each with its reasons", () => {
    const text = textOf(page(variedScenes()));
    expect(text).toContain("3 of 7 databases need attention");
    const order = ["later", "new", "shop", "accounts", "held", "orders"].map((name) => text.indexOf(` ${name} `));
    expect(order.every((at) => at > 0)).toBe(true);
    expect(order).toEqual([...order].sort((a, b) => a - b));
    expect(text).toContain(
      "backing off: stuck for 3h12m (214 failed attempts): cannot store the object: no space left",
    );
    expect(text).toContain("212 MiB, held by PID 4121 for 38m");
    expect(text).toContain(
      "max_total_size cannot be met at /var/backups/app : 5.59 GiB must stay, allowed are 5.00 GiB",
    );
    expect(page(variedScenes())).not.toContain("<details open>");
  });

  test("a replica that failed its last verify needs a person, although it is being replicated", () => {
    const text = textOf(page([{ verify: verified(files.verifyProblems(3600)) }]));
    expect(text).toContain("1 of 1 database needs attention");
    expect(text).toContain("a shallow verify found 2 problems 1h ago; `bakelite verify` tells which");
  });

  test("a daemon that follows nothing yet does not look well", () => {
    const markup = page([]);
    expect(textOf(markup)).toContain("No database is followed yet");
    expect(markup).toContain('class="verdict bad"');
  });
});

describe("names, paths and errors are somebody else's text", () => {
  test("none of it becomes a tag, an attribute or an entity, whatever it is", () => {
    const plainTags = tagsOf(page([scene("x")]));
    fc.assert(
      fc.property(fc.oneof(fc.constant(HOSTILE), fc.string({ unit: "binary" }), markupText()), (text) => {
        const markup = page([scene(text)]);
        expect(tagsOf(markup)).toEqual(plainTags);
        expect(/[\u202a-\u202e\u2066-\u2069]/.test(markup)).toBe(false);
      }),
    );
  });

  test("the page names nothing that would have to be fetched, and runs no script", () => {
    const markup = page(variedScenes());
    expect(markup.match(/\b(?:src|action|onerror|onload|onclick|style)=["']/g)).toBeNull();
    const links = [...markup.matchAll(/href="([^"]*)"/g)].map(([, href]) => href);
    expect(
      links.filter((href) => href !== "/metrics" && href !== "/healthz" && href?.startsWith("data:") !== true),
    ).toEqual([]);
    expect(markup).not.toMatch(/url\(|@import|<script/);
    expect(STATUS_PAGE_POLICY).toStartWith("default-src 'none'; style-src 'sha256-");
    expect(STATUS_PAGE_POLICY).not.toMatch(/unsafe|script-src/);
  });
});

function scene(text: string): Scene {
  return {
    status: {
      database: text,
      path: `/${text}`,
      state: "waiting",
      detail: text,
      last_error: { ...files.failure(1), message: text },
      unhealthy: { ...files.unhealthy(9, 2), last_error: { ...files.failure(1), message: text } },
      destinations: [files.destination({ location: text, type: text })],
    },
    verify: { outcome: "unreadable", reason: text },
  };
}

function markupText() {
  return fc
    .array(fc.constantFrom("<", ">", '"', "'", "&", "script", "</title>", "-->", "lt;", "\\", "`", " "))
    .map((p) => p.join(""));
}

/** Names of tags and of their attributes, in order. */
function tagsOf(markup: string): readonly string[] {
  return [
    ...markup.replace(/<style>.*?<\/style>/s, "").matchAll(/<(\/?[a-zA-Z!][^\s>]*)((?:\s+[\w-]+(?:="[^"]*")?)*)\s*>/g),
  ].map(
    ([, tag = "", attributes = ""]) =>
      `${tag} ${[...attributes.matchAll(/([\w-]+)(?:="[^"]*")?/g)].map(([, name]) => name).join(" ")}`,
  );
}

const chromium = Bun.which("chromium");
if (chromium === null) console.log("note: no browser has shown the status page: there is no chromium");

test.skipIf(chromium === null)(
  "a browser shows it in light and in dark, wide and narrow, under a policy that forbids every script and blocks nothing of it",
  async () => {
    await using directory = await temporaryDirectory("page");
    const databases = [
      {
        name: "app",
        path: directory.file(`<img src=x onerror=alert(1)>"'&.db`),
        replicas: [directory.file("replica")],
      },
    ];
    const given = { configPath: configPathIn(directory.path), databases, program: "executable" as const };
    await using daemon = await startDaemon({ ...given, extraArguments: ["--metrics-addr", "127.0.0.1:0"] });
    const url = String((await daemon.untilSaid("bakelite is running"))["metrics"]);
    const browse = async (...flags: readonly string[]) => {
      const common = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"];
      const quiet = ["--no-first-run", "--disable-background-networking", "--enable-logging=stderr"];
      const profile = `--user-data-dir=${directory.file("profile")}`;
      const child = Bun.spawn([`${chromium}`, ...common, ...quiet, profile, ...flags, `${url}/`], {
        stdout: "pipe",
        stderr: "pipe",
      });
      const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
      expect(stderr).not.toMatch(/Content Security Policy|Refused to/);
      return stdout;
    };
    expect((await fetch(url)).headers.get("content-security-policy")).toBe(STATUS_PAGE_POLICY);
    const dom = await browse("--dump-dom");
    expect(dom).toContain("1 of 1 database needs attention");
    expect(dom).toContain("&lt;img src=x onerror=alert(1)&gt;");
    expect(dom).not.toContain("<img");
    const looks = [
      {
        name: "light",
        flags: ["--window-size=1100,800", "--blink-settings=preferredColorScheme=1"],
        back: [246, 247, 249],
      },
      {
        name: "dark",
        flags: ["--window-size=1100,800", "--blink-settings=preferredColorScheme=0"],
        back: [18, 21, 26],
      },
      {
        name: "narrow",
        flags: ["--window-size=500,900", "--blink-settings=preferredColorScheme=1"],
        back: [246, 247, 249],
      },
    ];
    for (const { name, flags, back } of looks) {
      const shot = directory.file(`${name}.png`);
      await browse(...flags, `--screenshot=${shot}`);
      // The style that the policy names by its hash is the one that the page has: else the page would be white.
      expect({ name, back: firstPixel(await readFile(shot)) }).toEqual({ name, back });
    }
  },
  90_000,
);

/**
 * Red, green and blue of the upper left corner. Whatever filter the first row has, its first pixel stands there as it is,
 * since all its neighbours count as 0. Source: https://www.w3.org/TR/png-3/ section 9.
 */
function firstPixel(png: Buffer): readonly number[] {
  const data: Buffer[] = [];
  for (let at = 8; at < png.length; at += 12 + png.readUInt32BE(at))
    if (png.toString("latin1", at + 4, at + 8) === "IDAT")
      data.push(png.subarray(at + 8, at + 8 + png.readUInt32BE(at)));
  return [...inflateSync(Buffer.concat(data)).subarray(1, 4)];
}
