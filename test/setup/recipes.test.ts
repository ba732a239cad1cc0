import { expect, test } from "bun:test";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { parseConfig } from "../../src/config/load.ts";
import { parseRecipe, type Recipe } from "../../src/setup/recipe.ts";
import { renderRecipe } from "../../src/setup/recipe-render.ts";
import { RecipeShelf, readRecipe } from "../../src/setup/recipe-shelf.ts";
import { fc } from "../support/properties.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const BUILT_IN = ["encrypted-worm", "local", "multi-db", "s3", "s3-local", "sftp"];
const REAL_PLACES = { BAKELITE_RECIPES_DIR: "" };

/** An answer to every question, as `--yes` has it, or an example. */
function exampleAnswers({ questions }: Recipe): Map<string, string> {
  return new Map(questions.map(({ name, default: proposed, example }) => [name, proposed ?? example ?? "some-text"]));
}

const choices = (answers: ReadonlyMap<string, string>) => ({
  databases: [{ name: "app", path: "/var/lib/app/app.db" }],
  answers,
  keyFile: "/etc/bakelite/key.txt",
  configDirectory: "/etc/bakelite",
});

test("every built-in recipe yields a valid configuration, sealed and plain, for one database and for several", async () => {
  const shelf = await RecipeShelf.open(REAL_PLACES);
  expect(shelf.names).toEqual(BUILT_IN);
  const { recipes, problems } = await shelf.all();
  expect(problems).toEqual([]);
  for (const recipe of recipes)
    for (const keyFile of recipe.encryption === "always" ? ["/k"] : ["/k", null]) {
      const databases = ["a", "b"].map((name) => ({ name, path: `/var/lib/${name}.db` }));
      const { toml } = renderRecipe(recipe, { ...choices(exampleAnswers(recipe)), databases, keyFile });
      const config = parseConfig(toml, { sourcePath: "/etc/bakelite/bakelite.toml", env: {} });
      expect(config.databases.map(({ name, path }) => ({ name, path }))).toEqual(databases);
      for (const { encryption } of config.databases)
        expect(encryption.mode).toBe(keyFile === null ? "none" : "key-file");
      expect(toml).not.toContain("{{");
      expect(toml).not.toContain("#@");
    }
});

test("secrets go into the credentials file, and only when they were given", async () => {
  const recipe = await (await RecipeShelf.open(REAL_PLACES)).recipe("s3");
  const answers = exampleAnswers(recipe).set("access_key_id", "AKIA1").set("secret_access_key", "very secret");
  const given = renderRecipe(recipe, choices(answers));
  expect(given.toml).not.toContain("very secret");
  expect(given.toml).toContain('credentials_file = "/etc/bakelite/credentials"');
  expect(given.credentials).toEqual({
    path: "/etc/bakelite/credentials",
    text: "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = very secret\n",
  });
  const none = renderRecipe(recipe, choices(answers.set("access_key_id", "").set("secret_access_key", "")));
  expect(none.credentials).toBeNull();
  expect(none.toml).not.toContain("credentials_file");
});

test("a line whose placeholder has no answer is left out", async () => {
  const recipe = await (await RecipeShelf.open(REAL_PLACES)).recipe("s3");
  const { toml } = renderRecipe(recipe, choices(exampleAnswers(recipe).set("endpoint", "").set("prefix", "")));
  expect(toml).not.toContain("endpoint");
  expect(toml).not.toContain("prefix");
});

test("any path and any answer comes out of the configuration as it went in", async () => {
  const recipe = await (await RecipeShelf.open(REAL_PLACES)).recipe("local");
  const part = fc
    .string({ unit: "grapheme", minLength: 1, maxLength: 20 })
    .filter((s) => !/[/\p{Cc}]|^\.{1,2}$/u.test(s));
  const path = fc.array(part, { minLength: 1, maxLength: 4 }).map((parts) => `/${parts.join("/")}`);
  fc.assert(
    fc.property(path, path, path, (databasePath, directory, keyFile) => {
      const answers = new Map([["backup_dir", directory]]);
      const { toml } = renderRecipe(recipe, {
        ...choices(answers),
        databases: [{ name: "app", path: databasePath }],
        keyFile,
      });
      const [database] = parseConfig(toml, { sourcePath: "/c", env: {} }).databases;
      expect(database?.path).toBe(databasePath);
      expect(database?.encryption).toMatchObject({ keyFile });
      expect(database?.backends[0]).toMatchObject({ path: directory });
    }),
    { examples: [["/${HOME}/$${x}", '/a "b" \\c', "/{{backup_dir}}"]] },
  );
});

