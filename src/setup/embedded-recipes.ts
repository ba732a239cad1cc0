import encryptedWormRecipe from "./recipes/encrypted-worm.recipe" with { type: "text" };
import encryptedWormTemplate from "./recipes/encrypted-worm.toml" with { type: "text" };
import localRecipe from "./recipes/local.recipe" with { type: "text" };
import localTemplate from "./recipes/local.toml" with { type: "text" };
import multiDbRecipe from "./recipes/multi-db.recipe" with { type: "text" };
import multiDbTemplate from "./recipes/multi-db.toml" with { type: "text" };
import s3Recipe from "./recipes/s3.recipe" with { type: "text" };
import s3Template from "./recipes/s3.toml" with { type: "text" };
import s3LocalRecipe from "./recipes/s3-local.recipe" with { type: "text" };
import s3LocalTemplate from "./recipes/s3-local.toml" with { type: "text" };
import sftpRecipe from "./recipes/sftp.recipe" with { type: "text" };
import sftpTemplate from "./recipes/sftp.toml" with { type: "text" };

/** The two files of a recipe. */
export interface RecipeTexts {
  readonly recipe: string;
  readonly template: string;
}

/** The recipes that the executable carries, by name, so that init works with no package around it. */
export const embeddedRecipes: ReadonlyMap<string, RecipeTexts> = new Map([
  ["local", { recipe: localRecipe, template: localTemplate }],
  ["s3", { recipe: s3Recipe, template: s3Template }],
  ["s3-local", { recipe: s3LocalRecipe, template: s3LocalTemplate }],
  ["encrypted-worm", { recipe: encryptedWormRecipe, template: encryptedWormTemplate }],
  ["multi-db", { recipe: multiDbRecipe, template: multiDbTemplate }],
  ["sftp", { recipe: sftpRecipe, template: sftpTemplate }],
]);
