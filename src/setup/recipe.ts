import { z } from "zod";
import { parseToml } from "../config/toml.ts";
import { BakeliteError } from "../util/errors.ts";
import { didYouMean } from "../util/suggest.ts";

const QUESTION_KINDS = ["text", "number", "url", "directory", "file", "choice", "secret"] as const;

/** One question of a recipe, as recipes/README.md describes it. */
export interface Question {
  readonly name: string;
  readonly kind: (typeof QUESTION_KINDS)[number];
  readonly ask: string;
  readonly default: string | undefined;
  readonly example: string | undefined;
  readonly optional: boolean;
  readonly needs: string | undefined;
  readonly choices: readonly string[];
}

export interface Recipe {
  readonly name: string;
  readonly title: string;
  readonly description: string;
  readonly order: number;
  readonly databases: "one" | "several";
  readonly encryption: "ask" | "always" | "never";
  readonly questions: readonly Question[];
  readonly credentials: { readonly needs: string; readonly text: string } | null;
  /** The content of `<name>.toml`. */
  readonly template: string;
  /** Where it comes from: the path of `<name>.recipe`, or `built in`. */
  readonly source: string;
}

const placeholder = z.string().regex(/^[a-z][a-z0-9_]{0,39}$/, "must be small letters, digits and `_`");
const line = z
  .string()
  .min(1, "must not be empty")
  .regex(/^\P{Cc}*$/u, "must be one line without control characters");

const questionSchema = z
  .strictObject({
    name: placeholder,
    kind: z.enum(QUESTION_KINDS).default("text"),
    ask: line,
    default: line.optional(),
    example: line.optional(),
    optional: z.boolean().default(false),
    needs: placeholder.optional(),
    choices: z.array(line).default([]),
  })
  .refine(({ kind, choices }) => (kind === "choice") === choices.length > 0, {
    error: '`choices` goes with kind = "choice", and only with it',
  })
  .refine(
    ({ choices, default: proposed }) => choices.length === 0 || proposed === undefined || choices.includes(proposed),
    {
      error: "`default` is none of `choices`",
    },
  );

const recipeSchema = z.strictObject({
  title: line,
  description: line.optional(),
  order: z.number().int().default(100),
  databases: z.enum(["one", "several"]).default("one"),
  encryption: z.enum(["ask", "always", "never"]).default("ask"),
  question: z.array(questionSchema).default([]),
  credentials: z.strictObject({ needs: placeholder, text: z.string().min(1) }).optional(),
});

/** Filled by init itself, whatever the questions. */
const OWN_PLACEHOLDERS = ["db_name", "db_path", "key_file", "credentials_file", "config_dir"];

/**
 * Checks the two files of a recipe. Throws `config-invalid` that names `source` and what is wrong: a recipe may come from anywhere.
 * Pure.
 */
export function parseRecipe(
  name: string,
  texts: { readonly recipe: string; readonly template: string },
  source: string,
): Recipe {
  const parsed = parseToml(texts.recipe);
  if (parsed.kind === "broken")
    throw invalid(`${source}:${parsed.at.line}:${parsed.at.column}`, `not valid TOML: ${parsed.reason}`);
  const checked = recipeSchema.safeParse(parsed.document);
  if (!checked.success) {
    const [issue] = checked.error.issues;
    const where = issue === undefined || issue.path.length === 0 ? "" : `\`${issue.path.join(".")}\`: `;
    throw invalid(source, `${where}${issue?.message ?? "not a recipe"}`);
  }
  const { question, credentials, description = "", ...rest } = checked.data;
  const recipe: Recipe = {
    ...rest,
    name,
    description,
    questions: question.map((each) => ({ ...each, default: each.default, example: each.example, needs: each.needs })),
    credentials: credentials ?? null,
    template: texts.template,
    source,
  };
  const problem = findProblem(recipe);
  if (problem !== null) throw invalid(source, problem);
  return recipe;
}

/** What does not go together; null when all does. */
function findProblem({ questions, credentials, template }: Recipe): string | null {
  const known = new Set(OWN_PLACEHOLDERS);
  for (const { name, needs } of questions) {
    if (
      needs !== undefined &&
      !questions
        .slice(
          0,
          questions.findIndex((each) => each.name === name),
        )
        .some((each) => each.name === needs)
    )
      return `the question ${name} needs ${needs}, which is not asked before it`;
    if (known.has(name)) return `the name ${name} is taken twice`;
    known.add(name);
  }
  if (credentials !== null && !questions.some(({ name }) => name === credentials.needs))
    return `[credentials] needs ${credentials.needs}, which is no question`;
  for (const name of placeholdersIn(`${template}\n${credentials?.text ?? ""}`))
    if (!known.has(name)) return `{{${name}}} is filled by no question${didYouMean(name, known)}`;
  const secrets = questions.filter(({ kind }) => kind === "secret").map(({ name }) => name);
  const exposed = placeholdersIn(template).find((name) => secrets.includes(name));
  return exposed === undefined
    ? null
    : `the secret {{${exposed}}} may only stand in [credentials], not in the template`;
}

/** The names between double braces, in order. */
export function placeholdersIn(text: string): readonly string[] {
  return [...text.matchAll(/\{\{([^{}\n]*)\}\}/g)].map(([, name = ""]) => name.trim());
}

function invalid(where: string, problem: string): BakeliteError {
  return new BakeliteError("config-invalid", `the recipe cannot be used: ${problem}`, {
    subject: where,
    hint: "recipes/README.md says what a recipe may hold; remove the file to use the built-in one of that name",
  });
}
