import { dirname, join, resolve } from "node:path";
import { databaseName } from "../config/values.ts";
import { formatByteSize } from "../util/byte-sizes.ts";
import { BakeliteError } from "../util/errors.ts";
import { formatAgo } from "../util/timestamps.ts";
import { kindOf, statOrNull } from "./doctor-files.ts";
import { findDatabases } from "./find-databases.ts";
import { testDestinations } from "./init-connection.ts";
import type { Prompts } from "./init-prompts.ts";
import {
  currentText,
  type InitFlags,
  type InitWorld,
  ownerOf,
  proposedName,
  requestOf,
  wantedKey,
  whyNoDatabase,
} from "./init-request.ts";
import type { Question, Recipe } from "./recipe.ts";
import type { ChosenDatabase } from "./recipe-render.ts";
import type { RecipeShelf } from "./recipe-shelf.ts";
import {
  databasesToConvert,
  planSetup,
  type ServiceUser,
  type SetupPlan,
  type SetupRequest,
  serviceUser,
  type WantedKey,
  type WantedService,
} from "./setup-plan.ts";

export interface WizardResult {
  readonly request: SetupRequest;
  readonly plan: SetupPlan;
}

const MAX_OFFERED = 12;
const OTHER = "\u0000other";

/**
 * Asks a person for all that a running backup needs, tests the destinations, and shows every change; nothing is written before all
 * of them are agreed to. null: the person does not want them.
 */
export async function runWizard(
  flags: InitFlags,
  { shelf, recipe: given }: { readonly shelf: RecipeShelf; readonly recipe: Recipe | null },
  world: InitWorld,
  prompts: Prompts,
): Promise<WizardResult | null> {
  if (!(await agreesToReplace(flags, world, prompts))) return null;
  const recipe = given ?? (await chooseRecipe(shelf, prompts));
  const databases = await chooseDatabases(recipe, flags, prompts);
  const configDirectory = dirname(world.source.path);
  const answers = await askQuestions(recipe, { databases, configDirectory, flags }, world, prompts);
  const isSealed = await choosesEncryption(recipe, flags, prompts);
  const service = await chooseService(databases, flags, world, prompts);
  const keyFile = isSealed
    ? await chooseKey(flags, { configDirectory, user: service?.user ?? null }, world, prompts)
    : null;
  const choices = { databases, answers, keyFile: keyFile?.path ?? null, configDirectory };
  const asked = await requestOf(recipe, choices, { keyFile, service, convert: false }, world);
  const request = { ...asked, convert: await chooseConversions(asked, prompts) };
  const plan = await planSetup(request, world.people, world.system);
  return (await agreesToAll(plan, prompts)) ? { request, plan } : null;
}

async function agreesToReplace({ force }: InitFlags, { source }: InitWorld, prompts: Prompts): Promise<boolean> {
  if (force || (await currentText(source)) === null) return true;
  prompts.say(`There is a configuration at ${source.path}. It would be kept under another name.`);
  return await prompts.agree("Replace it?", false);
}

async function chooseRecipe(shelf: RecipeShelf, prompts: Prompts): Promise<Recipe> {
  const { recipes, problems } = await shelf.all();
  for (const problem of problems) prompts.warn(`${problem.subject ?? ""}: ${problem.message}`);
  const options = recipes.map(({ name, title, description }) => ({ value: name, label: title, hint: description }));
  const name = await prompts.choose("Where should the backups go?", options);
  return await shelf.recipe(name);
}

async function chooseDatabases(recipe: Recipe, flags: InitFlags, prompts: Prompts): Promise<readonly ChosenDatabase[]> {
  const found = (await findDatabases()).slice(0, MAX_OFFERED);
  const databases: ChosenDatabase[] = [];
  do {
    const isFirst = databases.length === 0;
    const path = (isFirst ? flags.dbPath : undefined) ?? (await choosePath(found, databases, prompts));
    const problem = await whyNoDatabase(path);
    if (problem !== null) throw new BakeliteError("usage", `it cannot be backed up: ${problem}`, { subject: path });
    if ((await statOrNull(path)) === null) prompts.say(`${path} is not there yet. The daemon will wait for it.`);
    const proposed = (isFirst ? flags.dbName : undefined) ?? proposedName(path);
    const name = await prompts.ask("Under which name should it be stored?", {
      proposed,
      check: (answer) => nameProblem(answer, databases),
    });
    databases.push({ name, path });
  } while (recipe.databases === "several" && (await prompts.agree("Another database?", false)));
  return databases;
}

