import { isWithin } from "./doctor-files.ts";

export interface UnitFile {
  readonly path: string;
  readonly text: string;
}

/** A path of a setting; `optional`: the service starts without it too. */
export interface UnitPath {
  readonly path: string;
  readonly optional: boolean;
}

export type ProtectSystem = "no" | "yes" | "full" | "strict";
export type ProtectHome = "no" | "yes" | "read-only" | "tmpfs";

/** What a service's unit file and its drop-ins say together, as far as it matters here. */
export interface ServiceUnit {
  /** The unit file first, then the drop-ins in the order in which they apply. */
  readonly files: readonly string[];
  /** null: root. */
  readonly user: string | null;
  readonly group: string | null;
  readonly supplementaryGroups: readonly string[];
  readonly dynamicUser: boolean;
  /** False where root itself is bound by the modes of files. */
  readonly keepsDacOverride: boolean;
  readonly protectSystem: ProtectSystem;
  readonly protectHome: ProtectHome;
  readonly privateTmp: boolean;
  readonly readWritePaths: readonly UnitPath[];
  readonly readOnlyPaths: readonly UnitPath[];
  readonly inaccessiblePaths: readonly UnitPath[];
  /** Paths that are shown in the service whatever hides the rest; `BindPaths=`, and read-only ones. */
  readonly boundPaths: readonly string[];
  readonly boundReadOnlyPaths: readonly string[];
  /** Another root: no path in the unit or the configuration means what it means here. */
  readonly ownRoot: boolean;
  /** The greatest number of open files; null: not said, Infinity: no limit. */
  readonly openFiles: number | null;
  /** The configuration that the daemon is started with: a path, `default`, or null when the unit does not tell. */
  readonly configPath: string | null;
  /** What could not be understood: `/etc/systemd/system/bakelite.service:3: not a setting`. */
  readonly problems: readonly string[];
}

/** `configPath` of a daemon that is started without naming one. */
export const DEFAULT_CONFIG = "default";

const MAX_PROBLEMS = 3;

/**
 * Reads the `[Service]` section of a unit file and its drop-ins, later ones over earlier ones; an empty value empties a list.
 * Pure. Lines that make no sense are problems, and systemd passes over them as well. Source: systemd.unit(5),
 * systemd.exec(5), systemd.syntax(7).
 */
export function parseService(files: readonly UnitFile[]): ServiceUnit {
  const problems: string[] = [];
  const settings = new Settings(files.flatMap((file) => readSettings(file, problems)));
  const limits = settings.last("LimitNOFILE");
  return {
    files: files.map(({ path }) => path),
    user: expanded(settings.last("User")),
    group: expanded(settings.last("Group")),
    supplementaryGroups: settings.words("SupplementaryGroups"),
    dynamicUser: isTrue(settings.last("DynamicUser")),
    keepsDacOverride: keepsDacOverride(settings.given("CapabilityBoundingSet")),
    protectSystem: protectSystem(settings),
    protectHome: protectHome(settings),
    privateTmp: isTrue(settings.last("PrivateTmp"), ["disconnected"]) || isTrue(settings.last("DynamicUser")),
    readWritePaths: [...settings.paths("ReadWritePaths", "ReadWriteDirectories"), ...ownDirectories(settings)],
    readOnlyPaths: settings.paths("ReadOnlyPaths", "ReadOnlyDirectories"),
    inaccessiblePaths: settings.paths("InaccessiblePaths", "InaccessibleDirectories"),
    boundPaths: settings.paths("BindPaths").map(({ path }) => path),
    boundReadOnlyPaths: settings.paths("BindReadOnlyPaths").map(({ path }) => path),
    ownRoot: settings.last("RootDirectory") !== null || settings.last("RootImage") !== null,
    openFiles: limits === null ? null : parseLimit(limits),
    configPath: configPath(settings),
    problems: problems.slice(0, MAX_PROBLEMS),
  };
}

export type Reach =
  | { readonly kind: "writable" }
  /** `because`: the setting that makes it so. */
  | { readonly kind: "read-only" | "hidden"; readonly because: string };

const HOMES = ["/home", "/root", "/run/user"];
const TEMPORARY = ["/tmp", "/var/tmp"];
const PROTECTED: Readonly<Record<ProtectSystem, readonly string[]>> = {
  no: [],
  yes: ["/usr", "/boot", "/efi"],
  full: ["/usr", "/boot", "/efi", "/etc"],
  strict: ["/"],
};
/** What `ProtectSystem=strict` leaves alone. */
const KERNEL_TREES = ["/dev", "/proc", "/sys"];

/**
 * What the service can do with a path (absolute, without links) as far as its mounts go; permissions come on top. The longest path
 * that a setting names decides between writable and read-only. Pure. Source: systemd.exec(5), "Sandboxing".
 */
