import { join } from "node:path";
import { placeholdersIn, type Recipe } from "./recipe.ts";

/** The answers by the question's name; what was not answered is missing or "". */
export type Answers = ReadonlyMap<string, string>;

export interface ChosenDatabase {
  readonly name: string;
  readonly path: string;
}

export interface Choices {
  readonly databases: readonly ChosenDatabase[];
  readonly answers: Answers;
  /** null: nothing is sealed. */
  readonly keyFile: string | null;
  readonly configDirectory: string;
  /** Where the credentials file goes; `configDirectory` by default. */
  readonly credentialsDirectory?: string;
}

export interface Rendered {
  /** The content of bakelite.toml. */
  readonly toml: string;
  /** The file for secrets beside it; null when there is nothing to write into one. */
  readonly credentials: { readonly path: string; readonly text: string } | null;
}

/** Where a recipe's secrets go: beside the configuration. */
const CREDENTIALS_NAME = "credentials";

/** The files that a recipe yields with these answers. Pure; a template that yields no valid configuration is found when that is checked. */
export function renderRecipe(recipe: Recipe, choices: Choices): Rendered {
  const { answers, keyFile, configDirectory } = choices;
  const given = (name: string) => (answers.get(name) ?? "") !== "";
  const hasCredentials = recipe.credentials !== null && given(recipe.credentials.needs);
  const path = join(choices.credentialsDirectory ?? configDirectory, CREDENTIALS_NAME);
  const values = new Map([
    ...answers,
    ["key_file", keyFile ?? ""],
    ["credentials_file", hasCredentials ? path : ""],
    ["config_dir", configDirectory],
  ]);
  const lines: string[] = [];
  const emit = (template: readonly string[], more: ReadonlyMap<string, string>) => {
    for (const line of template) {
      const filled = fill(line, (name) => more.get(name) ?? values.get(name) ?? "", tomlText);
      if (filled !== null) lines.push(filled);
    }
  };
  for (const { directive, body } of blocksOf(recipe.template)) {
    if (directive === "if encryption" && keyFile === null) continue;
    if (directive !== "each database") emit(body, new Map());
    else
      for (const { name, path: databasePath } of choices.databases)
        emit(
          body,
          new Map([
            ["db_name", name],
            ["db_path", databasePath],
          ]),
        );
  }
  const text = hasCredentials
    ? fill(
        recipe.credentials.text,
        (name) => values.get(name) ?? "",
        (value) => value,
      )
    : null;
  return {
    toml: `${lines.join("\n").trimEnd()}\n`,
    credentials: text === null ? null : { path, text: text.trimStart() },
  };
}

interface Block {
  readonly directive: string | null;
  readonly body: readonly string[];
}

/** The template cut at its `#@` lines. */
function blocksOf(template: string): readonly Block[] {
  const blocks: { directive: string | null; body: string[] }[] = [{ directive: null, body: [] }];
  for (const line of template.trimEnd().split("\n")) {
    const directive = /^\s*#@\s*(.*?)\s*$/.exec(line)?.[1];
    if (directive === undefined) blocks.at(-1)?.body.push(line);
    else blocks.push({ directive: directive === "end" ? null : directive, body: [] });
  }
  return blocks;
}

/** null: a placeholder in it has no value. Several lines are one text here. */
function fill(text: string, valueFor: (name: string) => string, quote: (value: string) => string): string | null {
  if (placeholdersIn(text).some((name) => valueFor(name) === "")) return null;
  return text.replace(/\{\{([^{}\n]*)\}\}/g, (_, name: string) => quote(valueFor(name.trim())));
}

/** As it stands between the quotes of a basic string; `${` is no reference to the environment. Source: https://toml.io/en/v1.0.0#string */
function tomlText(value: string): string {
  return JSON.stringify(value)
    .slice(1, -1)
    .replaceAll("\u007f", "\\u007F")
    .replaceAll("${", () => "$${");
}
