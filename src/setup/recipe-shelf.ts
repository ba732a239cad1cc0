import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { BakeliteError, systemErrorCode } from "../util/errors.ts";
import { didYouMean } from "../util/suggest.ts";
import { systemError } from "../util/system-error.ts";
import { embeddedRecipes, type RecipeTexts } from "./embedded-recipes.ts";
import { parseRecipe, type Recipe } from "./recipe.ts";

const FOLDERS = ["/etc/bakelite/recipes", "/usr/share/bakelite/recipes"];
const SUFFIX = ".recipe";
const MAX_BYTES = 256 * 1024;

/** Where each recipe is, by name; of several with one name the one that counts. */
export class RecipeShelf {
  readonly #places: ReadonlyMap<string, string | null>;

  private constructor(places: ReadonlyMap<string, string | null>) {
    this.#places = places;
  }

  /** Looks into `$BAKELITE_RECIPES_DIR`, the folders of the package, and at what the executable carries, in that order. */
  static async open(env: Readonly<Record<string, string | undefined>>): Promise<RecipeShelf> {
    const own = env["BAKELITE_RECIPES_DIR"] ?? "";
    const places = new Map<string, string | null>();
    for (const folder of [...(own === "" ? [] : [own]), ...FOLDERS])
      for (const file of await namesIn(folder, folder === own)) {
        const name = file.slice(0, -SUFFIX.length);
        if (file.endsWith(SUFFIX) && name !== "" && !places.has(name)) places.set(name, join(folder, file));
      }
    for (const name of embeddedRecipes.keys()) if (!places.has(name)) places.set(name, null);
    return new RecipeShelf(places);
  }

  get names(): readonly string[] {
    return [...this.#places.keys()].sort();
  }

  /** Throws `usage` when there is none of that name, `config-invalid` when it is broken. */
  async recipe(name: string): Promise<Recipe> {
    const place = this.#places.get(name);
    if (place === undefined)
      throw new BakeliteError("usage", `there is no recipe ${JSON.stringify(name)}${didYouMean(name, this.names)}`, {
        hint: `the recipes are ${this.names.join(", ")}`,
      });
    const embedded = embeddedRecipes.get(name);
    if (place !== null) return await readRecipe(place);
    if (embedded === undefined)
      throw new BakeliteError("internal", "a recipe is listed that is nowhere", { subject: name });
    return parseRecipe(name, embedded, "built in");
  }

  /** Every one that can be used, in the order in which they want to be offered, and what is wrong with the others. */
  async all(): Promise<{ readonly recipes: readonly Recipe[]; readonly problems: readonly BakeliteError[] }> {
    const recipes: Recipe[] = [];
    const problems: BakeliteError[] = [];
    for (const name of this.names)
      try {
        recipes.push(await this.recipe(name));
      } catch (error) {
        if (!(error instanceof BakeliteError)) throw error;
        problems.push(error);
      }
    return { recipes: recipes.toSorted((a, b) => a.order - b.order || (a.name < b.name ? -1 : 1)), problems };
  }
}

/** The recipe in a file `<name>.recipe`, with the `<name>.toml` beside it. Throws `usage` for another name, and as `parseRecipe`. */
export async function readRecipe(path: string): Promise<Recipe> {
  if (!path.endsWith(SUFFIX))
    throw new BakeliteError("usage", "a recipe's file is named <name>.recipe, with <name>.toml beside it", {
      subject: path,
    });
  const name = basename(path, SUFFIX);
  const texts: RecipeTexts = {
    recipe: await readSmall(path),
    template: await readSmall(join(dirname(path), `${name}.toml`)),
  };
  return parseRecipe(name, texts, path);
}

/** A folder that is not there has no recipes, unless somebody named it. */
async function namesIn(folder: string, isNamed: boolean): Promise<readonly string[]> {
  try {
    return (await readdir(folder)).sort();
  } catch (error) {
    if (!isNamed && ["ENOENT", "ENOTDIR"].includes(systemErrorCode(error) ?? "")) return [];
    throw systemError("cannot read the folder of recipes", folder, error);
  }
}

async function readSmall(path: string): Promise<string> {
  try {
    const info = await stat(path);
    if (!info.isFile() || info.size > MAX_BYTES)
      throw new BakeliteError("config-invalid", "the recipe's file is not a small regular file", { subject: path });
    return await readFile(path, "utf8");
  } catch (error) {
    throw systemError("cannot read the recipe", path, error);
  }
}