export function reachOf(unit: ServiceUnit, path: string): Reach {
  const isShown = [...unit.boundPaths, ...unit.boundReadOnlyPaths].some((bound) => isWithin(path, bound));
  const hiding = isShown ? null : hiddenBy(unit, path);
  if (hiding !== null) return { kind: "hidden", because: hiding };
  const rules: { readonly root: string; readonly readOnly: string | null }[] = [
    ...PROTECTED[unit.protectSystem].map((root) => ({ root, readOnly: `ProtectSystem=${unit.protectSystem}` })),
    ...(unit.protectSystem === "strict" ? KERNEL_TREES.map((root) => ({ root, readOnly: null })) : []),
    ...(unit.privateTmp ? TEMPORARY.map((root) => ({ root, readOnly: null })) : []),
    ...(unit.protectHome === "read-only" ? HOMES.map((root) => ({ root, readOnly: "ProtectHome=read-only" })) : []),
    ...unit.readOnlyPaths.map(({ path: root }) => ({ root, readOnly: "ReadOnlyPaths=" })),
    ...unit.boundReadOnlyPaths.map((root) => ({ root, readOnly: "BindReadOnlyPaths=" })),
    ...unit.boundPaths.map((root) => ({ root, readOnly: null })),
    ...unit.readWritePaths.map(({ path: root }) => ({ root, readOnly: null })),
  ];
  let decisive: (typeof rules)[number] | null = null;
  for (const rule of rules)
    if (isWithin(path, rule.root) && rule.root.length >= (decisive?.root.length ?? 0)) decisive = rule;
  if (decisive === null || decisive.readOnly === null) return { kind: "writable" };
  return { kind: "read-only", because: decisive.readOnly };
}

function hiddenBy(unit: ServiceUnit, path: string): string | null {
  if (unit.privateTmp && TEMPORARY.some((root) => isWithin(path, root))) return "PrivateTmp=";
  if ((unit.protectHome === "yes" || unit.protectHome === "tmpfs") && HOMES.some((root) => isWithin(path, root)))
    return `ProtectHome=${unit.protectHome}`;
  return unit.inaccessiblePaths.some(({ path: root }) => isWithin(path, root)) ? "InaccessiblePaths=" : null;
}

interface Setting {
  readonly key: string;
  readonly value: string;
}

class Settings {
  readonly #settings: readonly Setting[];

  constructor(settings: readonly Setting[]) {
    this.#settings = settings;
  }

  /** The value that counts; null when not given, or given as nothing. */
  last(key: string): string | null {
    const value = this.#settings.findLast((setting) => setting.key === key)?.value ?? "";
    return value === "" ? null : value;
  }

  /** Every value, empty ones too. */
  given(...keys: readonly string[]): readonly string[] {
    return this.#settings.filter(({ key }) => keys.includes(key)).map(({ value }) => value);
  }

  /** Those after the last empty one. */
  all(...keys: readonly string[]): readonly string[] {
    const values = this.given(...keys);
    return values.slice(values.lastIndexOf("") + 1);
  }

  words(...keys: readonly string[]): readonly string[] {
    return this.all(...keys).flatMap(splitWords);
  }

  /** `-/a` is optional, `+` speaks of another root, `/a:/b` shows one at the place of the other; what is not a path here is left out. */
  paths(...keys: readonly string[]): readonly UnitPath[] {
    return this.words(...keys).flatMap((word) => {
      const [, marks = "", rest = ""] = /^([-+]*)(.*)$/s.exec(word) ?? [];
      // `BindPaths=source:destination`; elsewhere a colon is part of the name.
      const [source = "", target = source] = keys.some((key) => key.startsWith("Bind")) ? rest.split(":") : [rest];
      const path = expanded(target);
      return path?.startsWith("/") === true ? [{ path: withoutSlash(path), optional: marks.includes("-") }] : [];
    });
  }
}