const TITLE = 'title = "mine"\n';
const QUESTION = '[[question]]\nname = "a"\nask = "A?"\n';

test.each([
  ["", "title"],
  [`${TITLE}colour = 1`, "colour"],
  ["title = 1", "title"],
  ['title = "a\\u001b[2J"', "control characters"],
  [`${TITLE}[[question]]\nname = "A"\nask = "?"`, "small letters"],
  [`${TITLE}${QUESTION}kind = "colour"`, "kind"],
  [`${TITLE}${QUESTION}needs = "b"`, "not asked before it"],
  [`${TITLE}${QUESTION}needs = "a"`, "not asked before it"],
  [`${TITLE}${QUESTION}${QUESTION}`, "taken twice"],
  [`${TITLE}[[question]]\nname = "db_path"\nask = "?"`, "taken twice"],
  [`${TITLE}${QUESTION}kind = "choice"`, "choices"],
  [`${TITLE}${QUESTION}kind = "choice"\nchoices = ["x"]\ndefault = "y"`, "none of"],
  [`${TITLE}[credentials]\nneeds = "z"\ntext = "x"`, "no question"],
  ["title = ", "not valid TOML"],
])("the recipe %j is refused with what is wrong", (recipe, complaint) => {
  expect(() => parseRecipe("mine", { recipe, template: "" }, "/x/mine.recipe")).toThrow(complaint);
});

test("a placeholder that no question fills is refused with a suggestion, and a secret in the template always", () => {
  const texts = (template: string) => ({
    recipe: `${TITLE}${QUESTION.replace('"a"', '"bucket"')}kind = "secret"`,
    template,
  });
  expect(() => parseRecipe("mine", texts('x = "{{buckt}}"'), "s")).toThrow("did you mean `bucket`");
  expect(() => parseRecipe("mine", texts('x = "{{bucket}}"'), "s")).toThrow("may only stand in [credentials]");
});

test("$BAKELITE_RECIPES_DIR counts before what is built in, and a folder that is named must be there", async () => {
  await using directory = await temporaryDirectory("recipes");
  writeFileSync(directory.file("local.recipe"), 'title = "ours"\n');
  writeFileSync(directory.file("local.toml"), "# ours\n");
  writeFileSync(directory.file("broken.recipe"), "title = ");
  writeFileSync(directory.file("broken.toml"), "");
  const shelf = await RecipeShelf.open({ BAKELITE_RECIPES_DIR: directory.path });
  expect(await shelf.recipe("local")).toMatchObject({ title: "ours", source: directory.file("local.recipe") });
  const { recipes, problems } = await shelf.all();
  expect(recipes.map(({ name }) => name)).not.toContain("broken");
  expect(problems.map(({ subject }) => subject)).toEqual([`${directory.file("broken.recipe")}:1:9`]);
  await expect(RecipeShelf.open({ BAKELITE_RECIPES_DIR: directory.file("none") })).rejects.toMatchObject({
    code: "not-found",
    subject: directory.file("none"),
  });
  await expect(shelf.recipe("lokal")).rejects.toThrow("did you mean `local`");
});

test("a recipe's file from anywhere is read with the template beside it, and nothing else passes for one", async () => {
  await using directory = await temporaryDirectory("recipes");
  writeFileSync(directory.file("mine.recipe"), TITLE);
  await expect(readRecipe(directory.file("mine.recipe"))).rejects.toMatchObject({
    subject: directory.file("mine.toml"),
  });
  writeFileSync(directory.file("mine.toml"), "# mine\n");
  expect(await readRecipe(directory.file("mine.recipe"))).toMatchObject({ name: "mine", template: "# mine\n" });
  await expect(readRecipe(directory.file("mine.toml"))).rejects.toMatchObject({ code: "usage" });
  mkdirSync(directory.file("folder.recipe"));
  await expect(readRecipe(directory.file("folder.recipe"))).rejects.toMatchObject({ code: "config-invalid" });
  chmodSync(directory.file("mine.toml"), 0o600);
});