function nameProblem(name: string, taken: readonly ChosenDatabase[]): string | undefined {
  if (taken.some((database) => database.name === name)) return "another database has that name";
  return databaseName.safeParse(name).success ? undefined : 'letters, digits, "-", "_" and ".", at most 128 of them';
}

async function choosePath(
  found: Awaited<ReturnType<typeof findDatabases>>,
  taken: readonly ChosenDatabase[],
  prompts: Prompts,
): Promise<string> {
  const left = found.filter(({ path }) => !taken.some((database) => database.path === path));
  if (left.length > 0) {
    const nowMs = Date.now();
    const offered = left.map(({ path, sizeBytes, modifiedMs }) => ({
      value: path,
      label: path,
      hint: `${formatByteSize(sizeBytes)}, written ${formatAgo(modifiedMs, nowMs)}`,
    }));
    const path = await prompts.choose("Which database?", [...offered, { value: OTHER, label: "another one …" }]);
    if (path !== OTHER) return path;
  }
  return resolve(
    await prompts.ask("Path of the database?", {
      example: "/var/lib/app/app.db",
      check: (answer) => (answer.startsWith("/") ? undefined : "an absolute path, such as /var/lib/app/app.db"),
    }),
  );
}

interface Asking {
  readonly databases: readonly ChosenDatabase[];
  readonly configDirectory: string;
  readonly flags: InitFlags;
}

/** Until the destinations answer, or the person goes on all the same. */
async function askQuestions(
  recipe: Recipe,
  { databases, configDirectory, flags }: Asking,
  world: InitWorld,
  prompts: Prompts,
): Promise<ReadonlyMap<string, string>> {
  let before: ReadonlyMap<string, string> = new Map(
    flags.backupDirectory === undefined ? [] : [["backup_dir", flags.backupDirectory]],
  );
  for (;;) {
    const answers = new Map<string, string>();
    for (const question of recipe.questions) {
      if (question.needs !== undefined && (answers.get(question.needs) ?? "") === "") continue;
      answers.set(question.name, await askOne(question, before.get(question.name), prompts));
    }
    const tested = await testDestinations(
      recipe,
      { databases, answers, keyFile: null, configDirectory },
      { ...world, onAsking: (location) => prompts.say(`Asking ${location}; nothing is stored …`) },
    );
    let isFine = true;
    for (const { location, checks } of tested) {
      const wrong = checks.filter(({ level }) => level !== "pass");
      for (const { level, message, fix } of wrong)
        prompts.warn(`${location}: ${level === "fail" ? "FAIL " : ""}${message}${fix === null ? "" : `\nfix: ${fix}`}`);
      if (wrong.some(({ level }) => level === "fail")) isFine = false;
      else prompts.say(`${location} answers`);
    }
    if (isFine) return answers;
    const next = await prompts.choose("What now?", [
      { value: "again", label: "Answer again" },
      { value: "on", label: "Go on all the same", hint: "the daemon will try again until it works" },
      { value: "stop", label: "Stop", hint: "nothing was changed" },
    ]);
    if (next === "stop") throw new BakeliteError("interrupted", "stopped; nothing was changed");
    if (next === "on") return answers;
    before = answers;
  }
}

async function askOne(question: Question, before: string | undefined, prompts: Prompts): Promise<string> {
  const { ask, kind, example, choices } = question;
  const proposed = before ?? question.default;
  if (kind === "secret") return await prompts.askSecret(ask);
  if (kind === "choice") {
    const options = choices.map((value) => ({ value, label: value }));
    return await prompts.choose(ask, options, proposed);
  }
  for (;;) {
    const answer = await prompts.ask(ask, { proposed, example, check: (given) => answerProblem(question, given) });
    if (kind !== "file" || answer === "") return answer;
    const info = await statOrNull(answer).catch(() => null);
    if (info?.isFile() === true) return answer;
    prompts.warn(`${answer} is ${info === null ? "not there" : kindOf(info)}`);
    if (await prompts.agree("Name it all the same, and put it there later?", false)) return answer;
  }
}