function readSettings({ path, text }: UnitFile, problems: string[]): readonly Setting[] {
  const settings: Setting[] = [];
  let section = "";
  let begun = "";
  for (const [i, raw] of text.split("\n").entries()) {
    const line = raw.trim();
    // A comment between continued lines does not end them.
    if (/^[#;]/.test(line)) continue;
    const whole = begun + line;
    if (whole.endsWith("\\")) {
      begun = `${whole.slice(0, -1)} `;
      continue;
    }
    begun = "";
    if (whole.trim() === "") continue;
    const heading = /^\[([^\]]*)\]$/.exec(whole)?.[1];
    const equals = whole.indexOf("=");
    if (heading !== undefined) section = heading;
    else if (equals < 1) problems.push(`${path}:${i + 1}: not a setting`);
    else if (section === "Service")
      settings.push({ key: whole.slice(0, equals).trim(), value: whole.slice(equals + 1).trim() });
  }
  return settings;
}

/** Words with white space between; quotes of both kinds and backslashes protect it. */
export function splitWords(text: string): readonly string[] {
  const words: string[] = [];
  let word: string | null = null;
  let quote = "";
  for (let i = 0; i < text.length; i++) {
    const character = text.charAt(i);
    if (character === "\\" && i + 1 < text.length) word = (word ?? "") + text.charAt(++i);
    else if (quote !== "" && character === quote) quote = "";
    else if (quote === "" && (character === '"' || character === "'")) {
      quote = character;
      word ??= "";
    } else if (quote === "" && /\s/.test(character)) {
      if (word !== null) words.push(word);
      word = null;
    } else word = (word ?? "") + character;
  }
  if (word !== null) words.push(word);
  return words;
}

/** Of a system service. Source: systemd.unit(5), "Specifiers". */
const SPECIFIERS: Readonly<Record<string, string>> = {
  "%": "%",
  C: "/var/cache",
  E: "/etc",
  L: "/var/log",
  N: "bakelite",
  S: "/var/lib",
  T: "/tmp",
  V: "/var/tmp",
  n: "bakelite.service",
  p: "bakelite",
  t: "/run",
};

/** null for nothing, and for text with a specifier that only systemd can fill in. */
function expanded(text: string | null): string | null {
  if (text === null || text === "") return null;
  let isKnown = true;
  const full = text.replace(/%(.)/gs, (_, letter: string) => {
    const value = SPECIFIERS[letter];
    isKnown &&= value !== undefined;
    return value ?? "";
  });
  return isKnown ? full : null;
}

const DIRECTORY_SETTINGS = [
  ["StateDirectory", "/var/lib"],
  ["CacheDirectory", "/var/cache"],
  ["LogsDirectory", "/var/log"],
  ["RuntimeDirectory", "/run"],
] as const;

/** The directories that systemd makes for the service, and lets it write to. */
function ownDirectories(settings: Settings): readonly UnitPath[] {
  return DIRECTORY_SETTINGS.flatMap(([key, root]) =>
    settings.words(key).flatMap((word) => {
      const name = expanded(word.split(":")[0] ?? "");
      return name === null ? [] : [{ path: withoutSlash(`${root}/${name}`), optional: true }];
    }),
  );
}

function protectSystem(settings: Settings): ProtectSystem {
  const value = settings.last("ProtectSystem");
  if (value === "strict" || value === "full") return value;
  if (isTrue(settings.last("DynamicUser"))) return "strict";
  return isTrue(value) ? "yes" : "no";
}

function protectHome(settings: Settings): ProtectHome {
  const value = settings.last("ProtectHome");
  if (value === "read-only" || value === "tmpfs") return value;
  if (isTrue(value)) return "yes";
  return isTrue(settings.last("DynamicUser")) ? "read-only" : "no";
}

/** Without the setting all are kept; `~` lists those that are taken away, and nothing at all leaves none. */
function keepsDacOverride(values: readonly string[]): boolean {
  let kept = true;
  for (const [i, value] of values.entries()) {
    const isNamed = splitWords(value.replace(/^~/, "")).includes("CAP_DAC_OVERRIDE");
    if (value.startsWith("~")) kept &&= !isNamed;
    // The first list stands alone; later ones add to what there is.
    else kept = isNamed || (value !== "" && i > 0 && kept);
  }
  return kept;
}

/** `infinity`, `1024`, or `1024:524288`, of which the second counts: the daemon raises its own limit to it. */
function parseLimit(text: string): number | null {
  const hard = text.split(":").at(-1) ?? "";
  if (hard === "infinity") return Number.POSITIVE_INFINITY;
  return /^\d{1,15}$/.test(hard) ? Number(hard) : null;
}

/** What the daemon's command line names, else what the environment does. */
function configPath(settings: Settings): string | null {
  const commands = settings.all("ExecStart").map(splitWords);
  const daemon = commands.find((words) => words.includes("daemon"));
  if (daemon === undefined) return null;
  for (const [i, word] of daemon.entries()) {
    const attached = /^(?:--config|-c)=(.*)$/s.exec(word)?.[1];
    const value = attached ?? (word === "--config" || word === "-c" ? daemon[i + 1] : undefined);
    if (value !== undefined) return value.includes("$") ? null : expanded(value);
  }
  const assigned = settings.words("Environment").findLast((word) => word.startsWith("BAKELITE_CONFIG="));
  if (assigned !== undefined) return expanded(assigned.slice("BAKELITE_CONFIG=".length));
  return settings.all("EnvironmentFile").length === 0 ? DEFAULT_CONFIG : null;
}

function isTrue(value: string | null, alike: readonly string[] = []): boolean {
  return value !== null && (/^(1|yes|y|true|t|on)$/i.test(value) || alike.includes(value));
}

function withoutSlash(path: string): string {
  const single = path.replace(/\/+/g, "/");
  return single.length > 1 && single.endsWith("/") ? single.slice(0, -1) : single;
}
