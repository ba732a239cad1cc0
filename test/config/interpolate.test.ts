import { expect, test } from "bun:test";
import { interpolate, interpolateDocument } from "../../src/config/interpolate.ts";
import { fc } from "../support/properties.ts";

function run(text: string, env: Record<string, string | undefined>) {
  const complaints: string[] = [];
  return { text: interpolate(text, env, (message) => complaints.push(message)), complaints };
}

test.each([
  ["plain", "plain"],
  ["${HOME}/x/${NAME}", "/root/x/app"],
  ["$${HOME}", "${HOME}"],
  ["$$${NAME}", "$${NAME}"],
  ["${EMPTY}", ""],
  ["${NESTED}", "${HOME}"],
  ["$NAME {HOME} $", "$NAME {HOME} $"],
])("%j becomes %j", (text, expected) => {
  const env = { HOME: "/root", NAME: "app", EMPTY: "", NESTED: "${HOME}" };
  expect(run(text, env)).toEqual({ text: expected, complaints: [] });
});

test("an unset variable and a `${` without a name are complained about, and stay", () => {
  expect(run("${GONE}", {})).toEqual({
    text: "${GONE}",
    complaints: ["needs the environment variable `GONE`, which is not set"],
  });
  expect(run("${constructor}", {}).complaints).toHaveLength(1);
  for (const text of ["${", "${}", "${1A}", "${A-B}", "${A:-b}"]) {
    expect(run(text, { A: "x" }).complaints).toEqual([
      "holds a `${` that is not `${NAME}`; write `$${` for a literal `${`",
    ]);
  }
});

test("any text is given back by escaping every `${` in it", () => {
  const part = fc.oneof(fc.string(), fc.constantFrom("${", "${A}", "$"));
  fc.assert(
    fc.property(
      fc.array(part).map((parts) => parts.join("")),
      (text) => {
        // A dollar before `${` cannot be told from an escape.
        fc.pre(!/\$\$\{/.test(text));
        expect(
          run(
            text.replaceAll("${", () => "$${"),
            {},
          ),
        ).toEqual({ text, complaints: [] });
      },
    ),
  );
});

test("strings are completed at any depth, keys and other values are not touched", () => {
  const date = new Date(0);
  const raw = { "${A}": "${A}", list: ["${A}", 1, true, { inner: "x${A}" }], date };
  const { document, problems } = interpolateDocument(raw, { A: "1" });
  expect(document).toEqual({ "${A}": "1", list: ["1", 1, true, { inner: "x1" }], date });
  expect(problems).toEqual([]);
});

test("a problem names the key and the variable, and has the path of the value", () => {
  expect(interpolateDocument({ list: [{ key: ["x", "${NO}"] }] }, {}).problems).toEqual([
    { path: ["list", 0, "key", 1], message: "`key[1]` needs the environment variable `NO`, which is not set" },
  ]);
});
