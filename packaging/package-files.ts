import { readdir, readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { gzip } from "./archive.ts";
import { bashCompletion, fishCompletion, zshCompletion } from "./completions.ts";
import { configManPage, programManPage } from "./man-pages.ts";
import { thirdPartyNotices } from "./notices.ts";

const ROOT = resolve(import.meta.dir, "..");

/** A file of a package. */
export interface PackageFile {
  /** Absolute, where it is installed. */
  readonly path: string;
  readonly mode: number;
  readonly bytes: Uint8Array;
  /** It belongs to the administrator: an upgrade keeps what was changed. */
  readonly isConfig: boolean;
}

export type PackageKind = "deb" | "rpm";

/** What bakelite.toml is until somebody has one. Nothing runs with it, and every command says what is missing. */
const PLACEHOLDER = `# bakelite is installed, and backs up nothing yet. Run this, and answer its questions:
#
#   sudo bakelite init
#
# or say it all at once, for one database and a directory on another disk:
#
#   sudo bakelite init --yes --force --db-path /var/lib/app/app.db --backup-dir /mnt/backup-disk/bakelite \\
#     --encrypt --service-user app --enable
#
# or write it by hand; bakelite.toml(5) has every key:
#
#   [[database]]
#   name = "app"
#   path = "/var/lib/app/app.db"
#
#     [[database.backends]]
#     type = "file"
#     path = "/mnt/backup-disk/bakelite"
#
# and then \`sudo bakelite init --yes --service-user app --enable\`. \`bakelite doctor\` checks everything.
`;

const NOTIFY_README = `When one of bakelite's units fails, every program in this folder is run with the unit's name as its argument and a text about
it on standard input, as the user who runs the daemon. A mail, for example (make it executable: chmod 755):

  #!/bin/sh
  exec mail -s "$1 failed on $(uname -n)" you@example.org

or a web hook:

  #!/bin/sh
  exec curl --fail --silent --show-error --max-time 20 --data-binary @- https://hooks.example/your-id

Try it: systemctl start bakelite-notify-failure@a-test.service
`;

/**
 * Everything that is installed beside the package manager's own files, ascending by path. The same source gives the same
 * bytes. Completions lie where each kind of distribution looks for them.
 */
export async function packageFiles(
  executable: Uint8Array,
  kind: PackageKind,
  day: string,
): Promise<readonly PackageFile[]> {
  const files: PackageFile[] = [];
  const add = (path: string, content: string | Uint8Array, { mode = 0o644, isConfig = false } = {}) => {
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    files.push({ path, mode, bytes, isConfig });
  };
  add("/usr/bin/bakelite", executable, { mode: 0o755 });
  for (const name of await readdir(join(ROOT, "systemd")))
    if (/\.(?:service|timer)$/.test(name)) add(`/usr/lib/systemd/system/${name}`, await source("systemd", name));
  add("/usr/lib/bakelite/notify-failure", await source("systemd", "notify-failure"), { mode: 0o755 });
  add("/etc/bakelite/bakelite.toml", PLACEHOLDER, { isConfig: true });
  add("/etc/bakelite/notify.d/README", NOTIFY_README, { isConfig: true });
  for (const name of await readdir(join(ROOT, "src", "setup", "recipes")))
    if (/\.(?:recipe|toml|md)$/.test(name))
      add(`/etc/bakelite/recipes/${name}`, await source("src", "setup", "recipes", name), { isConfig: true });
  add("/usr/share/man/man1/bakelite.1.gz", gzip(await programManPage(day)));
  add("/usr/share/man/man5/bakelite.toml.5.gz", gzip(configManPage(await text("docs", "configuration.md"), day)));
  add("/usr/share/bash-completion/completions/bakelite", await bashCompletion());
  const zshFolder = kind === "deb" ? "vendor-completions" : "site-functions";
  add(`/usr/share/zsh/${zshFolder}/_bakelite`, await zshCompletion());
  add("/usr/share/fish/vendor_completions.d/bakelite.fish", await fishCompletion());
  const doc = "/usr/share/doc/bakelite";
  add(`${doc}/examples/bakelite.cron`, await source("systemd", "bakelite.cron"));
  add(`${doc}/README.md`, await source("README.md"));
  add(`${doc}/THIRD-PARTY-NOTICES.md.gz`, gzip(await thirdPartyNotices()));
  return files.sort((a, b) => (a.path < b.path ? -1 : 1));
}

async function source(...names: readonly string[]): Promise<Uint8Array> {
  return await readFile(join(ROOT, ...names));
}

async function text(...names: readonly string[]): Promise<string> {
  return await readFile(join(ROOT, ...names), "utf8");
}
