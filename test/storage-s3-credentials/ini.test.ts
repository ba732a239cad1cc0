import { describe, expect, test } from "bun:test";
import { parseIni } from "../../src/storage/s3/credentials/ini.ts";
import { splitCommandLine } from "../../src/storage/s3/credentials/process.ts";
import { BakeliteError } from "../../src/util/errors.ts";
import { fc } from "../support/properties.ts";

const parsed = (text: string) =>
  Object.fromEntries([...parseIni(text, "file")].map(([name, section]) => [name, Object.fromEntries(section)]));

describe("a file of AWS's tools", () => {
  test("comments, spaces, CRLF and a byte order mark do no harm", () => {
    const text =
      "\uFEFF# head\r\n[default] ; x\r\nKey = a=b/c+d==\r\n\r\n;note\r\nother=1 # not part\r\nhash = a#b\r\n";
    expect(parsed(text)).toEqual({ default: { key: "a=b/c+d==", other: "1", hash: "a#b" } });
  });

  test("nested settings are passed over, and an indented line continues the value above it", () => {
    const text = "[profile a]\ns3 =\n  max = 5\n  x\nregion = r\n[b]\n  k = 1\n  l = 2\n    more\n";
    expect(parsed(text)).toEqual({ "profile a": { s3: "", region: "r" }, b: { k: "1", l: "2\nmore" } });
  });

  test("sections of one name are one section, and the later of two equal names wins", () => {
    expect(parsed("[a]\nk=1\nl=2\n[b]\n[a]\nk=3\n")).toEqual({ a: { k: "3", l: "2" }, b: {} });
  });

  test("quotes are part of a value, and __proto__ is a name like any other", () => {
    const file = parseIni('[__proto__]\n__proto__ = "x"\n', "file");
    expect(file.get("__proto__")?.get("__proto__")).toBe('"x"');
  });

  for (const [name, text] of [
    ["a section that does not end", "[a]\nk = 1\n[secret"],
    ["a line without an equals sign", "[a]\nk = 1\nsecret"],
    ["a property before any section", "\n\nk = secret"],
    ["a section without a name", "[a]\nk=1\n[ ]secret"],
  ] as const) {
    test(`${name} is refused with the number of its line and none of its text`, () => {
      const thrown = failureOf(() => parseIni(text, "/file"));
      expect(thrown.subject).toBe("/file line 3");
      expect(thrown.message + thrown.hint).not.toContain("secret");
    });
  }

  test("what is written is read back", () => {
    const word = fc.stringMatching(/^[A-Za-z0-9_+/.-]{1,20}$/);
    const value = fc.stringMatching(/^[A-Za-z0-9+/=][A-Za-z0-9+/= ]{0,30}[A-Za-z0-9+/=]$/);
    const file = fc.dictionary(
      word,
      fc.dictionary(
        word.map((name) => name.toLowerCase()),
        value,
      ),
    );
    fc.assert(
      fc.property(file, fc.constantFrom("\n", "\r\n", "\r"), (sections, lineEnd) => {
        const lines = Object.entries(sections).flatMap(([name, properties]) => [
          `[${name}]`,
          ...Object.entries(properties).map(([key, text]) => `${key} = ${text}`),
        ]);
        expect(parsed(lines.join(lineEnd))).toEqual(JSON.parse(JSON.stringify(sections)));
      }),
      { seed: 1, numRuns: 300 },
    );
  });

  test("hostile bytes give sections or one of our errors, in time that grows with their number", () => {
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 400 }),
      fc.string({ unit: fc.constantFrom(..."[]=#; \t\r\na\\\"'\0") }),
    );
    fc.assert(
      fc.property(bytes, (hostile) => {
        const text = typeof hostile === "string" ? hostile : Buffer.from(hostile).toString("utf8");
        try {
          parseIni(text, "file");
        } catch (error) {
          expect(error).toBeInstanceOf(BakeliteError);
        }
      }),
      { seed: 2, numRuns: 2000 },
    );
    for (const text of [
      "[a]\nk = 1\n".repeat(90_000),
      `[a]\nk=1\n${" x\n".repeat(300_000)}`,
      `[a]\nk=${" ".repeat(1e6)}x`,
    ]) {
      const startMs = performance.now();
      parseIni(text, "file");
      expect(performance.now() - startMs).toBeLessThan(3000);
    }
  });
});

describe("the line of a credential_process", () => {
  test("is split at white space, with quotes and backslashes, and nothing in it is expanded", () => {
    expect(splitCommandLine(`/bin/x  --a 'b c' "d \\"e\\" $HOME" f\\ g; ~ |`)).toEqual([
      "/bin/x",
      "--a",
      "b c",
      'd "e" $HOME',
      "f g;",
      "~",
      "|",
    ]);
    expect(splitCommandLine(`a "" ''`)).toEqual(["a", "", ""]);
    expect(splitCommandLine(`C:\\\\x "a\\b"`)).toEqual(["C:\\x", "a\\b"]);
  });

  test("has no words when a quote does not end", () => {
    expect(splitCommandLine(`a "b`)).toBeNull();
    expect(splitCommandLine(`a 'b\\'c'`)).toBeNull();
  });
});

function failureOf(call: () => unknown): BakeliteError {
  try {
    call();
  } catch (error) {
    if (error instanceof BakeliteError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}
