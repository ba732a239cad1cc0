import { readFile } from "node:fs/promises";

/** Whom permissions are checked for. */
export interface DaemonUser {
  readonly name: string;
  readonly uid: number;
  readonly gids: ReadonlySet<number>;
  /** It has CAP_DAC_OVERRIDE, as root normally does: the modes of files do not bind it. */
  readonly overridesModes: boolean;
  /** It is the one that runs this process, so the kernel itself can be asked. */
  readonly isPresent: boolean;
}

export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

export interface Group {
  readonly name: string;
  readonly gid: number;
  readonly members: readonly string[];
}

/** The users and groups of this host, as far as its files tell; those of a directory service are not among them. */
export class People {
  readonly #accounts: readonly Account[];
  readonly #groups: readonly Group[];

  constructor(accounts: readonly Account[], groups: readonly Group[]) {
    this.#accounts = accounts;
    this.#groups = groups;
  }

  /** By name, or by the number in decimal. */
  account(nameOrUid: string): Account | null {
    return (
      this.#accounts.find(({ name }) => name === nameOrUid) ??
      this.#accounts.find(({ uid }) => String(uid) === nameOrUid) ??
      null
    );
  }

  group(nameOrGid: string): Group | null {
    return (
      this.#groups.find(({ name }) => name === nameOrGid) ??
      this.#groups.find(({ gid }) => String(gid) === nameOrGid) ??
      null
    );
  }

  /** Those that list the user as a member. */
  groupsOf(name: string): readonly Group[] {
    return this.#groups.filter(({ members }) => members.includes(name));
  }

  userName(uid: number): string {
    return this.#accounts.find((account) => account.uid === uid)?.name ?? String(uid);
  }

  groupName(gid: number): string {
    return this.#groups.find((group) => group.gid === gid)?.name ?? String(gid);
  }
}

/** `/etc/passwd`: name, password, uid, gid and more, with colons between. Other lines are left out. Source: passwd(5). */
export function parseAccounts(text: string): readonly Account[] {
  return text.split("\n").flatMap((line) => {
    const [name = "", , uid = "", gid = ""] = line.split(":");
    if (name === "" || !isId(uid) || !isId(gid)) return [];
    return [{ name, uid: Number(uid), gid: Number(gid) }];
  });
}

/** `/etc/group`: name, password, gid and the members with commas between. Other lines are left out. Source: group(5). */
export function parseGroups(text: string): readonly Group[] {
  return text.split("\n").flatMap((line) => {
    const [name = "", , gid = "", members = ""] = line.split(":");
    return name === "" || !isId(gid)
      ? []
      : [{ name, gid: Number(gid), members: members.split(",").filter((member) => member !== "") }];
  });
}

export async function readPeople(): Promise<People> {
  const read = (path: string) => readFile(path, "utf8").catch(() => "");
  return new People(parseAccounts(await read("/etc/passwd")), parseGroups(await read("/etc/group")));
}

/** The user that runs this process. */
export async function presentUser(people: People): Promise<DaemonUser> {
  const uid = process.geteuid?.() ?? 0;
  const gids = new Set([process.getegid?.() ?? 0, ...(process.getgroups?.() ?? [])]);
  return { name: people.userName(uid), uid, gids, overridesModes: await mayOverrideModes(uid), isPresent: true };
}

const CAP_DAC_OVERRIDE = 1n;

/** Root may have given it up, as in a container. Source: proc_pid_status(5), capabilities(7). */
async function mayOverrideModes(uid: number): Promise<boolean> {
  const status = await readFile("/proc/self/status", "latin1").catch(() => "");
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1];
  return effective === undefined ? uid === 0 : ((BigInt(`0x${effective}`) >> CAP_DAC_OVERRIDE) & 1n) === 1n;
}

function isId(text: string): boolean {
  return /^\d{1,10}$/.test(text);
}