/** What is wrong with an answer before anything is looked at. */
export function answerProblem({ kind, optional }: Question, answer: string): string | undefined {
  if (answer === "") return optional ? undefined : "it is needed here";
  if (/\p{Cc}/u.test(answer)) return "it must be one line without control characters";
  switch (kind) {
    case "number":
      return /^\d{1,15}$/.test(answer) ? undefined : "a whole number";
    case "url":
      return /^https?:\/\/[^\s/]+/.test(answer) ? undefined : "an address such as https://s3.example.com";
    case "directory":
    case "file":
      return answer.startsWith("/") ? undefined : "an absolute path";
    default:
      return undefined;
  }
}

async function choosesEncryption({ encryption }: Recipe, flags: InitFlags, prompts: Prompts): Promise<boolean> {
  if (encryption === "never") return false;
  if (encryption === "always" || flags.encrypt || flags.keyFile !== undefined) return true;
  return await prompts.agree(
    "Encrypt everything before it leaves this host? Without the key file nothing can be restored then",
  );
}

async function chooseKey(
  flags: InitFlags,
  { configDirectory, user }: { readonly configDirectory: string; readonly user: ServiceUser | null },
  { people }: InitWorld,
  prompts: Prompts,
): Promise<WantedKey> {
  const proposed = flags.keyFile ?? join(configDirectory, "key.txt");
  const path = await prompts.ask("Key file? A new one is made where none is", {
    proposed,
    check: (answer) => (answer.startsWith("/") ? undefined : "an absolute path"),
  });
  return await wantedKey({ path: resolve(path), mayMake: true, configDirectory }, user, people);
}

async function chooseService(
  databases: readonly ChosenDatabase[],
  flags: InitFlags,
  { people, system }: InitWorld,
  prompts: Prompts,
): Promise<WantedService | null> {
  if (system.unit === "none") {
    prompts.say("There is no bakelite.service on this host, so no service is set up.");
    return null;
  }
  if (!(await prompts.agree("Set up the systemd service?"))) return null;
  const [database] = databases;
  const owner = database === undefined ? null : await ownerOf(database.path, people);
  const name = await prompts.ask("As which user should it run? The owner of the database is the right one", {
    proposed: flags.serviceUser ?? owner ?? "root",
    check: (answer) => (people.account(answer) === null ? "there is no such user on this host" : undefined),
  });
  const user = serviceUser(people, name, flags.serviceGroup);
  const isEnabled = flags.enable || (await prompts.agree("Start it now, and at every boot?"));
  const wantsTimers =
    system.timers.length > 0 &&
    isEnabled &&
    (await prompts.agree("Check every 5 minutes that it works, and verify what is stored every day?"));
  return { user, isEnabled, timers: wantsTimers ? system.timers : [] };
}

async function chooseConversions({ config }: SetupRequest, prompts: Prompts): Promise<readonly string[]> {
  const agreed: string[] = [];
  for (const path of await databasesToConvert(config))
    if (await prompts.agree(`${path} is not in WAL mode, which bakelite needs. Put it into WAL mode? It stays so`))
      agreed.push(path);
  return agreed;
}

/** Each change by itself, before the first one is made: an answer of no, or Ctrl-C, leaves everything as it was. */
async function agreesToAll({ steps, notes }: SetupPlan, prompts: Prompts): Promise<boolean> {
  for (const note of notes) prompts.warn(note);
  if (steps.length === 0) {
    prompts.say("Everything is so already.");
    return true;
  }
  for (const { what, shown } of steps) {
    if (shown !== null) prompts.show(what, shown);
    if (!(await prompts.agree(`${what.charAt(0).toUpperCase()}${what.slice(1)}?`))) {
      prompts.say("Nothing was changed.");
      return false;
    }
  }
  return true;
}
