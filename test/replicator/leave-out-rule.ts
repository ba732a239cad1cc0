import { basename } from "node:path";
import { plugin } from "bun";
import type { Change } from "./rules.ts";

/**
 * Loaded before a program (`bun --preload`): `src/replicator/` is then read with the changes that the environment names. Prints
 * `changed <file>` for each; a change that fits at no place, or at several, ends the program.
 */
const changes = JSON.parse(process.env["BAKELITE_TEST_CHANGES"] ?? "[]") as readonly Change[];

plugin({
  name: "leave out a rule",
  setup(build) {
    build.onLoad({ filter: /\/src\/replicator\/[a-z-]+\.ts$/ }, async ({ path }) => {
      let contents = await Bun.file(path).text();
      for (const change of changes.filter(({ file }) => file === basename(path))) {
        const places = [...contents.matchAll(patternOf(change.from))];
        if (places.length !== 1) {
          console.log(`does not fit: ${change.file} has ${places.length} places like ${JSON.stringify(change.from)}`);
          process.exit(2);
        }
        contents = contents.replace(patternOf(change.from), () => change.to);
        console.log(`changed ${change.file}`);
      }
      return { contents, loader: "ts" };
    });
  },
});

/** The text with any white space between its words and signs. */
function patternOf(text: string): RegExp {
  const parts = text.match(/\w+|[^\w\s]/g) ?? [];
  return new RegExp(parts.map((part) => part.replace(/[^\w]/g, "\\$&")).join("\\s*"), "g");
}
